"""What of a PyTorchJob one machine can't honour: named, with what is done instead, or refused when nothing would do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from irlops.contracts.pytorchjob import CONTAINER, ElasticPolicy, Pod, PyTorchJob, ReplicaSpec, RunPolicy
from irlops.contracts.training_manifest import TrainingManifest
from irlops.errors import ManifestError
from irlops.local.machine import GPU, Machine, parse_quantity

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

# Change nothing on one machine and need no word.
_MEANINGLESS_HERE = {
    "restartPolicy",  # of the pod; the operator overwrites it with the replica's
    "automountServiceAccountToken",
    "enableServiceLinks",
    "imagePullPolicy",
    "imagePullSecrets",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "preemptionPolicy",
}
_HERE = "every process runs on this machine"
_AS_YOU = "processes run as you, with your rights"
_AT_ONCE = "processes start at once"
_UNPROBED = "a process counts as well while it runs"
_LOOPBACK = "processes talk over the loopback interface"
_INSTEAD = {
    "nodeSelector": _HERE,
    "nodeName": _HERE,
    "affinity": _HERE,
    "tolerations": _HERE,
    "topologySpreadConstraints": _HERE,
    "securityContext": _AS_YOU,
    "serviceAccountName": _AS_YOU,
    "serviceAccount": _AS_YOU,
    "schedulerName": _AT_ONCE,
    "priorityClassName": _AT_ONCE,
    "schedulingGates": _AT_ONCE,
    "livenessProbe": _UNPROBED,
    "readinessProbe": _UNPROBED,
    "startupProbe": _UNPROBED,
    "lifecycle": "no hook runs; processes get SIGTERM",
    "hostNetwork": _LOOPBACK,
    "dnsPolicy": _LOOPBACK,
    "dnsConfig": _LOOPBACK,
    "runtimeClassName": "there is no container runtime",
}
"""What happens in place of a field of a pod or container."""

_RESOURCES = ("cpu", "memory", "ephemeral-storage", GPU)


def find_differences(manifest: TrainingManifest, machine: Machine) -> tuple[str, ...]:
    """One sentence for each thing that is done otherwise here than on a cluster.

    Raises:
        ManifestError: something without which the job could not run, with what to do about it.
    """
    job = manifest.job
    found = [
        *_of_the_run(job.spec.run_policy, job.metadata.labels),
        *_of_elasticity(job.spec.elastic_policy, manifest.path),
    ]
    for kind, replica in job.spec.replicas():
        found += [*_of_the_pod(replica.template.spec, kind, manifest.path), *_of_images(replica.template.spec)]
        if replica.restart_policy == "Always":
            raise ManifestError(
                f"{manifest.path}: {kind} has restartPolicy Always, so it never ends. Use ExitCode or OnFailure."
            )
    found += _of_resources(job, manifest.path, machine)
    return tuple(dict.fromkeys(found))  # each once, though every replica may give cause


def _of_the_run(policy: RunPolicy, labels: Mapping[str, str]) -> Iterator[str]:
    if QUEUE_LABEL in labels or policy.suspend:
        yield "queue: the job does not wait for one; it starts at once"
    if policy.scheduling_policy:
        yield f"schedulingPolicy: {_AT_ONCE}"
    if policy.managed_by:
        yield "managedBy: this machine runs the job"


def _of_elasticity(policy: ElasticPolicy | None, path: Path) -> Iterator[str]:
    if policy is None:
        return
    if policy.rdzv_backend != "c10d":
        raise ManifestError(
            f"{path}: rdzvBackend {policy.rdzv_backend} needs an etcd server, which is not here. Use c10d."
        )
    if policy.metrics:
        yield "elasticPolicy.metrics: the number of workers stays as written"


def _of_the_pod(pod: Pod, kind: str, path: Path) -> Iterator[str]:
    others = [container.name for container in pod.containers if container.name != CONTAINER]
    if others or "initContainers" in pod.set_aside:
        names = ", ".join(others) or "initContainers"
        raise ManifestError(
            f"{path}: {kind} has more containers than {CONTAINER!r} ({names}), which can't run here without a container "
            "runtime. Take them out for --local, or run the job with --cluster."
        )
    for name in (*pod.set_aside, *pod.pytorch.set_aside):
        if name in _INSTEAD:
            yield f"{name}: {_INSTEAD[name]}"
        elif name not in _MEANINGLESS_HERE:
            raise ManifestError(
                f"{path}: {kind} has {name!r}, which can't be honoured here. If it is no typing error, take it out for "
                "--local, or run the job with --cluster."
            )


def _of_images(pod: Pod) -> Iterator[str]:
    yield f"image: {pod.pytorch.image} is not used; the installed irlops runs the same modules"


def _of_resources(job: PyTorchJob, path: Path, machine: Machine) -> Iterator[str]:
    replicas = [replica for _, replica in job.spec.replicas()]
    for resources in (replica.template.spec.pytorch.resources for replica in replicas):
        strange = [name for name in {**resources.requests, **resources.limits} if name not in _RESOURCES]
        if strange or resources.claims:
            raise ManifestError(
                f"{path} asks for {', '.join(strange) or 'resource claims'}, which can't be honoured here. Use --cluster."
            )
    cores, memory, gpus = (_wanted(replicas, name) for name in ("cpu", "memory", GPU))
    if gpus > len(machine.gpus):
        raise ManifestError(
            f"{path} asks for {gpus:g} GPUs and this machine has {len(machine.gpus)}. Run one of the tiny or "
            "smollm2-135m manifests here, or this one with --cluster."
        )
    if job.spec.nproc_per_node in ("auto", "cpu") and not gpus:
        yield f"nprocPerNode: {job.spec.nproc_per_node} means one process per core here ({machine.num_cores} in each pod)"
    if cores > machine.num_cores:
        yield f"cpu: {cores:g} cores wanted, {machine.num_cores} here; processes share them and take longer"
    if memory > machine.memory_bytes:
        yield (
            f"memory: {memory / 2**30:.0f} GiB wanted, {machine.memory_bytes / 2**30:.0f} GiB here; "
            "lower micro_batch_tokens or rollouts.batch_size if the job is killed"
        )


def _wanted(replicas: Iterable[ReplicaSpec], name: str) -> float:
    """Of all replicas together, as a scheduler counts: requests, or limits where nothing is requested."""
    total = 0.0
    for replica in replicas:
        resources = replica.template.spec.pytorch.resources
        amount = resources.requests.get(name) or resources.limits.get(name) or "0"
        total += parse_quantity(amount) * replica.replicas
    return total
