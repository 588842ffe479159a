"""The environment that the training operator would give a pod, and what becomes of it on one machine.

    operator_environment(job, "Worker", 0) -> {"PET_NNODES": "2:2", ...}  -> on_this_machine -> {"PET_RDZV_ENDPOINT": "127.0.0.1:40113"}

Source: training operator v1.9, ``pkg/controller.v1/pytorch/{envvar,elastic}.go`` and ``pytorch_defaults.go``.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping

from irlops.contracts.pytorchjob import CONTAINER, DEFAULT_PORT, PORT_NAME, ElasticPolicy, PyTorchJob, ReplicaSpec
from irlops.local.processes import LOOPBACK


def operator_environment(job: PyTorchJob, kind: str, index: int) -> dict[str, str]:
    """What the operator appends to the environment of one pod's containers.

    Args:
        kind: ``Master`` or ``Worker``.
        index: Of the replica among its kind.
    """
    spec = job.spec
    total = sum(replica.replicas for _, replica in spec.replicas())
    environment = {"PYTHONUNBUFFERED": "1", "PET_NPROC_PER_NODE": spec.nproc_per_node}
    if spec.pytorch_replica_specs.Master:
        environment |= _with_master(job, kind, index, total)
    if spec.elastic_policy:
        environment |= _elastic(job, spec.elastic_policy)
    else:
        environment["PET_NNODES"] = str(total)
    return environment


def _with_master(job: PyTorchJob, kind: str, index: int, total: int) -> dict[str, str]:
    """RANK is the node's rank; torchrun replaces it and WORLD_SIZE by those of its processes."""
    master = job.spec.pytorch_replica_specs.Master
    assert master is not None
    address, port = f"{job.metadata.name}-master-0", str(_port(master))
    rank = str(index + 1 if kind == "Worker" else 0)
    per_node = int(job.spec.nproc_per_node) if job.spec.nproc_per_node.isdigit() else 1
    return {
        "MASTER_ADDR": address,
        "PET_MASTER_ADDR": address,
        "MASTER_PORT": port,
        "PET_MASTER_PORT": port,
        "WORLD_SIZE": str(total * per_node),
        "RANK": rank,
        "PET_NODE_RANK": rank,
    }


def _elastic(job: PyTorchJob, policy: ElasticPolicy) -> dict[str, str]:
    workers = job.spec.pytorch_replica_specs.Worker
    assert workers is not None  # the manifest was refused without
    # Either bound fills in the other; without both it is the number of workers.
    fewest = policy.min_replicas or policy.max_replicas or workers.replicas
    most = policy.max_replicas or policy.min_replicas or workers.replicas
    host = policy.rdzv_host or f"{job.metadata.name}-worker-0"
    environment = {
        "PET_RDZV_ENDPOINT": f"{host}:{policy.rdzv_port or _port(workers)}",
        "PET_RDZV_BACKEND": policy.rdzv_backend,
        "PET_NNODES": f"{fewest}:{most}",
    }
    if policy.max_restarts is not None:
        environment["PET_MAX_RESTARTS"] = str(policy.max_restarts)
    if policy.n_proc_per_node is not None:
        environment["PET_NPROC_PER_NODE"] = str(policy.n_proc_per_node)
    if policy.rdzv_id is not None:
        environment["PET_RDZV_ID"] = policy.rdzv_id
    if policy.rdzv_conf:
        environment["PET_RDZV_CONF"] = ",".join(f"{setting.key}={setting.value}" for setting in policy.rdzv_conf)
    if policy.standalone:
        environment["PET_STANDALONE"] = ""
    return environment


def _port(replica: ReplicaSpec) -> int:
    container = next(one for one in replica.template.spec.containers if one.name == CONTAINER)
    return next((port.container_port for port in container.ports if port.name == PORT_NAME), DEFAULT_PORT)


def on_this_machine(environment: Mapping[str, str], port: int, *, hosts_rendezvous: bool) -> dict[str, str]:
    """The same with addresses of this machine, which knows no pod by name.

    Args:
        port: A free one, the same for all replicas of a job.
        hosts_rendezvous: Whether this replica is the one whose name the address was (worker 0). In a pod torch finds
            that out by comparing host names; here all replicas have the same.
    """
    local = dict(environment)
    if "PET_RDZV_ENDPOINT" in local:
        local["PET_RDZV_ENDPOINT"] = f"{LOOPBACK}:{port}"
        settings = [setting for setting in local.get("PET_RDZV_CONF", "").split(",") if setting]
        if not any(setting.startswith("is_host=") for setting in settings):
            settings.append(f"is_host={int(hosts_rendezvous)}")
        local["PET_RDZV_CONF"] = ",".join(settings)
    for name in ("MASTER_ADDR", "PET_MASTER_ADDR"):
        if name in local:
            local[name] = LOOPBACK
    for name in ("MASTER_PORT", "PET_MASTER_PORT"):
        if name in local:
            local[name] = str(port)
    # Machines whose own name does not resolve, and VPNs, would otherwise decide where the processes look for each other.
    local["PET_LOCAL_ADDR"] = LOOPBACK
    local["GLOO_SOCKET_IFNAME"] = _loopback_interface()
    return local


def _loopback_interface() -> str:
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in ("lo", "lo0") if name in names), names[0])
