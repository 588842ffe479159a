"""torchelastic with exit codes that mean something: workers are started again only after failures that may pass.

Stock torchrun starts them again after a mistyped setting as well, up to ``max_restarts`` times, and then exits 1.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterable
from pathlib import Path

import torch.distributed.elastic.rendezvous.registry as rendezvous_registry
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint
from torch.distributed.launcher.api import LaunchConfig
from torch.distributed.run import config_from_args, determine_local_world_size, parse_args

from irlops.contracts.exit_codes import RETRYABLE_FROM, ExitCode
from irlops.errors import ConfigError, UnavailableError

_SHOWN = (
    "PET_NNODES",
    "PET_NPROC_PER_NODE",
    "PET_RDZV_BACKEND",
    "PET_RDZV_ENDPOINT",
    "PET_RDZV_CONF",
    "PET_MAX_RESTARTS",
)
_NOT_HERE = (ExitCode.UNAVAILABLE, ExitCode.STORAGE)
"""A server that is away and a disk that is full are still so a second later. Ending the pod leaves it to whoever started
it to try again, where people see it: the training operator, or the one at the keyboard."""
_GOES_ON = "Started again, the job goes on from its last checkpoint."


def run_elastic(module: str) -> tuple[int, str]:
    """Run ``python -m module`` in as many processes, and with the peers, that PET_* says.

    Returns:
        The launcher's exit code, and why when it is not 0.

    Raises:
        ConfigError: PET_* makes no sense.
        UnavailableError: the other nodes can't be met.
    """
    _quieten_torchelastic()
    # With torch's default, workers that start again read the addresses of the dead from the agent's store, and hang.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    config, command, arguments = _launch_config(module)
    try:
        agent = _agent(config, command, tuple(arguments))
        result: RunResult | None = agent.run()  # pyright: ignore[reportAssignmentType] - hidden by an untyped decorator
    except SignalException as stopped:
        return 128 + int(stopped.sigval), f"Stopped by {stopped.sigval.name}. {_GOES_ON}"
    except RendezvousError as error:
        raise UnavailableError(
            f"Could not meet the other workers at {config.rdzv_endpoint}: {error} They may be starting again; so will this one."
        ) from error
    code, reason = _verdict(result)
    if code < RETRYABLE_FROM:
        # Nobody need wait for this node again. After a failure that may pass it stays open: the pod that replaces this
        # one meets its peers there.
        agent.get_worker_group().spec.rdzv_handler.shutdown()
    return code, reason


def _quieten_torchelastic() -> None:
    """What it would say in pages we say in one line, with the next step; LOGLEVEL brings the pages back."""
    if "LOGLEVEL" in os.environ:
        return
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed."):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def num_cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> float:
    """Cores this container or process may use; a container's limit is invisible to ``os.cpu_count``.

    Args:
        quota_file: cgroup v2's ``QUOTA PERIOD`` in microseconds, or ``max PERIOD``.
    """
    usable = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        quota, period = quota_file.read_text().split()
        return usable if quota == "max" else min(usable, int(quota) / int(period))
    except (OSError, ValueError):
        return usable


class PatientAgent(LocalElasticAgent):
    """Starts its workers again after failures that may pass, and gives up at once after one that can't."""

    # pyright sees an untyped decorator instead of the method, here and in run().
    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:  # pyright: ignore[reportIncompatibleVariableOverride]
        result: RunResult = super()._monitor_workers(worker_group)  # pyright: ignore[reportCallIssue, reportAssignmentType]
        if result.is_failed():
            code = exit_code_of(failure.exitcode for failure in result.failures.values())
            if code < RETRYABLE_FROM or code in _NOT_HERE:
                self._remaining_restarts = 0
            elif self._remaining_restarts:
                left, allowed = self._remaining_restarts - 1, worker_group.spec.max_restarts
                print(
                    f"{describe(result)}; starting all workers again from the last checkpoint ({left} of {allowed} restarts left)",
                    file=sys.stderr,
                    flush=True,
                )
        return result


def _launch_config(module: str) -> tuple[LaunchConfig, str, list[str]]:
    """torchrun's own reading of PET_*; alone on its machine when PET_* names no peer."""
    if os.environ.get("PET_STANDALONE") == "":
        os.environ["PET_STANDALONE"] = "1"  # the operator writes it empty, which torchrun can't read
    try:
        arguments = parse_args(["--module", module])
        meets_nobody = arguments.rdzv_backend == "static" and not arguments.rdzv_endpoint and not arguments.master_port
        if arguments.standalone or meets_nobody:
            arguments.rdzv_backend, arguments.rdzv_endpoint = "c10d", "localhost:0"
            arguments.rdzv_id = uuid.uuid4().hex
            arguments.local_addr = arguments.local_addr or "localhost"
        # torchrun would give each of several processes one core, and one process all of the machine's.
        num_processes = determine_local_world_size(arguments.nproc_per_node)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, int(num_cores() // num_processes))))
        # oneDNN keeps a compiled kernel for each shape it meets, a thousand by default: half a gigabyte for nothing.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
        config, command, worker_arguments = config_from_args(arguments)
    except (ValueError, AssertionError, RuntimeError, SystemExit) as error:
        seen = ", ".join(f"{name}={os.environ[name]}" for name in _SHOWN if name in os.environ) or "none set"
        raise ConfigError(
            f"The variables for torchrun can't be used: {error} (seen: {seen}). PET_NNODES is N or MIN:MAX, "
            "PET_NPROC_PER_NODE a number, auto, cpu or gpu; a PyTorchJob sets them from elasticPolicy and nprocPerNode."
        ) from error
    return config, str(command), worker_arguments


def _agent(config: LaunchConfig, command: str, arguments: tuple[str, ...]) -> PatientAgent:
    parameters = RendezvousParameters(
        backend=config.rdzv_backend,
        endpoint=config.rdzv_endpoint,
        run_id=config.run_id,
        min_nodes=config.min_nodes,
        max_nodes=config.max_nodes,
        local_addr=config.local_addr,
        **config.rdzv_configs,
    )
    master_addr, master_port = None, None
    if config.rdzv_backend == "static":
        master_addr, master_port = parse_rendezvous_endpoint(config.rdzv_endpoint, default_port=-1)
    spec = WorkerSpec(
        role=config.role,
        local_world_size=config.nproc_per_node,
        entrypoint=command,
        args=arguments,
        rdzv_handler=rendezvous_registry.get_rendezvous_handler(parameters),
        max_restarts=config.max_restarts,
        monitor_interval=config.monitor_interval,
        master_addr=master_addr,
        master_port=master_port,
        local_addr=config.local_addr,
        numa_options=config.numa_options,
    )
    assert config.logs_specs is not None
    assert config.shutdown_timeout is not None  # both are filled in by LaunchConfig itself
    return PatientAgent(
        spec, config.logs_specs, start_method=config.start_method, shutdown_timeout=config.shutdown_timeout
    )


def exit_code_of(worker_codes: Iterable[int]) -> int:
    """The one exit code for a group of failed workers.

    A worker's own verdict goes before its peers' complaint that it is gone, and both before the SIGTERM with which
    torchelastic ends the rest.

    Args:
        worker_codes: Exit codes as ``subprocess`` gives them: negative for signals.
    """
    return min((_translated(code) for code in worker_codes), key=_blame)


def _translated(code: int) -> int:
    if code == -signal.SIGTERM:
        return int(ExitCode.PREEMPTED)
    return int(ExitCode.WORKER_DIED) if code < 0 else code


def _blame(code: int) -> int:
    """Sorts by how likely a code names the cause: 0 most."""
    if code < RETRYABLE_FROM:
        return 0
    return {ExitCode.WORKER_DIED: 2, ExitCode.PREEMPTED: 3}.get(ExitCode(code), 1) if code in set(ExitCode) else 1


def describe(result: RunResult) -> str:
    """Who failed and how: ``worker 1 was killed by SIGKILL``."""
    wanted = exit_code_of(failure.exitcode for failure in result.failures.values())
    code, rank = min(
        (failure.exitcode, rank)  # signals first: whoever was killed explains the others' lost peer
        for rank, failure in result.failures.items()
        if _translated(failure.exitcode) == wanted
    )
    if code < 0:
        return f"worker {rank} was killed by {signal.Signals(-code).name}"
    if code == ExitCode.WORKER_DIED:
        return f"worker {rank} lost a worker of another node"
    return f"worker {rank} ended with exit code {code}"


def _verdict(result: RunResult | None) -> tuple[int, str]:
    if result is None:
        return int(ExitCode.WORKER_DIED), "This node came when all places in the group were taken."
    if not result.is_failed():
        return int(ExitCode.OK), ""
    code = exit_code_of(failure.exitcode for failure in result.failures.values())
    return code, f"{describe(result)}. " + ("Its message stands above." if code < RETRYABLE_FROM else _GOES_ON)
