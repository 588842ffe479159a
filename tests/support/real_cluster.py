"""A real cluster, by KUBECONFIG: kubectl and helm as people use them, the operator with the rights that the chart gave it, and
the gateway's one answer that the operator asks for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

Body = dict[str, Any]
REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "charts" / "irlops"
NEEDED_KINDS = ("pytorchjobs.kubeflow.org", "inferenceservices.serving.kserve.io")


def why_no_cluster() -> str | None:
    """One line about what is missing, or None."""
    if not os.environ.get("KUBECONFIG"):
        return "no cluster is given: set KUBECONFIG to run tests/cluster"
    for tool in ("kubectl", "helm"):
        if shutil.which(tool) is None:
            return f"{tool} is not on the PATH: tests/cluster need kubectl and helm"
    found = subprocess.run(
        ["kubectl", "get", "crd", "-o", "name", "--request-timeout=30s"], capture_output=True, text=True, check=False
    )
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
    has_controller_manager: bool = True
    """Beside an API server alone nobody collects garbage."""

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

    def install(self, verb: str) -> None:
        """The chart with its trial values (``install`` or ``upgrade``). Its own operator is paused: where pods run, it would
        compete for the Lease with the one outside."""
        values = ("-f", str(CHART / "values-trial.yaml"), "--set", "operator.replicas=0")
        self.helm(verb, "irlops", str(CHART), *values)

    def objects(self, plural: str, *arguments: str) -> list[Body]:
        return json.loads(self.kubectl("get", plural, "-o", "json", *arguments))["items"]

    def find(self, plural: str, name: str) -> Body | None:
        text = self.kubectl("get", plural, name, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def apply(self, body: Body) -> None:
        self.kubectl("apply", "--validate=strict", "-f", "-", text=json.dumps(body))

    def admits(self, *what: str) -> set[str]:
        """What the API server and all its webhooks would take of it, as ``kind.group/name``; a no to any is the test's failure."""
        return set(self.kubectl("apply", "--dry-run=server", "--validate=strict", "-o", "name", *what).split())

    def refuses(self, *arguments: str, text: str | None = None) -> str:
        """What kubectl says when it is told no."""
        command = ["kubectl", "-n", self.namespace, *arguments]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, env=self.environment)
        assert done.returncode != 0, f"{' '.join(command)} was not refused: {done.stdout}"
        return done.stderr

    def may(self, account: str, *asked: str) -> bool:
        """Whether a ServiceAccount of this namespace may."""
        subject = f"--as=system:serviceaccount:{self.namespace}:{account}"
        command = ["kubectl", "-n", self.namespace, "auth", "can-i", *asked, subject]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=self.environment)
        word = done.stdout.partition(" ")[0].strip()  # some authorizers add their reason to a no
        assert word in ("yes", "no"), done.stderr
        return word == "yes"

    def kinds(self) -> set[tuple[str, str]]:
        """(apiVersion, kind) of everything that the cluster knows; the first word of a line is the plural, the last the kind."""
        lines = [line.split() for line in self.kubectl("api-resources", "--no-headers").splitlines()]
        return {(words[-3], words[-1]) for words in lines}

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


class Operator:
    """The operator outside of the cluster, with the settings and the rights that the chart gave it."""

    def __init__(self, cluster: Cluster, folder: Path, **changes: str) -> None:
        settings = cluster.find("configmap", "irlops-operator")
        assert settings is not None
        kept = {key: value for key, value in os.environ.items() if not key.startswith(_NOT_PASSED_ON)}
        self._environment = kept | settings["data"] | _OUTSIDE | changes
        self._environment["IRLOPS_OPERATOR_NAMESPACE"] = cluster.namespace
        self._environment["KUBECONFIG"] = str(cluster.kubeconfig_of("irlops-operator", folder))
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "irlops.operator"], env=self._environment)

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def killed(self) -> None:
        """Without a word, and begun again."""
        self.process.kill()
        self.process.wait(30)
        self.process = self._start()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


_NOT_PASSED_ON = ("IRLOPS_", "MLFLOW_", "KUBERNETES_")
_OUTSIDE = {
    "PYTHONPATH": str(REPOSITORY / "platform"),
    "IRLOPS_OPERATOR_IDENTITY": "outside",
    "IRLOPS_OPERATOR_REGISTRY_POLL_S": "2",
    "IRLOPS_OPERATOR_RESYNC_S": "10",
    "IRLOPS_OPERATOR_HEALTH_PORT": "0",
    "IRLOPS_OPERATOR_METRICS_PORT": "0",
}


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
            with suppress(ConnectionError):  # an operator that was killed while it asked
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
