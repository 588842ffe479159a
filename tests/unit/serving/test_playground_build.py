"""The playground's built files belong to its sources, and need nothing from elsewhere."""

import hashlib
import re
from pathlib import Path

PLAYGROUND = Path(__file__).parents[3] / "serving" / "irlops_serving" / "playground"
SOURCE, STATIC = PLAYGROUND / "source", PLAYGROUND / "static"


def test_the_built_files_were_made_from_these_sources():
    # The same digest as in vite.config.ts: names in order, each with its bytes. `make playground` builds again.
    names = [path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*") if path.is_file()]
    digest = hashlib.sha256()
    for name in sorted(name for name in names if not name.startswith("node_modules/")):
        digest.update(f"{name}\0".encode() + (SOURCE / name).read_bytes())
    assert (STATIC / "sources.sha256").read_text().strip() == digest.hexdigest(), "run: make playground"


def test_the_page_has_nothing_inline_and_nothing_from_elsewhere():
    page = (STATIC / "index.html").read_text()
    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(links) == 3
    assert all(link.startswith("./") and (STATIC / link).is_file() for link in links)
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", page)


def test_the_lock_names_no_registry():
    assert "resolved" not in (SOURCE / "package-lock.json").read_text()


def test_preacts_licence_travels_with_the_script():
    assert "Jason Miller" in (STATIC / "licenses.txt").read_text()
