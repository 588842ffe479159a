import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { defineConfig, type Plugin } from "vite";

const root = import.meta.dirname;
const output = join(root, "..", "static");

function sourceFiles(folder: string): string[] {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.name === "node_modules") return [];
    return entry.isDirectory() ? sourceFiles(path) : [path];
  });
}

/** A digest beside what was built: a test compares it with the sources, so that the two never part. */
function writeSourcesDigest(): Plugin {
  return {
    name: "sources-digest",
    closeBundle() {
      const digest = createHash("sha256");
      const names = sourceFiles(root).map((path) => relative(root, path).replaceAll("\\", "/"));
      for (const name of names.sort()) digest.update(`${name}\0`).update(readFileSync(join(root, name)));
      writeFileSync(join(output, "sources.sha256"), `${digest.digest("hex")}\n`);
    },
  };
}

export default defineConfig({
  root,
  base: "./",
  plugins: [writeSourcesDigest()],
  build: {
    outDir: output,
    emptyOutDir: true,
    target: "es2022",
    // Nothing inline: the page's content security policy allows files of its own origin only.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    rollupOptions: {
      // Names without hashes: the gateway sends an ETag, and a build is a readable diff.
      output: { entryFileNames: "assets/playground.js", assetFileNames: "assets/playground[extname]" },
    },
  },
});
