"""The few read-only answers of a Kubernetes API that a survey asks for, over real HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

KINDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
DEPLOYMENTS = "/apis/apps/v1/deployments"
STORAGE = "/apis/storage.k8s.io/v1/storageclasses"
NODES = "/api/v1/nodes"
CONFIG_MAPS = "/api/v1/configmaps"
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


def kind(name: str, version: str) -> dict[str, Any]:
    plural, _, group = name.partition(".")
    spec = {
        "group": group,
        "names": {"kind": plural.title(), "plural": plural},
        "scope": "Namespaced",
        "versions": [{"name": version, "served": True, "storage": True}],
    }
    return {"metadata": {"name": name}, "spec": spec}


def deployment(name: str, image: str, ready: int = 1) -> dict[str, Any]:
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "manager", "image": image}]}}
    spec = {"selector": {"matchLabels": labels}, "template": template}
    return {"metadata": {"name": name, "namespace": "system"}, "spec": spec, "status": {"readyReplicas": ready}}


def kserve_config(*, headless: bool) -> dict[str, Any]:
    data = {"service": json.dumps({"serviceClusterIPNone": headless})}
    return {"metadata": {"name": "inferenceservice-config", "namespace": "kserve"}, "data": data}


def whole_cluster() -> dict[str, Any]:
    """A cluster that has everything, GPUs included; tests take away from it."""
    names = ("pytorchjobs.kubeflow.org", "inferenceservices.serving.kserve.io", "servingruntimes.serving.kserve.io")
    system = {"operatingSystem": "linux", "architecture": "amd64"} | dict.fromkeys(
        ("bootID", "containerRuntimeVersion", "kernelVersion", "kubeProxyVersion", "kubeletVersion", "machineID", "osImage",
         "systemUUID"),
        "x",
    )  # fmt: skip
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    images = ("ghcr.io/kubeflow/training-v1/training-operator:v1.9.4", "kserve/kserve-controller:v0.21.0")
    return {
        "/version": dict.fromkeys(("buildDate", "compiler", "gitCommit", "gitTreeState", "goVersion", "platform"), "x")
        | {"major": "1", "minor": "35+", "gitVersion": "v1.35.2"},
        KINDS: [kind(name, "v1") for name in names],
        DEPLOYMENTS: [
            deployment("training-operator", images[0]),
            deployment("kserve-controller-manager", images[1]),
        ],
        STORAGE: [{"metadata": {"name": "fast", "annotations": default}, "provisioner": "x"}],
        CONFIG_MAPS: [kserve_config(headless=False)],
        NODES: [
            {"metadata": {"name": "node-0"}, "status": {"nodeInfo": system, "allocatable": {"nvidia.com/gpu": "2"}}}
        ],
        REVIEWS: True,
    }


@contextmanager
def surveyed_cluster(answers: dict[str, Any], folder: Path) -> Iterator[Path]:
    """A kubeconfig of a cluster that gives ``answers``: a list of objects, an object, or an HTTP status by path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(answers.get(self.path.partition("?")[0].rstrip("/"), 404))

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(asked | {"status": {"allowed": answers[REVIEWS]}})

        def _answer(self, found: Any) -> None:
            status = found if isinstance(found, int) else 200
            body = {"items": found} if isinstance(found, list) else found if status == 200 else {"message": "no"}
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield write_kubeconfig(folder, f"http://127.0.0.1:{server.server_address[1]}")
    finally:
        server.shutdown()
        server.server_close()


def write_kubeconfig(folder: Path, url: str) -> Path:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": url}}],
        "users": [{"name": "me", "user": {}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "training"}}],
    }
    file = folder / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    return file
