"""What the API server would say to a custom resource, from its CRD."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

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
