"""What the API server would say to a custom resource, from its CRD."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import cel
import yaml
from jsonschema import Draft202012Validator


@cache
def validator_for(crd_file: Path) -> Draft202012Validator:
    """A validator by the CRD's only version that also refuses unknown fields, as ``kubectl apply`` does."""
    crd = yaml.load(crd_file.read_text(), yaml.CSafeLoader)
    [version] = crd["spec"]["versions"]
    return Draft202012Validator(_translated(version["schema"]["openAPIV3Schema"]))


def _translated(schema: Any) -> Any:
    """OpenAPI's extensions for Kubernetes in JSON Schema's words."""
    if isinstance(schema, list):
        return [_translated(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    translated = {
        key: {name: _translated(part) for name, part in value.items()} if key == "properties" else _translated(value)
        for key, value in schema.items()
    }
    if schema.get("x-kubernetes-int-or-string"):
        translated.pop("type", None)
        translated["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        translated.setdefault("additionalProperties", False)
    return translated


def with_defaults(schema: Any, value: Any) -> Any:
    """The value as an API server completes it: defaults are filled in wherever their object is there."""
    if isinstance(value, dict):
        parts = schema.get("properties", {})
        missing = {name: part["default"] for name, part in parts.items() if name not in value and "default" in part}
        return {name: with_defaults(parts.get(name, {}), each) for name, each in {**value, **missing}.items()}
    if isinstance(value, list):
        return [with_defaults(schema.get("items", {}), each) for each in value]
    return value


def broken_rules(schema: Any, value: Any) -> list[str]:
    """What the schema's CEL rules say against the value as it stands, the rules of its parts included.

    A rule that reads a field that isn't there is broken, as it is for an API server.
    """
    said = [rule["message"] for rule in schema.get("x-kubernetes-validations", []) if not _holds(rule["rule"], value)]
    if isinstance(value, dict):
        parts = schema.get("properties", {})
        said += [text for name, each in value.items() if name in parts for text in broken_rules(parts[name], each)]
    if isinstance(value, list):
        said += [text for each in value for text in broken_rules(schema.get("items", {}), each)]
    return said


def _holds(rule: str, value: Any) -> bool:
    try:
        return cel.evaluate(rule, {"self": value}) is True
    except KeyError:
        return False
