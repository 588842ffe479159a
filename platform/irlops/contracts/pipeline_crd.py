"""The CustomResourceDefinition of ``ReasoningPipeline``, generated from the classes in ``irlops.contracts.pipeline`` and
``pipeline_status``.

python -m irlops.contracts.pipeline_crd > charts/irlops-crds/templates/reasoningpipelines.yaml
"""

from __future__ import annotations

import sys
from typing import Any, cast

import yaml
from pydantic import BaseModel

from irlops.contracts.pipeline import GROUP, KIND, MAX_NAME_CHARS, PLURAL, VERSION, PipelineSpec, rules
from irlops.contracts.pipeline_status import PipelineStatus

Schema = dict[str, Any]

_HEADER = """\
# Generated from platform/irlops/contracts/pipeline.py and pipeline_status.py; do not edit. Make it again with:
#   python -m irlops.contracts.pipeline_crd > charts/irlops-crds/templates/reasoningpipelines.yaml
"""

PRINTER_COLUMNS = [
    {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
    {"name": "Stage", "type": "string", "jsonPath": ".status.run.stage"},
    {"name": "Policy", "type": "string", "jsonPath": ".status.pairs.serving.policyVersion"},
    {"name": "Critic", "type": "string", "jsonPath": ".status.pairs.serving.criticVersion"},
    {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'},
    {"name": "Reason", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].reason'},
    {"name": "Suspended", "type": "boolean", "jsonPath": ".spec.suspend", "priority": 1},
    {"name": "Message", "type": "string", "jsonPath": ".status.message", "priority": 1},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
]

_NAME_RULES = rules(
    (
        f"size(self.metadata.name) <= {MAX_NAME_CHARS}",
        f"the name may have {MAX_NAME_CHARS} characters: jobs and services are called after it",
    ),
    (
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "the name must start with a letter and hold only a-z, 0-9 and -: jobs are called after it",
    ),
)


def pipeline_crd() -> dict[str, Any]:
    """The whole CRD object."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{PLURAL}.{GROUP}",
            "annotations": {
                # Deleting the CRD deletes every pipeline of every team.
                "helm.sh/resource-policy": "keep",
            },
            "labels": {"app.kubernetes.io/name": "irlops-crds", "app.kubernetes.io/part-of": "irlops"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": "reasoningpipeline",
                "shortNames": ["rpl"],
                "categories": ["irlops"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": PRINTER_COLUMNS,
                    "schema": {"openAPIV3Schema": _object_schema()},
                }
            ],
        },
    }


def _object_schema() -> Schema:
    return {
        "description": "Takes demonstrations to a served, evaluated pair of policy and critic, and back if it is worse.",
        "type": "object",
        "required": ["spec"],
        **_NAME_RULES,
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural_schema(PipelineSpec),
            "status": structural_schema(PipelineStatus),
        },
    }


def structural_schema(model: type[BaseModel]) -> Schema:
    """The model's JSON schema in the dialect that Kubernetes takes (no $ref, no null, OpenAPI 3.0 bounds)."""
    document = model.model_json_schema(by_alias=True)
    return _convert(document, document.pop("$defs", {}))


_DROPPED = frozenset({"title", "examples", "additionalProperties", "$defs"})


def _convert(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    schema = _resolved(_without_null(_resolved(schema, definitions)), definitions)
    result = {
        key: value for key, value in schema.items() if key not in _DROPPED and not (key == "default" and value is None)
    }
    if "description" in result:
        result["description"] = result["description"].replace("``", "`")
    if "const" in result:
        result["enum"] = [result.pop("const")]
    _lower_bounds(result)
    if "properties" in schema:
        result["properties"] = {name: _convert(part, definitions) for name, part in schema["properties"].items()}
        if "default" in result:
            # Written out: an API server holds a default to the rules beside it before it fills in the defaults inside.
            parts: dict[str, Schema] = result["properties"]
            result["default"] = {name: part["default"] for name, part in parts.items() if "default" in part}
    if "items" in schema:
        result["items"] = _convert(schema["items"], definitions)
    values = schema.get("additionalProperties")
    if isinstance(values, dict):
        result["additionalProperties"] = _convert(cast(Schema, values), definitions)
    return result


def _resolved(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    """``$ref`` replaced by what it names; a description or default beside it wins."""
    reference = schema.get("$ref")
    if reference is None:
        return schema
    named = definitions[reference.rsplit("/", 1)[-1]]
    return {**named, **{key: value for key, value in schema.items() if key != "$ref"}}


def _without_null(schema: Schema) -> Schema:
    """``X | None`` as plain X: in Kubernetes an absent field is the null."""
    options = schema.get("anyOf", [])
    present = [option for option in options if option.get("type") != "null"]
    if len(present) == len(options) or len(present) != 1:
        return schema
    beside = {key: value for key, value in schema.items() if key != "anyOf"}
    return {**present[0], **beside}


def _lower_bounds(schema: Schema) -> None:
    """OpenAPI 3.0 marks an exclusive bound with a boolean beside it."""
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if exclusive in schema:
            schema[bound], schema[exclusive] = schema[exclusive], True


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True


def crd_yaml() -> str:
    """The CRD as the chart ships it."""
    body = yaml.dump(pipeline_crd(), Dumper=_NoAliases, sort_keys=False, width=110, allow_unicode=True)
    return _HEADER + body


def main() -> None:
    """Print the CRD."""
    sys.stdout.write(crd_yaml())


if __name__ == "__main__":
    main()
