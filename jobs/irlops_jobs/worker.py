"""How a worker process begins and ends: with its launcher, and with an exit code that says whether to try again."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, get_type_hints

from irlops.contracts.exit_codes import ExitCode, exit_code_for
from irlops.contracts.jobs import Job, JobEnvironment, load_job
from irlops.errors import ConfigError, IrlopsError, PreemptedError, StorageError

LAUNCHER_PID = "IRLOPS_LAUNCHER_PID"
"""Whom a worker follows: torchelastic gives workers a session of their own, so they would outlive a killed launcher."""

_PR_SET_PDEATHSIG = 1
_WATCH_EVERY_S = 1.0
_OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT)
# gloo and NCCL report a vanished peer as a plain RuntimeError; their names in the message are all there is to go by.
_COLLECTIVES = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")


def run_worker(job_function: Callable[[Any, JobEnvironment], None]) -> None:
    """Call ``job_function(job, environment)`` with the job file's content, and end the process when it fails.

    Args:
        job_function: Its first parameter's annotation says which kind of job it runs.

    Example:
        ``if __name__ == "__main__": run_worker(airl)``
    """
    _follow_the_launcher()
    signal.signal(signal.SIGTERM, _stop_before_the_start)
    try:
        environment = JobEnvironment()
        job_function(_job_for(job_function, environment), environment)
    except Exception as error:
        end_with(error)


def _job_for(job_function: Callable[..., None], environment: JobEnvironment) -> Job:
    job = load_job(environment.job_file)
    wanted = next(iter(get_type_hints(job_function).values()))
    if not isinstance(job, wanted):
        raise ConfigError(
            f"{environment.job_file} describes a job of kind {job.kind}, which {job_function.__name__} does not run. "
            "Start it with: python -m irlops_jobs.launch"
        )
    return job


def _stop_before_the_start(*_: object) -> None:
    raise PreemptedError("Asked to stop before the job had begun. Start the same job again.")


def _follow_the_launcher() -> None:
    """End with the launcher, also when that is killed outright: nobody else would end this process."""
    launcher_pid = int(os.environ.get(LAUNCHER_PID, "0"))
    if not launcher_pid:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launcher_pid:  # it went before we asked
            os._exit(int(ExitCode.WORKER_DIED))
    else:
        threading.Thread(target=_watch, args=(launcher_pid,), daemon=True).start()


def _watch(launcher_pid: int) -> None:
    while os.getppid() == launcher_pid:
        time.sleep(_WATCH_EVERY_S)
    os._exit(int(ExitCode.WORKER_DIED))


def end_with(error: Exception) -> NoReturn:
    """Say what went wrong (one message for a known error, a traceback for a bug) and end with its exit code."""
    code, message = translate(error)
    if message is None:
        traceback.print_exception(error)
    else:
        rank = os.environ.get("RANK")
        print(f"Error{f' (rank {rank})' if rank else ''}: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: a process group that has lost a peer can hang the interpreter's shutdown, and with it the restart.
    os._exit(int(code))


def translate(error: Exception) -> tuple[ExitCode, str | None]:
    """The exit code for ``error`` and the message to show; no message means that only a traceback helps."""
    if isinstance(error, IrlopsError):
        return exit_code_for(error), str(error)
    if isinstance(error, OSError) and error.errno in _OUT_OF_SPACE:
        full = StorageError(f"No space left for {error.filename or 'a file'}. Free space and start the same job again.")
        return exit_code_for(full), str(full)
    if is_lost_peer(error):
        return ExitCode.WORKER_DIED, f"Another worker is gone: {_in_short(str(error))}"
    return ExitCode.UNEXPECTED, None


def _in_short(complaint: str) -> str:
    """gloo's words without its source line before them and its advice behind them, both meant for its developers."""
    return re.sub(r"^\[[^\]]*\]\s*|\. This is typically caused by .*", "", complaint.splitlines()[0])


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective failed because another process of the group went away."""
    if type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError"):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(name in text for name in _COLLECTIVES)
