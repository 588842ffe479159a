"""Every error irlops raises on purpose.

    IrlopsError
    ├── PermanentError        doing it again gives the same answer: exit code 2
    │   ├── ConfigError           a job file, manifest or setting is wrong
    │   ├── DataError             demonstrations or questions are malformed
    │   ├── ManifestError         a Kubernetes object is of another kind, or asks for what can't be honoured
    │   ├── CheckpointError       a checkpoint is missing, torn or of another model
    │   ├── PairError             policy and critic do not belong together
    │   ├── MissingDependencyError  an optional package is not installed
    │   └── DivergenceError       training left the range where numbers mean anything
    └── RetryableError        the same call may succeed later: exit code 143 or above
        ├── UnavailableError      a server (tracking, policy, critic, API) does not answer
        ├── StorageError          the disk is full or went away; what was saved before stays usable
        └── PreemptedError        asked to stop; state was saved first

An error takes one message: what failed, the values seen, what to do next. (More constructor arguments would
break unpickling when an error crosses process ranks.)
"""

from __future__ import annotations


class IrlopsError(Exception):
    """Base of all errors raised on purpose; its text is fit to be shown to a user without a traceback."""


class PermanentError(IrlopsError):
    """Trying again without a change gives the same answer."""


class RetryableError(IrlopsError):
    """The same call may succeed later."""


class ConfigError(PermanentError, ValueError):
    """A job file, manifest value or setting is wrong."""


class DataError(PermanentError, ValueError):
    """Demonstrations or questions are malformed."""


class ManifestError(PermanentError, ValueError):
    """A Kubernetes object is of another kind, or asks for what can't be honoured here."""


class CheckpointError(PermanentError, RuntimeError):
    """A checkpoint is missing, torn or belongs to another model."""


class PairError(PermanentError, ValueError):
    """A policy and a critic do not belong together."""


class MissingDependencyError(PermanentError, ImportError):
    """An optional package that this path needs is not installed."""


class DivergenceError(PermanentError, ArithmeticError):
    """Training left the range where its numbers mean anything."""


class UnavailableError(RetryableError, ConnectionError):
    """A server (tracking, policy, critic, Kubernetes API) does not answer."""


class StorageError(RetryableError, OSError):
    """The disk is full or went away; what was saved before stays usable."""


class PreemptedError(RetryableError, RuntimeError):
    """Asked to stop (SIGTERM); state was saved first."""
