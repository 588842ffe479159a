"""Renders our charts with the real Helm engine, as objects."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

REPOSITORY = Path(__file__).parents[2]
CHARTS = REPOSITORY / "charts"
SHARED_CRDS = REPOSITORY.parent / "shared" / "crds"

Object = dict[str, Any]


def values_file(name: str) -> dict[str, Any]:
    """The chart's values-NAME.yaml."""
    return yaml.safe_load((CHARTS / "irlops" / f"values-{name}.yaml").read_text())


ALL_MONITORS = {"serviceMonitors": "always", "prometheusRules": "always", "dashboards": "always"}

CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "trial": values_file("trial"),
    "production": values_file("production"),
    "ingress with tls, one gateway": {
        "gateway": {
            "replicas": 1,
            "route": {
                "kind": "Ingress",
                "hosts": ["a.example.com"],
                "tlsSecretName": "cert",
                "ingressClassName": "nginx",
            },
        }
    },
    "https, monitors, extra objects": {
        "gateway": {"tls": {"secretName": "cert"}},
        "monitoring": ALL_MONITORS,
        "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-extra"}}],
    },
    "gateway alone": {
        "operator": {"enabled": False},
        "mlflow": {"enabled": False},
        "runtimes": {"enabled": False},
        "pair": {"policy": {"url": "https://policy.example.com"}, "critic": {"url": "http://critic.example.com:9000"}},
    },
    "an MLflow of one's own": {
        "mlflow": {"enabled": False, "trackingUri": "https://mlflow.example.com", "auth": {"existingSecret": "login"}},
    },
    "the platform chooses the user": {"podSecurity": {"runAsUser": None, "runAsGroup": None}},
    "without network policies": {"networkPolicy": {"enabled": False}, "monitoring": ALL_MONITORS},
}
"""Values that between them reach every template and every branch that matters."""


@cache
def chart(name: str = "irlops") -> helm_python.Chart:
    """A loaded chart; loading it again for each test would cost more than rendering."""
    return helm_python.Chart.load(CHARTS / name)


def render(
    values: Mapping[str, Any] | None = None, *, release: str = "irlops", namespace: str = "team-a", name: str = "irlops"
) -> list[Object]:
    """Every object that an installation would make, hooks included."""
    return copy.deepcopy(_rendered(json.dumps(values or {}), release, namespace, name))


@cache
def _rendered(values: str, release: str, namespace: str, name: str) -> list[Object]:
    files = chart(name).render(json.loads(values), name=release, namespace=namespace)
    texts = (text for path, text in files.items() if not path.endswith(".txt"))
    return [document for text in texts for document in yaml.load_all(text, yaml.CSafeLoader) if document]


@cache
def _kubernetes_schemas(version: str) -> tuple[Path, Registry[Any]]:
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    definitions = Resource.from_contents(json.loads((folder / "_definitions.json").read_text()))
    return folder, definitions @ Registry()


@cache
def _validator(kind: str, api_version: str, version: str) -> Draft202012Validator:
    folder, registry = _kubernetes_schemas(version)
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    schema = json.loads((folder / f"{kind.lower()}-{group}.json").read_text())
    return Draft202012Validator(schema, registry=registry)


def kubernetes_faults(each: Object, version: str = "1.29") -> list[str]:
    """What Kubernetes' own strict schemas (those that kubernetes-validate carries) find wrong with a built-in object.

    kubernetes_validate.validate() reads a megabyte of definitions for every object; this reads them once.
    """
    validator = _validator(each["kind"], each["apiVersion"], version)
    return [f"{each['kind']} {error.json_path}: {error.message}" for error in validator.iter_errors(each)]


def notes(values: Mapping[str, Any] | None = None) -> str:
    """What the installation tells the user."""
    return chart().render(dict(values or {}), name="irlops", namespace="team-a")["irlops/templates/NOTES.txt"]


def find(objects: list[Object], kind: str, name: str) -> Object:
    """The object of that kind and name."""
    return next(each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name)


def pod_templates(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """(name, pod template or Pod) of everything that runs, ServingRuntimes included (their spec is a pod's)."""
    for each in objects:
        name = f"{each['kind']}/{each['metadata']['name']}"
        if each["kind"] == "Deployment":
            yield name, each["spec"]["template"]
        elif each["kind"] == "Pod":
            yield name, each
        elif each["kind"] == "ServingRuntime":
            yield name, {"metadata": {"labels": each["spec"]["labels"]}, "spec": each["spec"]}


def containers(pod: Object) -> list[Object]:
    """All containers of a pod, init containers first."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
