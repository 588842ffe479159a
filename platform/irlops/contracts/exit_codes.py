"""Exit codes, chosen for PyTorchJob's ``restartPolicy: ExitCode``: 1-127 is permanent, 128 and above is retried.

torchrun exits 1 whenever a worker dies, which Kubernetes would read as permanent; the job entry point therefore
translates what the workers reported into one of these.
Source: training operator v1.9, ``pkg/util/train`` (``IsRetryableExitCode``).
"""

from __future__ import annotations

from enum import IntEnum

from irlops.errors import IrlopsError, PreemptedError, RetryableError, StorageError, UnavailableError

RETRYABLE_FROM = 128


class ExitCode(IntEnum):
    """Process exit codes of every irlops program."""

    OK = 0
    UNEXPECTED = 1
    """A bug or an unknown failure: permanent, with a traceback."""
    BAD_INPUT = 2
    """A PermanentError: the message says what to change."""
    PREEMPTED = 143
    """Asked to stop (128 + SIGTERM); state was saved."""
    UNAVAILABLE = 200
    """A server did not answer."""
    STORAGE = 201
    """The disk was full or went away."""
    WORKER_DIED = 202
    """A worker process was killed (SIGKILL, out of memory) or lost its peers."""

    @property
    def is_retryable(self) -> bool:
        return self >= RETRYABLE_FROM


def exit_code_for(error: BaseException) -> ExitCode:
    """The exit code a program ends with after ``error``."""
    match error:
        case PreemptedError():
            return ExitCode.PREEMPTED
        case StorageError():
            return ExitCode.STORAGE
        case UnavailableError() | RetryableError():
            return ExitCode.UNAVAILABLE
        case IrlopsError():
            return ExitCode.BAD_INPUT
        case _:
            return ExitCode.UNEXPECTED
