"""A Kubernetes API, as much of it as training jobs need, over real HTTP: objects are kept, pods and their logs are the test's."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from support.surveyed_cluster import write_kubeconfig

Object = dict[str, Any]
NAMESPACE = "training"  # of the kubeconfig
CORE = f"/api/v1/namespaces/{NAMESPACE}"
JOBS = f"/apis/kubeflow.org/v1/namespaces/{NAMESPACE}/pytorchjobs"
PIPELINES = f"/apis/irlops.dev/v1alpha1/namespaces/{NAMESPACE}/reasoningpipelines"
KINDS = {
    f"{CORE}/configmaps": "ConfigMap",
    f"{CORE}/secrets": "Secret",
    f"{CORE}/persistentvolumeclaims": "PersistentVolumeClaim",
    JOBS: "PyTorchJob",
    PIPELINES: "ReasoningPipeline",
}


@dataclass
class Pod:
    """A pod and what it prints; a log that is not closed is followed on."""

    name: str
    labels: dict[str, str]
    lines: list[str] = field(default_factory=list)
    phase: str = "Running"
    uid: str = ""
    breaks_after: int | None = None
    """The first connection to its log is cut after so many lines."""

    def as_object(self) -> Object:
        container = {"name": "pytorch", "image": "x"}
        metadata = {"name": self.name, "uid": self.uid or self.name, "labels": self.labels}
        return {"metadata": metadata, "spec": {"containers": [container]}, "status": {"phase": self.phase}}


@dataclass
class Cluster:
    """What the API holds, and how it misbehaves."""

    objects: dict[str, dict[str, Object]] = field(default_factory=lambda: {path: {} for path in KINDS})
    pods: list[Pod] = field(default_factory=list)
    refusals: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)
    """(method, path) to status and message."""
    unknown: set[str] = field(default_factory=set)
    """Paths of kinds that are not installed."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    on_look: Callable[[], None] = lambda: None
    """Called whenever somebody reads a job: time passes."""

    def add(self, path: str, document: Object) -> None:
        self.objects[path][document["metadata"]["name"]] = document


@contextmanager
def training_cluster(folder: Path, cluster: Cluster | None = None) -> Iterator[tuple[Cluster, Path]]:
    """The cluster and a kubeconfig for it."""
    cluster = cluster or Cluster()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(cluster))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield cluster, write_kubeconfig(folder, f"http://127.0.0.1:{server.server_address[1]}")
    finally:
        server.shutdown()
        server.server_close()


def _handler_for(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            path, _, query = self.path.partition("?")
            cluster.requests.append((self.command, path))
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            if refusal := cluster.refusals.get((self.command, path)):
                self._refuse(*refusal)
            elif path in cluster.unknown or path.rpartition("/")[0] in cluster.unknown:
                self._send(404, b"404 page not found\n", "text/plain")
            elif path.endswith("/log"):
                self._log(path.split("/")[-2], follow="follow=True" in query)
            elif path.startswith(f"{CORE}/pods"):
                self._pods(path.removeprefix(f"{CORE}/pods").strip("/"), query)
            elif path in cluster.objects:
                self._collection(path, body)
            else:
                self._one(*path.rsplit("/", 1), body)

        do_GET = do_POST = do_PUT = _handle

        def _collection(self, path: str, body: Object | None) -> None:
            if body is None:
                self._answer(200, {"items": list(cluster.objects[path].values())})
            elif body["metadata"]["name"] in cluster.objects[path]:
                self._refuse(409, f"{path.rpartition('/')[2]} {body['metadata']['name']!r} already exists")
            else:
                cluster.add(path, body)
                self._answer(201, body)

        def _one(self, path: str, name: str, body: Object | None) -> None:
            if path == JOBS:
                cluster.on_look()
            if name not in cluster.objects.get(path, {}):
                self._refuse(404, f"{name} not found", details={"name": name})
                return
            if body is not None:
                cluster.add(path, body)
            self._answer(200, cluster.objects[path][name])

        def _pods(self, name: str, query: str) -> None:
            found = [pod for pod in cluster.pods if not name or pod.name == name]
            if name:
                self._answer(200, found[0].as_object()) if found else self._refuse(404, "gone", details={"name": name})
                return
            selector = dict([query.partition("labelSelector=")[2].split("&")[0].replace("%3D", "=").split("=", 1)])
            selector = {key.replace("%2F", "/"): value for key, value in selector.items()}
            self._answer(200, {"items": [pod.as_object() for pod in found if selector.items() <= pod.labels.items()]})

        def _log(self, name: str, *, follow: bool) -> None:
            pod = next((pod for pod in cluster.pods if pod.name == name), None)
            if pod is None:
                self._refuse(404, "gone", details={"name": name})
                return
            if not follow:
                self._send(200, "".join(f"{line}\n" for line in pod.lines).encode(), "text/plain")
                return
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            sent = 0
            while True:
                ended = pod.phase != "Running"
                for index in range(sent, len(pod.lines)):
                    if pod.breaks_after is not None and index >= pod.breaks_after:
                        pod.breaks_after = None
                        self.close_connection = True
                        return  # without the last chunk: the connection is cut
                    # Fixed width, as kubelets write it.
                    self._chunk(f"2026-11-23T10:00:{index:02d}.000000000Z {pod.lines[index]}\n".encode())
                sent = len(pod.lines)
                if ended:
                    break
                time.sleep(0.02)
            self._chunk(b"")

        def _chunk(self, data: bytes) -> None:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()

        def _answer(self, status: int, document: Any) -> None:
            self._send(status, json.dumps(document).encode(), "application/json")

        def _refuse(self, status: int, message: str, details: Object | None = None) -> None:
            self._answer(status, {"kind": "Status", "message": message, "details": details or {}})

        def _send(self, status: int, data: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


def with_conditions(job: Object, *conditions: tuple[str, str], active: int = 0, message: str = "") -> Object:
    """The job with true conditions of (type, time)."""
    status = {
        "conditions": [
            {
                "type": kind,
                "status": "True",
                "lastTransitionTime": moment,
                "reason": f"PyTorchJob{kind}",
                "message": message,
            }
            for kind, moment in conditions
        ],
        "replicaStatuses": {"Worker": {"active": active}},
    }
    return {**job, "status": status}
