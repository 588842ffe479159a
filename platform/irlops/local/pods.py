"""A PyTorchJob's pods as processes of this machine: command, environment, cores and GPUs.

TrainingManifest -> plan_pods -> LocalPlan(pods, notes)
"""

from __future__ import annotations

import re
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from irlops.contracts.pytorchjob import Container, EnvVar, ReplicaSpec, RestartPolicy
from irlops.contracts.training_manifest import TrainingManifest
from irlops.errors import ManifestError
from irlops.local.differences import find_differences
from irlops.local.machine import GPU, Machine, parse_quantity
from irlops.local.operator_environment import on_this_machine, operator_environment
from irlops.local.processes import LOOPBACK
from irlops.local.volumes import Mounts, expand_references, find_content, lay_out_volumes

TRACKING_URI = "MLFLOW_TRACKING_URI"
STATE_DIR = "IRLOPS_STATE_DIR"
DATA_DIR = "IRLOPS_DATA_DIR"

_PYTHON = re.compile(r"^python(3(\.\d+)?)?$")
# Of the caller's environment; they would tell the processes of another job.
_OF_ANOTHER_JOB = re.compile(
    r"^(PET_.*|TORCHELASTIC_.*|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|OMP_NUM_THREADS|CUDA_VISIBLE_DEVICES"
    r"|IRLOPS_(JOB_FILE|STATE_DIR|LAUNCHER_PID)|MLFLOW_(TRACKING_URI|RUN_ID|EXPERIMENT_.*))$"
)


@dataclass(frozen=True)
class Surroundings:
    """Where and for whom a job runs here.

    Example: ``Surroundings(machine=this_machine(), state_dir=Path(".irlops/state"), run_dir=Path("/tmp/irlops-x"),
    port=40113, tracking_uri="http://127.0.0.1:5000", inherited=os.environ)``
    """

    machine: Machine
    state_dir: Path
    """Gets a folder for each claim."""
    run_dir: Path
    """For this run only."""
    port: int
    """Free, for the rendezvous."""
    tracking_uri: str | None
    inherited: Mapping[str, str]
    """The caller's environment: PATH, HOME and what else he has set."""


@dataclass(frozen=True)
class LocalPod:
    """One replica, ready to be started.

    Made by ``plan_pods``; consumed by the runner.
    Example: ``LocalPod(name="worker-0", kind="Worker", command=("/usr/bin/python3", "-m", "irlops_jobs.launch"),
    environment={"PET_NNODES": "2:2", ...}, working_dir=Path("/tmp/irlops-x/worker-0"), restart_policy="ExitCode")``
    """

    name: str
    kind: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    working_dir: Path
    restart_policy: RestartPolicy


@dataclass(frozen=True)
class LocalPlan:
    """A job's pods on this machine.

    Example: ``LocalPlan(pods=(worker_0, worker_1), notes=("nodeSelector: every process runs on this machine",))``
    """

    pods: tuple[LocalPod, ...]
    notes: tuple[str, ...]
    """One sentence for each thing that is done otherwise than on a cluster."""


def plan_pods(manifest: TrainingManifest, here: Surroundings) -> LocalPlan:
    """Decide how each replica runs on this machine, and lay out its volumes.

    Raises:
        ManifestError: the job asks for something without which it could not run: GPUs that are not here, another kind of
            volume, a ConfigMap that is not in the file, a program that is not installed.
        StorageError: its volumes can't be written.
    """
    notes = [*find_differences(manifest, here.machine), *_tracking_notes(manifest, here.tracking_uri)]
    free_gpus = list(here.machine.gpus)
    pods: list[LocalPod] = []
    for kind, replica in manifest.job.spec.replicas():
        for index in range(replica.replicas):
            num_gpus = int(parse_quantity(replica.template.spec.pytorch.resources.limits.get(GPU, "0")))
            gpus, free_gpus = free_gpus[:num_gpus], free_gpus[num_gpus:]
            pods.append(_plan_pod(manifest, kind, index, here, _share(manifest, replica, here.machine, gpus)))
    return LocalPlan(tuple(pods), tuple(notes))


def _plan_pod(
    manifest: TrainingManifest, kind: str, index: int, here: Surroundings, share: Mapping[str, str]
) -> LocalPod:
    replica = dict(manifest.job.spec.replicas())[kind]
    pod, container, name = replica.template.spec, replica.template.spec.pytorch, f"{kind.lower()}-{index}"
    pod_dir = here.run_dir / name
    pod_dir.mkdir(parents=True)
    mounts = lay_out_volumes(pod, container, manifest, pod_dir / "volumes", here.state_dir)
    own = _container_environment(container, manifest, name, mounts)
    environment = {
        **_inherited(here.inherited),
        **({"TMPDIR": str(temporary)} if (temporary := mounts.find("/tmp")) else {}),  # noqa: S108 - the pod's
        **share,
        **own,
        **on_this_machine(
            operator_environment(manifest.job, kind, index), here.port, hosts_rendezvous=(kind, index) == ("Worker", 0)
        ),
    }
    if here.tracking_uri:
        environment[TRACKING_URI] = here.tracking_uri
    elif _is_of_a_cluster(environment.get(TRACKING_URI, "")):
        del environment[TRACKING_URI]
    return LocalPod(
        name=name,
        kind=kind,
        command=_command(container, environment, mounts, manifest.path),
        environment=environment,
        working_dir=(mounts.find(container.working_dir) if container.working_dir else None) or pod_dir,
        restart_policy=replica.restart_policy,
    )


def _inherited(environment: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in environment.items() if not _OF_ANOTHER_JOB.match(name)}
    if DATA_DIR in kept:
        kept[DATA_DIR] = str(Path(kept[DATA_DIR]).absolute())  # processes start in another folder
    return kept


def _share(manifest: TrainingManifest, replica: ReplicaSpec, machine: Machine, gpus: list[str]) -> dict[str, str]:
    """This pod's cores and GPUs; each process gets as many threads as cores fall to it."""
    per_pod = {kind: _num_processes(manifest, one, machine) for kind, one in manifest.job.spec.replicas()}
    total = sum(per_pod[kind] * one.replicas for kind, one in manifest.job.spec.replicas())
    threads = machine.num_cores / total
    if limit := replica.template.spec.pytorch.resources.limits.get("cpu"):
        threads = min(threads, parse_quantity(limit) / _num_processes(manifest, replica, machine))
    return {"OMP_NUM_THREADS": str(max(1, int(threads))), "CUDA_VISIBLE_DEVICES": ",".join(gpus)}


def _num_processes(manifest: TrainingManifest, replica: ReplicaSpec, machine: Machine) -> int:
    """As torchrun would count them in a pod."""
    spec = manifest.job.spec
    policy = spec.elastic_policy
    per_node = str(policy.n_proc_per_node) if policy and policy.n_proc_per_node else spec.nproc_per_node
    num_gpus = int(parse_quantity(replica.template.spec.pytorch.resources.limits.get(GPU, "0")))
    if per_node.isdigit():
        return int(per_node)
    if per_node == "gpu" and not num_gpus:
        raise ManifestError(f"{manifest.path}: nprocPerNode is gpu, but its pods ask for no {GPU}. Write a number.")
    return num_gpus if num_gpus and per_node != "cpu" else machine.num_cores


def _container_environment(
    container: Container, manifest: TrainingManifest, pod_name: str, mounts: Mounts
) -> dict[str, str]:
    environment: dict[str, str] = {}
    for source in container.env_from:
        for objects, reference, kind in (
            (manifest.config_maps, source.config_map_ref, "ConfigMap"),
            (manifest.secrets, source.secret_ref, "Secret"),
        ):
            if reference:
                wanted = f"{kind} {reference.name}"
                content = find_content(objects, reference.name, manifest.path, wanted, optional=reference.optional)
                environment |= {source.prefix + key: value.decode() for key, value in content.items()}
    for variable in container.env:
        value = variable.value or ""
        if variable.value_from:
            found = _referenced_value(variable, manifest, pod_name)
            if found is None:
                continue  # optional, and not there
            value = found
        environment[variable.name] = mounts.localise(expand_references(value, environment))
    return environment


def _referenced_value(variable: EnvVar, manifest: TrainingManifest, pod_name: str) -> str | None:
    source = variable.value_from
    assert source is not None
    for objects, reference, kind in (
        (manifest.config_maps, source.config_map_key_ref, "ConfigMap"),
        (manifest.secrets, source.secret_key_ref, "Secret"),
    ):
        if reference is None:
            continue
        wanted = f"{kind} {reference.name}"
        content = find_content(objects, reference.name, manifest.path, wanted, optional=reference.optional)
        if reference.key in content:
            return content[reference.key].decode()
        if reference.optional:
            return None
        raise ManifestError(
            f"{manifest.path}: {variable.name} comes from the key {reference.key!r} of {wanted}, which has no such key "
            f"(keys: {', '.join(content) or 'none'})."
        )
    metadata = manifest.job.metadata
    fields = {
        "metadata.name": f"{metadata.name}-{pod_name}",
        "metadata.namespace": metadata.namespace or "default",
        "spec.nodeName": socket.gethostname(),
        "status.podIP": LOOPBACK,
        "status.hostIP": LOOPBACK,
    }
    path = source.field_ref.field_path if source.field_ref else None
    if path not in fields:
        raise ManifestError(
            f"{manifest.path}: {variable.name} comes from {path or 'a resourceFieldRef'}, which can't be honoured here. "
            f"Known are ConfigMap and Secret keys and the fields {', '.join(fields)}."
        )
    return fields[path]


def _command(container: Container, environment: Mapping[str, str], mounts: Mounts, path: Path) -> tuple[str, ...]:
    if not container.command:
        raise ManifestError(
            f"{path}: the container has no command, so its image decides what runs, and images are not used here. "
            "Write the command, for example [python, -m, irlops_jobs.launch]."
        )
    written = [mounts.localise(expand_references(word, environment)) for word in (*container.command, *container.args)]
    program, *arguments = written
    if _PYTHON.match(Path(program).name):
        return (sys.executable, *arguments)
    if Path(program).name == "torchrun":
        return (sys.executable, "-m", "torch.distributed.run", *arguments)
    found = shutil.which(program, path=environment.get("PATH"))
    if found is None:
        raise ManifestError(f"{path}: the command {program!r} is not installed here. Install it, or use --cluster.")
    return (found, *arguments)


def _tracking_notes(manifest: TrainingManifest, tracking_uri: str | None) -> Iterator[str]:
    written = {
        variable.value
        for _, replica in manifest.job.spec.replicas()
        for variable in replica.template.spec.pytorch.env
        if variable.name == TRACKING_URI and variable.value
    }
    for uri in sorted(written):
        if tracking_uri and uri != tracking_uri:
            yield f"{TRACKING_URI}: {tracking_uri} instead of {uri}"
        elif not tracking_uri and _is_of_a_cluster(uri):
            yield f"{TRACKING_URI}: {uri} is a cluster's; without --tracking-uri the run is recorded in its own folder only"


def _is_of_a_cluster(uri: str) -> bool:
    """Whether only a cluster's DNS knows the host: a Service's name, with or without its namespace."""
    host = urlsplit(uri).hostname or ""
    return bool(host) and host != "localhost" and ("." not in host or host.endswith((".svc", ".cluster.local")))
