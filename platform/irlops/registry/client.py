"""A client of any tracking server, and its failures in our words.

``MLFLOW_TRACKING_URI`` (or an explicit URI) decides. Without one, the embedded server of this machine is used when it
runs, and its database is read directly when it does not.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from irlops.errors import IrlopsError, PairError, UnavailableError
from irlops.registry.server import find_mlflow_server, is_healthy

if TYPE_CHECKING:
    from mlflow import MlflowClient

_CLIENT_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow's 7 block for minutes; whoever can wait retries on his own
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for our commands' results
}


def default_mlflow_dir() -> Path:
    """Folder of this machine's embedded server: ``$IRLOPS_HOME/mlflow``, by default ``.irlops/mlflow`` here."""
    return Path(os.environ.get("IRLOPS_HOME", ".irlops")).expanduser().absolute() / "mlflow"


def find_tracking_uri(mlflow_dir: Path | None = None) -> str | None:
    """Where to look for runs and pairs; None when nothing was ever recorded here.

    In this order: MLFLOW_TRACKING_URI, a running embedded server, the database that one left.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    mlflow_dir = mlflow_dir or default_mlflow_dir()
    if server := find_mlflow_server(mlflow_dir):
        return server.uri
    database = mlflow_dir / "mlflow.db"
    return f"sqlite:///{database}" if database.exists() else None


def require_answer(tracking_uri: str) -> None:
    """Ask a tracking server whether it is there; a database that is opened directly always is.

    Raises:
        UnavailableError: it does not answer.
    """
    if urlsplit(tracking_uri).scheme in ("http", "https") and not is_healthy(tracking_uri, timeout_s=5.0):
        raise UnavailableError(
            f"The MLflow server at {_shown(tracking_uri)} does not answer. Start it, or correct MLFLOW_TRACKING_URI; "
            "unset it to do without a tracking server on one machine."
        )


def open_client(tracking_uri: str, *, check: bool = True) -> MlflowClient:
    """An MLflow client that fails in seconds, not minutes, when nobody answers.

    Raises:
        UnavailableError: ``check`` is set and the server does not answer.
    """
    if check:
        require_answer(tracking_uri)
    for name, value in _CLIENT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    with _quiet_import():
        from mlflow import MlflowClient
    mlflow_log = logging.getLogger("mlflow")
    mlflow_log.setLevel(max(mlflow_log.level, logging.WARNING))  # it tells of every table it creates
    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


@contextlib.contextmanager
def explaining(doing: str, tracking_uri: str) -> Iterator[None]:
    """Turn MLflow's failures while ``doing`` something into ours.

    Raises:
        UnavailableError: the server did not answer, or answered with a failure of its own.
        PairError: it refused what was asked of it.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except IrlopsError:
        raise
    except MlflowException as error:
        message = f"{doing} failed at {_shown(tracking_uri)}: {str(error).strip().splitlines()[0][:500]}"
        if is_refusal(error):
            raise PairError(message) from error
        raise UnavailableError(f"{message}. Is the server up? Nothing was lost; try again.") from error
    except OSError as error:
        raise UnavailableError(f"{doing} failed at {_shown(tracking_uri)}: {error}. Try again.") from error


def is_refusal(error: Exception) -> bool:
    """The server understood the request and said no (a 4xx): trying again changes nothing."""
    from mlflow.exceptions import MlflowException

    if not isinstance(error, MlflowException):
        return False
    return 400 <= error.get_http_status_code() < 500 and error.error_code not in ("REQUEST_LIMIT_EXCEEDED", "ABORTED")


def is_missing(error: Exception) -> bool:
    """What was asked for does not exist."""
    return getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    """Importing mlflow warns about optional packages; that is not for our users."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _shown(uri: str) -> str:
    from irlops.registry.masking import mask_secrets

    return mask_secrets(uri)
