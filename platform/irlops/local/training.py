"""Runs a PyTorchJob's replicas as processes of this machine, follows them, and starts them again as the operator would.

    run_pytorchjob(manifest_path, state_dir=...) -> LocalJobResult

Nothing of it outlives this process (``irlops.local.processes``). Asked to stop (Ctrl-C, SIGTERM), the replicas get their
``terminationGracePeriodSeconds`` to save their state; a second Ctrl-C ends them at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irlops.contracts.exit_codes import RETRYABLE_FROM, ExitCode
from irlops.contracts.training_manifest import TrainingManifest, read_training_manifest
from irlops.errors import ConfigError, PermanentError, PreemptedError, RetryableError, StorageError
from irlops.local.machine import this_machine
from irlops.local.overrides import check_job_file, with_overrides
from irlops.local.pods import STATE_DIR, LocalPlan, Surroundings, plan_pods
from irlops.local.processes import claim_port
from irlops.local.replicas import Replica

RUNNER = "irlops"
"""The name under which the runner itself speaks."""

OnLine = Callable[[str, str], None]
"""Gets each line: who printed it (``worker-0``, or RUNNER) and what."""

_POLL_S = 0.1
_RESTART_PAUSE_S = 1.0
_DEFAULT_BACKOFF_LIMIT = 6
"""For a job that names none: on a cluster it would be restarted for ever."""
_LEAVE_TOGETHER_S = 60.0
"""The job is over when the first worker succeeds; the others get this long to succeed as well."""


@dataclass(frozen=True)
class LocalJobResult:
    """How a job ended.

    Made by ``run_pytorchjob``; consumed by the command line and the demo.
    Example: ``LocalJobResult(name="airl-tiny", exit_code=0, reason="", wall_s=212.4, num_restarts=0,
    state_dir=Path(".irlops/state/irlops-tiny"), log_files={"worker-0": Path(...)}, notes=())``
    """

    name: str
    exit_code: int
    """0, or that of the replica that ended the job."""
    reason: str
    """Why it failed, and what to do next; empty when it succeeded."""
    wall_s: float
    num_restarts: int
    """Of replicas. Restarts of workers inside a replica are torchelastic's and not counted."""
    state_dir: Path | None
    """What IRLOPS_STATE_DIR was here: ``<state_dir>/<run_name>/policy`` and so on. None when the job has none."""
    log_files: Mapping[str, Path]
    """Replica to everything it printed, of its last start."""
    notes: tuple[str, ...]
    """What was done otherwise than on a cluster."""

    @property
    def succeeded(self) -> bool:
        return self.exit_code == ExitCode.OK

    def raise_if_failed(self) -> None:
        """Raise what the job failed with: RetryableError when starting it again may help, PermanentError otherwise."""
        if not self.succeeded:
            error = RetryableError if self.exit_code >= RETRYABLE_FROM else PermanentError
            raise error(f"{self.name} failed: {self.reason}")


def run_pytorchjob(
    manifest_path: Path,
    *,
    state_dir: Path,
    tracking_uri: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_line: OnLine | None = None,
    max_grace_s: float = math.inf,
) -> LocalJobResult:
    """Run the job of a manifest here and wait for its end.

    Args:
        manifest_path: A file with one PyTorchJob and what it mounts.
        state_dir: Gets a folder for each claim, and ``logs/``.
        tracking_uri: Replaces MLFLOW_TRACKING_URI of the manifest.
        overrides: Dotted keys of the job file with other values, for example ``{"seed": 7}``.
        on_line: Gets every line of every replica; None is silent.
        max_grace_s: Asked to stop, replicas get no longer than this to save their state, whatever the manifest says.

    Raises:
        ManifestError: another kind, or something that can't be honoured here.
        ConfigError: the job file is wrong, or the job already runs on this state directory.
        StorageError: a folder can't be written.
        PreemptedError: this process got SIGTERM; the replicas were stopped first.
    """
    manifest = with_overrides(read_training_manifest(manifest_path), overrides or {})
    check_job_file(manifest)
    state_dir = state_dir.expanduser().absolute()
    with _only_run(manifest.job.metadata.name, state_dir), _run_dir(manifest.job.metadata.name) as run_dir:
        here = Surroundings(
            machine=this_machine(),
            state_dir=state_dir,
            run_dir=run_dir,
            port=claim_port(None, what="the rendezvous"),
            tracking_uri=tracking_uri,
            inherited=os.environ,
        )
        plan = plan_pods(manifest, here)
        return _Run(
            manifest, plan, state_dir / "logs" / manifest.job.metadata.name, on_line or (lambda *_: None), max_grace_s
        ).to_its_end()


@contextlib.contextmanager
def _run_dir(name: str) -> Iterator[Path]:
    try:
        folder = Path(tempfile.mkdtemp(prefix=f"irlops-{name}-"))
    except OSError as error:
        raise StorageError(
            f"No temporary folder can be made ({error}). Free space in {tempfile.gettempdir()}."
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _only_run(name: str, state_dir: Path) -> Iterator[None]:
    """Two runs of one job would tear each other's checkpoints."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        lock = (state_dir / f".{name}.lock").open("w")
    except OSError as error:
        raise StorageError(
            f"{state_dir} can't be written ({error.strerror}). Free space, or choose another --state-dir."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"{name} already runs on {state_dir}. Wait for it, stop it, or give this run another --state-dir."
            ) from error
        yield


class _Run:
    """One job between its start and its end."""

    def __init__(
        self, manifest: TrainingManifest, plan: LocalPlan, log_dir: Path, on_line: OnLine, max_grace_s: float
    ) -> None:
        self._job, self._plan, self._on_line = manifest.job, plan, on_line
        self._started_at = time.monotonic()
        self._num_restarts = 0
        self._stopped_by_signal = False
        grace_s = {
            kind: min(replica.template.spec.termination_grace_period_seconds, max_grace_s)
            for kind, replica in self._job.spec.replicas()
        }
        self._replicas = [Replica(pod, log_dir, grace_s=grace_s[pod.kind]) for pod in plan.pods]

    def to_its_end(self) -> LocalJobResult:
        name = self._job.metadata.name
        names = ", ".join(replica.name for replica in self._replicas)
        self._say(f"{name}: {names} as local processes; logs in {self._replicas[0].log_dir}")
        for note in self._plan.notes:
            self._say(note)
        with self._stopping_at_sigterm():
            try:
                for replica in self._replicas:
                    replica.start()
                exit_code, reason = self._follow()
            finally:
                self._stop_all()
        state_dir = next((pod.environment[STATE_DIR] for pod in self._plan.pods if STATE_DIR in pod.environment), None)
        return LocalJobResult(
            name=name,
            exit_code=exit_code,
            reason=reason,
            wall_s=time.monotonic() - self._started_at,
            num_restarts=self._num_restarts,
            state_dir=Path(state_dir) if state_dir else None,
            log_files={replica.name: replica.log_file for replica in self._replicas},
            notes=self._plan.notes,
        )

    def _follow(self) -> tuple[int, str]:
        """Until the job is over as the operator sees it; exit code and reason."""
        while True:
            if self._stopped_by_signal:
                raise PreemptedError(
                    f"{self._job.metadata.name} was asked to stop. Start it again to go on from its last checkpoint."
                )
            self._pass_lines_on()
            if self._has_succeeded():
                return int(ExitCode.OK), ""
            failed = [one for one in self._replicas if one.has_ended and one.exit_code != ExitCode.OK]
            for replica in sorted(failed, key=lambda one: one.exit_code >= RETRYABLE_FROM):  # final ones first
                if reason := self._reason_to_give_up(replica):
                    return replica.exit_code, reason
                self._start_again(replica)
            if self._is_overdue():
                limit = self._job.spec.run_policy.active_deadline_seconds
                return int(
                    ExitCode.UNEXPECTED
                ), f"it ran longer than activeDeadlineSeconds, {limit} s. Raise it, or make the job smaller."
            time.sleep(_POLL_S)

    def _has_succeeded(self) -> bool:
        """The Master decides where there is one; else the first worker of an elastic job, or all workers."""
        deciding = [one for one in self._replicas if one.kind == "Master"] or self._replicas
        done = [one.has_ended and one.exit_code == ExitCode.OK for one in deciding]
        return any(done) if self._job.spec.elastic_policy else all(done)

    def _reason_to_give_up(self, replica: Replica) -> str | None:
        policy = replica.restart_policy
        if policy == "Never" or (policy == "ExitCode" and replica.exit_code < RETRYABLE_FROM):
            return f"{replica.describe_end()}. {replica.last_words()}"
        if replica.exit_code == ExitCode.STORAGE:  # the disk is this machine's: nobody frees space between two starts
            return f"{replica.describe_end()}. {replica.last_words()}"
        limit = self._backoff_limit
        if self._num_restarts >= limit:
            return f"{replica.describe_end()}, and its {limit} restarts are used up (runPolicy.backoffLimit). {replica.last_words()}"
        return None

    @property
    def _backoff_limit(self) -> int:
        limit = self._job.spec.run_policy.backoff_limit
        return _DEFAULT_BACKOFF_LIMIT if limit is None else limit

    def _start_again(self, replica: Replica) -> None:
        self._pass_lines_on()
        self._num_restarts += 1
        self._say(
            f"{replica.describe_end()}; starting it again ({self._num_restarts} of {self._backoff_limit} restarts)"
        )
        time.sleep(_RESTART_PAUSE_S)
        replica.start()

    def _is_overdue(self) -> bool:
        limit = self._job.spec.run_policy.active_deadline_seconds
        return limit is not None and time.monotonic() - self._started_at > limit

    def _stop_all(self) -> None:
        """End what still runs. Replicas that succeed together leave together, so they are not interrupted doing so."""
        running = [replica for replica in self._replicas if not replica.has_ended]
        if (
            any(one.has_ended and one.exit_code == ExitCode.OK for one in self._replicas)
            and not self._stopped_by_signal
        ):
            self._wait_for(running, _LEAVE_TOGETHER_S)
        running = [replica for replica in self._replicas if not replica.has_ended]
        if running:
            grace_s = max(replica.grace_s for replica in running)
            self._say(
                f"stopping {', '.join(one.name for one in running)}: up to {grace_s:.0f} s to save; Ctrl-C ends them at once"
            )
        try:
            for replica in running:
                replica.ask_to_stop()
            self._wait_for(running, max((replica.grace_s for replica in running), default=0) + 10)
        finally:
            for replica in self._replicas:
                replica.end_now()
            self._pass_lines_on()

    def _wait_for(self, replicas: list[Replica], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not all(replica.has_ended for replica in replicas) and time.monotonic() < deadline:
            self._pass_lines_on()
            time.sleep(_POLL_S)

    def _pass_lines_on(self) -> None:
        for replica in self._replicas:
            for line in replica.new_lines():
                self._on_line(replica.name, line)

    def _say(self, text: str) -> None:
        self._on_line(RUNNER, text)

    @contextlib.contextmanager
    def _stopping_at_sigterm(self) -> Iterator[None]:
        """Python's own answer to SIGTERM would leave the replicas to the guard, which gives them only seconds to save."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(*_: object) -> None:
            self._stopped_by_signal = True

        before = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
