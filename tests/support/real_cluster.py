"""A real cluster, by KUBECONFIG: kubectl and helm as people use them, and the parts that nobody else plays there.

Without a kubelet no pod ever runs, so ``Players`` sets the statuses that pods would lead to: PyTorchJobs succeed, Deployments
of InferenceServices become available (or, where no KServe controller makes Deployments, InferenceServices become ready), and
the registration's pair turns up in MLflow.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

Body = dict[str, Any]
REPOSITORY = Path(__file__).parents[2]
NEEDED_KINDS = ("pytorchjobs.kubeflow.org", "inferenceservices.serving.kserve.io")


def why_no_cluster() -> str | None:
    """One line about what is missing, or None."""
    if not os.environ.get("KUBECONFIG"):
        return "no cluster is given: set KUBECONFIG to run tests/cluster"
    for tool in ("kubectl", "helm"):
        if shutil.which(tool) is None:
            return f"{tool} is not on the PATH: tests/cluster need kubectl and helm"
    found = subprocess.run(["kubectl", "get", "crd", "-o", "name"], capture_output=True, text=True, check=False)
    if found.returncode:
        return f"the cluster of KUBECONFIG does not answer: {found.stderr.strip()[-300:]}"
    known = {line.rpartition("/")[2] for line in found.stdout.splitlines()}
    missing = [kind for kind in NEEDED_KINDS if kind not in known]
    return f"the cluster has no {', '.join(missing)}: install the training operator and KServe" if missing else None


@dataclass
class Cluster:
    """One namespace of a real cluster, and the release in it."""

    namespace: str
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """Standard output; a failure is the test's."""
        command = ["kubectl", "-n", self.namespace, *arguments]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, env=self.environment)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def helm(self, *arguments: str) -> str:
        command = ["helm", "-n", self.namespace, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=self.environment)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def objects(self, plural: str, *arguments: str) -> list[Body]:
        return json.loads(self.kubectl("get", plural, "-o", "json", *arguments))["items"]

    def find(self, plural: str, name: str) -> Body | None:
        text = self.kubectl("get", plural, name, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def apply(self, body: Body) -> None:
        self.kubectl("apply", "-f", "-", text=json.dumps(body))

    def set_status(self, plural: str, name: str, status: Body) -> None:
        """As the controller of that kind would."""
        patch = json.dumps({"status": status})
        self.kubectl("patch", plural, name, "--subresource=status", "--type=merge", "-p", patch)

    def kubeconfig_of(self, account: str, folder: Path) -> Path:
        """A kubeconfig that holds nothing but a token of the ServiceAccount: its Role decides what it may do."""
        config = json.loads(self.kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
        token = self.kubectl("create", "token", account, "--duration=1h").strip()
        config["users"] = [{"name": account, "user": {"token": token}}]
        config["contexts"][0]["context"] |= {"user": account, "namespace": self.namespace}
        file = folder / "operator-kubeconfig"
        file.write_text(yaml.safe_dump(config))
        file.chmod(0o600)
        return file


@contextmanager
def operator_process(cluster: Cluster, folder: Path, **changes: str) -> Iterator[subprocess.Popen[bytes]]:
    """The operator outside of the cluster, with the settings and the rights that the chart gave it."""
    settings = cluster.find("configmap", "irlops-operator")
    assert settings is not None
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("IRLOPS_", "MLFLOW_", "KUBERNETES_"))
    }
    environment |= settings["data"]
    environment |= {
        "PYTHONPATH": str(REPOSITORY / "platform"),
        "KUBECONFIG": str(cluster.kubeconfig_of("irlops-operator", folder)),
        "IRLOPS_OPERATOR_NAMESPACE": cluster.namespace,
        "IRLOPS_OPERATOR_IDENTITY": "outside",
        "IRLOPS_OPERATOR_REGISTRY_POLL_S": "2",
        "IRLOPS_OPERATOR_HEALTH_PORT": "0",
        "IRLOPS_OPERATOR_METRICS_PORT": "0",
        **changes,
    }
    process = subprocess.Popen([sys.executable, "-m", "irlops.operator"], env=environment)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def gateway(cluster: Cluster) -> Iterator[str]:
    """The gateway's /readyz, played from the ConfigMap that the operator writes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            config = cluster.find("configmap", "irlops-gateway-pair")
            pair = yaml.safe_load(config["data"]["gateway.yaml"])["pair"] if config else {}
            versions = {name: str(pair.get(name)) for name in ("policy_version", "critic_version")}
            data = json.dumps({"ready": True, "degraded": False, "pair": versions}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class Players:
    """Plays the pods, over and over, until told to stop. Says once what it plays."""

    def __init__(self, cluster: Cluster, register: Callable[[str], None]) -> None:
        self.cluster, self.register = cluster, register
        self.unready: set[str] = set()
        """InferenceServices that never become ready."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._play, daemon=True)

    def __enter__(self) -> Players:
        print("No pod is relied on: this suite sets the statuses that pods would lead to.", flush=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _play(self) -> None:
        while not self._stop.wait(1.0):
            try:
                for job in self.cluster.objects("pytorchjobs.kubeflow.org"):
                    self._play_job(job)
                for service in self.cluster.objects("inferenceservices.serving.kserve.io"):
                    self._play_service(service)
            except AssertionError as error:
                # A controller wrote first, or the object went away meanwhile: the next round sees what is there.
                print(f"players: {error}", flush=True)

    def _play_job(self, job: Body) -> None:
        conditions = job.get("status", {}).get("conditions", [])
        if job["spec"]["runPolicy"].get("suspend") or any(
            each["type"] in ("Succeeded", "Failed") for each in conditions
        ):
            return
        if job["metadata"]["labels"].get("irlops.dev/stage") == "registration":
            template = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
            [run] = [
                part.removeprefix("--run=")
                for part in template["containers"][0]["command"]
                if part.startswith("--run=")
            ]
            self.register(run)
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        succeeded = {"type": "Succeeded", "status": "True", "reason": "PyTorchJobSucceeded", "message": "played"}
        succeeded |= {"lastTransitionTime": at, "lastUpdateTime": at}
        status = {"conditions": [*conditions, succeeded], "completionTime": at}
        self.cluster.set_status("pytorchjobs.kubeflow.org", job["metadata"]["name"], status)

    def _play_service(self, service: Body) -> None:
        name = service["metadata"]["name"]
        ready = any(
            one["type"] == "Ready" and one["status"] == "True"
            for one in service.get("status", {}).get("conditions", [])
        )
        if name in self.unready or ready:
            return
        deployment = self.cluster.find("deployments.apps", f"{name}-predictor")
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if deployment is None:
            conditions = [
                {"type": each, "status": "True", "lastTransitionTime": at} for each in ("PredictorReady", "Ready")
            ]
            self.cluster.set_status("inferenceservices.serving.kserve.io", name, {"conditions": conditions})
            return
        replicas = deployment["spec"].get("replicas", 1)
        condition = {"type": "Available", "status": "True", "reason": "MinimumReplicasAvailable", "message": "played"}
        condition |= {"lastTransitionTime": at, "lastUpdateTime": at}
        progressing = condition | {"type": "Progressing", "reason": "NewReplicaSetAvailable"}
        counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), replicas)
        status = {
            "observedGeneration": deployment["metadata"]["generation"],
            "conditions": [condition, progressing],
            **counts,
        }
        self.cluster.set_status("deployments.apps", f"{name}-predictor", status)
