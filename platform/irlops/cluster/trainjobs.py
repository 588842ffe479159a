"""The job of a training manifest in the words of Kubeflow Trainer v2: a TrainJob with a TrainingRuntime of its own.

    as_trainjob(manifest) -> (ConfigMap, PersistentVolumeClaim, TrainingRuntime, TrainJob)

Trainer v2 makes a JobSet of them. What changes: the nodes meet at a fixed address instead of an elastic rendezvous, and
when one fails for a reason that may pass, JobSet starts all of them again, and the job goes on from its last checkpoint.
Source: Kubeflow Trainer v2.3, ``pkg/apis/trainer/v1alpha1`` and ``pkg/runtime/framework/plugins/torch``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from irlops.contracts.exit_codes import RETRYABLE_FROM, ExitCode
from irlops.contracts.pytorchjob import CONTAINER, ElasticPolicy, PyTorchJob
from irlops.contracts.training_manifest import TrainingManifest
from irlops.errors import ManifestError

GROUP, VERSION = "trainer.kubeflow.org", "v1alpha1"
NODE = "node"
"""What Trainer v2 calls the replicated job and the container that trains; it looks for no other."""
JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
"""On every pod; a JobSet has its TrainJob's name."""
_V1_LABEL = "training.kubeflow.org/job-name"
_ANCESTOR = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
_DEFAULT_RESTARTS = 6
_PERMANENT = [int(code) for code in ExitCode if 0 < code < RETRYABLE_FROM] + [126, 127]
"""Our own final exit codes, and the kernel's and shell's for a command that can't be started."""


def as_trainjob(manifest: TrainingManifest) -> tuple[Mapping[str, Any], ...]:
    """Everything to create, in order: what pods mount as it is written, the runtime, the job.

    Raises:
        ManifestError: the job has a Master, or a number of nodes that is to change while it runs.
    """
    job = manifest.job
    num_nodes = _num_nodes(manifest)
    [written] = [document for document in manifest.documents if document["kind"] == "PyTorchJob"]
    mounted = [document for document in manifest.documents if document["kind"] != "PyTorchJob"]
    return (*mounted, _runtime(job, written, num_nodes), _trainjob(job, written, num_nodes))


def _num_nodes(manifest: TrainingManifest) -> int:
    job, path = manifest.job, manifest.path
    worker, policy = job.spec.pytorch_replica_specs.Worker, job.spec.elastic_policy or ElasticPolicy()
    if worker is None or job.spec.pytorch_replica_specs.Master is not None:
        raise ManifestError(f"{path} has a Master; a TrainJob's nodes are all alike. Make it a Worker.")
    bounds = {policy.min_replicas or worker.replicas, policy.max_replicas or worker.replicas, worker.replicas}
    if len(bounds) > 1:
        raise ManifestError(
            f"{path} runs on {min(bounds)} to {max(bounds)} nodes, and a TrainJob on a fixed number. Make minReplicas, "
            "maxReplicas and replicas the same, or keep the PyTorchJob."
        )
    return worker.replicas


def _trainjob(job: PyTorchJob, written: Mapping[str, Any], num_nodes: int) -> dict[str, Any]:
    policy = job.spec.run_policy
    spec: dict[str, Any] = {
        "runtimeRef": {"apiGroup": GROUP, "kind": "TrainingRuntime", "name": job.metadata.name},
        # Without this section Trainer v2 does not tell the pods of each other.
        "trainer": {"numNodes": num_nodes, **_processes(job)},
    }
    if policy.suspend:
        spec["suspend"] = True
    if policy.active_deadline_seconds:
        spec["activeDeadlineSeconds"] = policy.active_deadline_seconds
    return _object("TrainJob", written, spec)


def _processes(job: PyTorchJob) -> dict[str, int]:
    """A number, which a TrainJob may say; ``auto`` and the like only its runtime can."""
    return {"numProcPerNode": int(job.spec.nproc_per_node)} if job.spec.nproc_per_node.isdigit() else {}


def _runtime(job: PyTorchJob, written: Mapping[str, Any], num_nodes: int) -> dict[str, Any]:
    policy, per_node = job.spec.run_policy, job.spec.nproc_per_node
    restarts = policy.backoff_limit if policy.backoff_limit is not None else _DEFAULT_RESTARTS
    jobset: dict[str, Any] = {
        "failurePolicy": {
            "maxRestarts": restarts,
            "rules": [{"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
        },
        "replicatedJobs": [
            {
                "name": NODE,
                "template": {
                    "metadata": {"labels": dict(_ANCESTOR)},
                    "spec": {
                        "backoffLimit": 0,  # one pod alone can't go on: JobSet starts all of them again
                        "podFailurePolicy": {
                            "rules": [
                                {
                                    "action": "FailJob",
                                    "onExitCodes": {"containerName": NODE, "operator": "In", "values": _PERMANENT},
                                }
                            ]
                        },
                        "template": _pod_template(written["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]),
                    },
                },
            }
        ],
    }
    if policy.ttl_seconds_after_finished is not None:
        jobset["ttlSecondsAfterFinished"] = policy.ttl_seconds_after_finished
    torch = {"numProcPerNode": int(per_node) if per_node.isdigit() else per_node}
    return _object(
        "TrainingRuntime", written, {"mlPolicy": {"numNodes": num_nodes, "torch": torch}, "template": {"spec": jobset}}
    )


def _pod_template(template: Mapping[str, Any]) -> dict[str, Any]:
    """The pod as written; the container under Trainer's name, selectors under JobSet's label."""
    spec: dict[str, Any] = _with_jobset_label({**template["spec"], "restartPolicy": "Never"})
    spec["containers"] = [_container(container) for container in spec["containers"]]
    return {**{key: value for key, value in template.items() if key != "spec"}, "spec": spec}


def _container(container: Mapping[str, Any]) -> Mapping[str, Any]:
    if container["name"] != CONTAINER:
        return container
    ports = [
        port for port in container.get("ports", []) if port.get("name") != "pytorchjob-port"
    ]  # Trainer adds its own
    kept = {key: value for key, value in container.items() if key != "ports"}
    return {**kept, "name": NODE, **({"ports": ports} if ports else {})}


def _with_jobset_label(part: Any) -> Any:
    if isinstance(part, Mapping):
        mapping: Mapping[str, Any] = part  # pyright: ignore[reportUnknownVariableType]
        return {(JOBSET_LABEL if key == _V1_LABEL else key): _with_jobset_label(each) for key, each in mapping.items()}
    if isinstance(part, list):
        parts: list[Any] = part  # pyright: ignore[reportUnknownVariableType]
        return [_with_jobset_label(each) for each in parts]
    return part


def _object(kind: str, written: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """Queue labels mean something on the job only; Kueue would take a labelled runtime for nothing, but people would not."""
    metadata = dict(written["metadata"])
    if kind == "TrainingRuntime":
        labels = {name: value for name, value in metadata.get("labels", {}).items() if not name.startswith("kueue.")}
        metadata = {**metadata, **({"labels": labels} if labels else {})}
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind, "metadata": metadata, "spec": dict(spec)}
