"""The command of every job pod: reads the job file, then runs the job's workers under torchelastic.

    python -m irlops_jobs.launch        IRLOPS_JOB_FILE says what to run, PET_* with how many processes and peers

The workers are ``python -m irlops_jobs.<kind>``; each of those modules ends with ``run_worker(...)``. Both sides end with
a code that PyTorchJob's ``restartPolicy: ExitCode`` understands (``irlops.contracts.exit_codes``): torchrun itself exits
1 whenever a worker dies, which a cluster would take for permanent.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass

from irlops.contracts.exit_codes import ExitCode
from irlops.contracts.jobs import JobEnvironment, load_job
from irlops.errors import MissingDependencyError
from irlops_jobs.start_folders import require_start_folders
from irlops_jobs.worker import LAUNCHER_PID, end_with, run_worker

__all__ = ["LaunchOutcome", "launch", "main", "run_worker"]


@dataclass(frozen=True)
class LaunchOutcome:
    """How a group of workers ended.

    Example:
        ``LaunchOutcome(exit_code=202, message="worker 1 was killed by SIGKILL. No restart is left here ...")``
    """

    exit_code: int
    """The launcher's: 0, or the code of the worker that is to blame."""
    message: str = ""


def main() -> None:
    """Run the job that IRLOPS_JOB_FILE describes; always ends the process."""
    # As a container's first process we would otherwise ignore SIGTERM until torchelastic installs its own handlers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(ExitCode.PREEMPTED)))
    try:
        environment = JobEnvironment()
        job = load_job(environment.job_file)  # before torch: a typing error should not cost half a minute
        require_start_folders(job, environment)
        outcome = launch(f"irlops_jobs.{job.kind}")
    except Exception as error:
        end_with(error)
    if outcome.exit_code:
        print(f"Error: {outcome.message}", file=sys.stderr, flush=True)
    sys.exit(outcome.exit_code)


def launch(module: str) -> LaunchOutcome:
    """Run ``python -m module`` as torchelastic workers, as many and with the peers that PET_* says.

    Raises:
        ConfigError: PET_* makes no sense.
        MissingDependencyError: torch is not installed.
        UnavailableError: the other nodes can't be met.
    """
    # Drawn anew for every weight file by every worker, and stacks of C++ for every peer that goes: they would bury the log.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        from irlops_jobs.elastic import run_elastic
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingDependencyError(
            "torch is not installed, so no job can run here. Install the extra `jobs`, or use the jobs image."
        ) from error
    os.environ[LAUNCHER_PID] = str(os.getpid())
    return LaunchOutcome(*run_elastic(module))


if __name__ == "__main__":
    main()
