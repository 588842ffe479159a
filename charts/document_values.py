"""Makes charts/irlops/values.schema.json and charts/irlops/README.md out of the comments in values.yaml.

    python charts/document_values.py            writes both
    python charts/document_values.py --check    exits 1 when one of them is stale

A key's comment is the block of ``#`` lines above it that starts with ``# --``. Types come from the defaults; what a
default can't say stands behind it:

    replicas: 2   # @schema minimum:1;maximum:100       any JSON schema keyword, its value in YAML
    labels: {}    # @schema additionalProperties:{type: string}
    resources:    # @schema open:true                   an object of another API: taken as it comes
    limits: {}    # @schema model:package.module:Class  a pydantic class of ours: the chart takes what the program takes
                  #         list:true     a list of them        optional:true   or nothing
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent / "irlops"
_DIRECTIVE = re.compile(r"#\s*@schema\s+(.*)$")
_JSON_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}

Schema = dict[str, Any]


@dataclass(frozen=True)
class Value:
    """One key of values.yaml. Example: ``Value("gateway.replicas", 2, "Gateway pods; …", {"minimum": 1}, ())``."""

    path: str
    default: Any
    comment: str
    directives: Schema
    children: tuple[Value, ...]

    @property
    def is_leaf(self) -> bool:
        return not self.children or bool({"open", "model", "additionalProperties"} & self.directives.keys())


def read_values(text: str) -> tuple[Value, ...]:
    """Every key with its comment, in order."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    return _children(root, text.splitlines(), "")


def _children(node: yaml.MappingNode, lines: list[str], prefix: str) -> tuple[Value, ...]:
    return tuple(_value(key, value, lines, prefix) for key, value in node.value)


def _value(key: yaml.Node, node: yaml.Node, lines: list[str], prefix: str) -> Value:
    path = f"{prefix}.{key.value}".lstrip(".")
    line = key.start_mark.line
    found = _DIRECTIVE.search(lines[line])
    is_block = isinstance(node, yaml.MappingNode) and not node.flow_style
    return Value(
        path=path,
        default=yaml.SafeLoader("").construct_document(node),
        comment=_comment_above(lines, line),
        directives=_directives(found[1]) if found else {},
        children=_children(node, lines, path) if is_block and isinstance(node, yaml.MappingNode) else (),
    )


def _comment_above(lines: list[str], line: int) -> str:
    block: list[str] = []
    for text in reversed(lines[:line]):
        stripped = text.strip()
        if not stripped.startswith("#"):
            break
        block.insert(0, stripped.lstrip("# "))
        if stripped.startswith("# --"):
            return " ".join(block).removeprefix("-- ")
    return ""


def _directives(text: str) -> Schema:
    pairs = (part.split(":", 1) for part in text.strip().split(";"))
    return {name: value if name in ("model", "pattern") else yaml.safe_load(value) for name, value in pairs}


def values_schema(values: tuple[Value, ...]) -> Schema:
    """The closed schema of the whole file."""
    schema = _object(values)
    # Helm adds `global` to every chart that is used as a subchart, with keys of its parents.
    schema["properties"]["global"].pop("additionalProperties")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Values of the chart irlops", **schema}


def _object(values: tuple[Value, ...]) -> Schema:
    properties = {value.path.rsplit(".", 1)[-1]: _schema(value) for value in values}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _schema(value: Value) -> Schema:
    described: Schema = {"description": value.comment} if value.comment else {}
    directives = dict(value.directives)
    if "model" in directives:
        return described | _model_schema(directives)
    if directives.pop("open", False):
        return described | {"type": "object"}
    if value.children and "additionalProperties" not in directives:
        return described | _object(value.children)
    return described | {"type": _JSON_TYPES[type(value.default)]} | directives


def _model_schema(directives: Schema) -> Schema:
    module, name = directives["model"].rsplit(":", 1)
    document = getattr(importlib.import_module(module), name).model_json_schema()
    schema = _inline(document, document.get("$defs", {}))
    if not (directives.get("list") or directives.get("optional")):
        schema.pop("required", None)
    if directives.get("list"):
        return {"type": "array", "items": schema}
    return {"anyOf": [{"type": "object", "maxProperties": 0}, schema]} if directives.get("optional") else schema


def _inline(schema: Any, definitions: Schema) -> Any:
    """The schema without ``$ref``, titles and defaults: the program has its own."""
    if isinstance(schema, list):
        return [_inline(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inline(definitions[schema["$ref"].rsplit("/", 1)[-1]], definitions)
    dropped = {"$defs", "default", "title", "format"}
    return {
        key: {name: _inline(part, definitions) for name, part in value.items()}
        if key == "properties"
        else _inline(value, definitions)
        for key, value in schema.items()
        if key not in dropped
    }


def values_table(values: tuple[Value, ...]) -> str:
    """Every leaf as a row of a Markdown table."""
    rows = [f"| `{leaf.path}` | `{json.dumps(leaf.default)}` | {_cell(leaf.comment)} |" for leaf in _leaves(values)]
    return "\n".join(["| Key | Default | What, when, and what with it |", "| --- | --- | --- |", *rows])


def _leaves(values: tuple[Value, ...]) -> list[Value]:
    return [leaf for value in values for leaf in ([value] if value.is_leaf else _leaves(value.children))]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def render() -> dict[Path, str]:
    """Path -> text of every generated file."""
    values = read_values((CHART / "values.yaml").read_text())
    readme = CHART / "README.md"
    before, marker, _ = readme.read_text().partition("<!-- generated by charts/document_values.py -->\n")
    return {
        CHART / "values.schema.json": json.dumps(values_schema(values), indent=1, sort_keys=False) + "\n",
        readme: f"{before}{marker}\n{values_table(values)}\n",
    }


def main() -> int:
    """Write or check the generated files."""
    parser = argparse.ArgumentParser(description="Generate values.schema.json and the README's table of values.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is stale")
    options = parser.parse_args()
    stale = [path for path, text in render().items() if not path.exists() or path.read_text() != text]
    if options.check:
        for path in stale:
            print(f"{path} is stale: run python charts/document_values.py", file=sys.stderr)
        return 1 if stale else 0
    for path, text in render().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
