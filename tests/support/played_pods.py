"""The part of pods on a real cluster, played: nothing that these tests start ever runs.

The pipelines under test name a scheduler that nobody runs, so their pods stay pending wherever there is a kubelet, too.
``Players`` sets the statuses that running pods would report, and leaves every conclusion to whoever draws it: the training
operator says that a job succeeded, KServe that a half is ready. Where one of them isn't there, its conclusion is played as
well, and said so.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from irlops.operator.jobs import merged
from support.real_cluster import Cluster

Body = dict[str, Any]

NOBODY = "nobody"
"""A scheduler that no cluster runs."""
UNSCHEDULED = {"spec": {"schedulerName": NOBODY}}
"""For a pipeline's podTemplates."""
PATIENCE_S = 45.0
"""For a controller to do its part; then it counts as not there."""
REVISION = "deployment.kubernetes.io/revision"
"""The deployment controller's first mark. Where it is there and no pod is, something refused the pod, and the test fails."""
PIPELINE_LABEL = "irlops.dev/pipeline"
STAGE_LABEL = "irlops.dev/stage"
JOBS, SERVICES = "pytorchjobs.kubeflow.org", "inferenceservices.serving.kserve.io"


class Players:
    """Plays the pods, over and over, until told to stop."""

    def __init__(self, cluster: Cluster, register: Callable[[str], None]) -> None:
        self.cluster, self.register = cluster, register
        self.unready: set[str] = set()
        """InferenceServices whose pods never become ready."""
        self.held: set[str] = set()
        """Stages whose pods go on and on."""
        self.ends: dict[tuple[str, str], Body] = {}
        """(pipeline, stage) -> how the container ends, instead of well: {"exitCode": 2, "message": "..."}."""
        self.absent: set[str] = set()
        """Controllers whose conclusions are played, because nothing of theirs turned up."""
        self.failure: Exception | None = None
        self._waiting_since: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._play, daemon=True)

    def __enter__(self) -> Players:
        print("No pod runs: this suite sets the statuses that pods would report.", flush=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _play(self) -> None:
        while not self._stop.wait(1.0):
            try:
                for job in self.cluster.objects(JOBS, "-l", PIPELINE_LABEL):
                    self._play_job(job)
                for service in self.cluster.objects(SERVICES, "-l", PIPELINE_LABEL):
                    self._play_service(service)
            except AssertionError as error:
                # A controller wrote first, or the object went away meanwhile: the next round sees what is there.
                print(f"players: {error}", flush=True)
            except Exception as error:
                self.failure = error
                return

    # -- training

    def _play_job(self, job: Body) -> None:
        name, labels = job["metadata"]["name"], job["metadata"]["labels"]
        is_over = {"Succeeded", "Failed"} & {each["type"] for each in true_conditions(job)}
        if is_over or job["spec"]["runPolicy"].get("suspend") or labels[STAGE_LABEL] in self.held:
            return
        pods = self.cluster.objects("pods", "-l", f"training.kubeflow.org/job-name={name}")
        if not pods and (is_attended(job) or not self._is_absent("training operator", job)):
            return
        end = self.ends.get((labels[PIPELINE_LABEL], labels[STAGE_LABEL]), {"exitCode": 0, "reason": "Completed"})
        if end["exitCode"] == 0 and labels[STAGE_LABEL] == "registration":
            self.register(run_of(job))
        for pod in pods:
            if pod["status"].get("phase") not in ("Succeeded", "Failed"):
                self._set_pod(pod, "Failed" if end["exitCode"] else "Succeeded", state={"terminated": end})
        if not pods:
            kind = "Failed" if end["exitCode"] else "Succeeded"
            conditions = [*job.get("status", {}).get("conditions", []), condition(kind, f"PyTorchJob{kind}")]
            status = {"conditions": conditions, "completionTime": now()}
            self.cluster.set_status(JOBS, name, status)

    # -- serving

    def _play_service(self, service: Body) -> None:
        name = service["metadata"]["name"]
        if name in self.unready or "Ready" in {each["type"] for each in true_conditions(service)}:
            return
        deployment = self.cluster.find("deployments.apps", f"{name}-predictor")
        if deployment is None:
            if not is_attended(service) and self._is_absent("KServe controller", service):
                conditions = [condition(each, "Played") for each in ("PredictorReady", "Ready")]
                self.cluster.set_status(SERVICES, name, {"conditions": conditions})
            return
        selected = ",".join(f"{key}={value}" for key, value in deployment["spec"]["selector"]["matchLabels"].items())
        pods = self.cluster.objects("pods", "-l", selected)
        for pod in pods:
            if not any(each["type"] == "Ready" for each in true_conditions(pod)):
                self._set_pod(pod, "Running", state={"running": {"startedAt": now()}})
        has_controller = REVISION in deployment["metadata"].get("annotations", {})
        if not pods and not has_controller and self._is_absent("deployment controller", deployment):
            self._set_deployment(deployment)

    def _set_deployment(self, deployment: Body) -> None:
        counts = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
        status = dict.fromkeys(counts, deployment["spec"].get("replicas", 1)) | {
            "observedGeneration": deployment["metadata"]["generation"],
            "conditions": [
                condition("Available", "MinimumReplicasAvailable"),
                condition("Progressing", "NewReplicaSetAvailable"),
            ],
        }
        self.cluster.set_status("deployments.apps", deployment["metadata"]["name"], status)

    # -- parts

    def _set_pod(self, pod: Body, phase: str, *, state: Body) -> None:
        is_ready = "running" in state
        containers = [
            {
                "name": each["name"],
                "image": each["image"],
                "imageID": "",
                "ready": is_ready,
                "restartCount": 0,
                "state": state,
            }
            for each in pod["spec"]["containers"]
        ]
        ready = [condition(each, "Played") for each in ("ContainersReady", "Ready")] if is_ready else []
        kept = [
            each for each in pod["status"].get("conditions", []) if each["type"] not in ("ContainersReady", "Ready")
        ]
        status = {"phase": phase, "containerStatuses": containers, "conditions": [*kept, *ready]}
        self.cluster.set_status("pods", pod["metadata"]["name"], status)

    def _is_absent(self, controller: str, waiting: Body) -> bool:
        """Whether nothing came of ``waiting`` for so long that nobody can be there to act on it."""
        since = self._waiting_since.setdefault(waiting["metadata"]["uid"], time.monotonic())
        if controller not in self.absent and time.monotonic() - since > PATIENCE_S:
            self.absent.add(controller)
            print(f"players: no {controller} does its part; what it would conclude is played, too.", flush=True)
        return controller in self.absent


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(kind: str, reason: str) -> Body:
    """A condition that just came true."""
    at = now()
    times = {"lastTransitionTime": at}
    if kind in ("Succeeded", "Failed", "Available", "Progressing"):
        times["lastUpdateTime"] = at
    message = {"message": "played"} if kind not in ("Ready", "PredictorReady", "ContainersReady") else {}
    return {"type": kind, "status": "True", "reason": reason, **message, **times}


def is_attended(body: Body) -> bool:
    """Whether its controller has done anything with it: said something, or asked to be waited for before it goes."""
    return bool(body.get("status", {}).get("conditions") or body["metadata"].get("finalizers"))


def true_conditions(body: Body) -> list[Body]:
    return [each for each in body.get("status", {}).get("conditions", []) if each["status"] == "True"]


def run_of(job: Body) -> str:
    """The run that a registration registers."""
    command = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["command"]
    [run] = [part.removeprefix("--run=") for part in command if part.startswith("--run=")]
    return run


def unscheduled_manifest(body: Body) -> Body:
    """A manifest, none of whose pods is ever put on a node."""
    body = json.loads(json.dumps(body))
    if body["kind"] == "PyTorchJob":
        for replica in body["spec"]["pytorchReplicaSpecs"].values():
            replica["template"] = merged(replica["template"], UNSCHEDULED)
    if body["kind"] == "InferenceService":
        body["spec"]["predictor"] = merged(body["spec"]["predictor"], UNSCHEDULED["spec"])
    return body


def unscheduled(body: Body) -> Body:
    """The pipeline, none of whose pods is ever put on a node."""
    spec = json.loads(json.dumps(body["spec"]))
    spec["jobTemplate"]["podTemplate"] = UNSCHEDULED
    for half in ("policy", "critic") if spec.get("serving") else ():
        spec["serving"].setdefault(half, {})["podTemplate"] = UNSCHEDULED
    metadata = {key: value for key, value in body["metadata"].items() if key != "uid"}
    return {**body, "metadata": metadata, "spec": spec}
