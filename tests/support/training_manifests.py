"""Small PyTorchJobs for tests: what a manifest needs to be admitted, and what the test is about."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]


def container(**fields: Any) -> Object:
    """The container that the operator runs; it does nothing, successfully."""
    return {"name": "pytorch", "image": "example.com/jobs:1", "command": ["python", "-c", ""], **fields}


def worker(*, replicas: int = 1, restart_policy: str = "ExitCode", pod: Object | None = None, **fields: Any) -> Object:
    """A replica spec; ``fields`` are the container's, ``pod`` the pod's."""
    spec = {"containers": [container(**fields)], "terminationGracePeriodSeconds": 5, **(pod or {})}
    return {"replicas": replicas, "restartPolicy": restart_policy, "template": {"spec": spec}}


def pytorchjob(
    *, master: Object | None = None, workers: Object | None = None, name: str = "job", **spec: Any
) -> Object:
    """A PyTorchJob; ``spec`` overrides the fields of its spec."""
    replicas = {"Master": master, "Worker": workers or (None if master else worker())}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name},
        "spec": {
            "runPolicy": {},
            "nprocPerNode": "1",
            "pytorchReplicaSpecs": {kind: one for kind, one in replicas.items() if one},
            **spec,
        },
    }


def config_map(name: str, **data: str) -> Object:
    """A ConfigMap; underscores in a key become dots."""
    named = {key.replace("_", "."): text for key, text in data.items()}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": named}


def write_manifest(folder: Path, *documents: Object) -> Path:
    """One file with these objects."""
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump_all(documents))
    return file


def script(program: str, **fields: Any) -> Object:
    """Container fields that run a Python program."""
    return {"command": [sys.executable, "-c", program], **fields}
