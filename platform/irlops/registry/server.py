"""An MLflow tracking server of our own: SQLite and a local artifact folder, on 127.0.0.1, for one machine.

    start_mlflow_server(state_dir) -> MlflowServer -> wait_until_ready() -> uri -> ... -> stop()

A server that already runs for the same folder is used again. It ends with the process that started it, however that
ends, unless ``release()`` was called. Clients on this machine read and write artifacts as files, so weights never
pass through HTTP.

Measured on two busy cores with one worker and without MLflow's job runner: ready 7 s after a first start, 5.5 s after
a later one, 0.36 GiB of its own; MLflow's own defaults (four workers, job runner) take more than twice as long and
three times the memory. Nearly all of the time goes into importing mlflow twice, so start it early and wait late.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import re
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from irlops.errors import MissingDependencyError, StorageError, UnavailableError
from irlops.local.processes import LOOPBACK, SupervisedProcess, claim_port, start_supervised

_POLL_S = 0.1
_LOG_LINES = 3


@dataclass(frozen=True)
class ServerRecord:
    """What a running server leaves in its state folder for other processes to find it by."""

    pid: int
    """Of the guard process that keeps it."""
    created_s: float
    """When that process started (seconds since 1970): process ids are given out again."""
    port: int


class MlflowServer:
    """A running (or starting) MLflow server.

    Made by ``start_mlflow_server`` and ``find_mlflow_server``. Use as a context manager to stop it at the end; a server
    that another process started is left alone.
    """

    def __init__(self, state_dir: Path, record: ServerRecord, process: SupervisedProcess | None) -> None:
        self.state_dir = state_dir
        self.record = record
        self._process = process

    @property
    def uri(self) -> str:
        return f"http://{LOOPBACK}:{self.record.port}"

    @property
    def is_ours(self) -> bool:
        """This process started it (and stops it)."""
        return self._process is not None

    @property
    def log_file(self) -> Path:
        return _log_file(self.state_dir)

    def wait_until_ready(self, timeout_s: float = 180.0, on_wait: Callable[[], None] | None = None) -> MlflowServer:
        """Return once it answers; ``on_wait`` is called about ten times a second until then.

        Raises:
            UnavailableError: it died while starting, or does not answer in time; with the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        while not is_healthy(self.uri):
            if not self._is_alive():
                self._forget()
                raise UnavailableError(f"The MLflow server stopped while it started: {self._last_words()}")
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"The MLflow server at {self.uri} did not answer within {timeout_s:.0f} s: {self._last_words()}"
                )
            if on_wait is not None:
                on_wait()
            time.sleep(_POLL_S)
        return self

    def stop(self, timeout_s: float = 15.0) -> None:
        """End it with all its processes. Does nothing to a server that another process started."""
        if self._process is None:
            return
        self._process.stop(timeout_s)
        self._process = None
        self._forget()

    def release(self) -> None:
        """Let it outlive this process; ``stop_mlflow_server(state_dir)`` ends it later."""
        if self._process is not None:
            self._process.guard_process.send_signal(signal.SIGUSR1)
            self._process.guard_process.returncode = 0  # ours no longer: no warning about a child left behind
            self._process = None

    def __enter__(self) -> MlflowServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _is_alive(self) -> bool:
        return self._process.is_running if self._process is not None else _is_running(self.record)

    def _forget(self) -> None:
        if _read_record(self.state_dir) == self.record:
            _record_file(self.state_dir).unlink(missing_ok=True)

    def _last_words(self) -> str:
        try:
            lines = [line for line in self.log_file.read_text(errors="replace").splitlines() if line.strip()]
        except OSError:
            lines = []
        return f"{' / '.join(lines[-_LOG_LINES:]) or 'it wrote nothing'} (whole log: {self.log_file})"


def start_mlflow_server(state_dir: Path, *, port: int | None = None, wait: bool = True) -> MlflowServer:
    """Start a server for ``state_dir``, or take the one that already runs for it.

    Args:
        state_dir: Gets ``mlflow.db``, ``artifacts/`` and the server's log.
        port: None takes a free one. A server that already runs for this folder keeps its own.
        wait: False returns at once; call ``wait_until_ready()`` before the first use.

    Raises:
        ConfigError: the port is in use.
        MissingDependencyError: the full mlflow package is not installed.
        StorageError: the folder can't be written.
        UnavailableError: it did not come up; with the end of its log.
    """
    state_dir = state_dir.expanduser().absolute()
    with _starting(state_dir):
        server = find_mlflow_server(state_dir, healthy=False) or _spawn(state_dir, port)
    try:
        return server.wait_until_ready() if wait else server
    except BaseException:
        server.stop()
        raise


def find_mlflow_server(state_dir: Path, *, healthy: bool = True) -> MlflowServer | None:
    """The server that runs for ``state_dir``, if one does; with ``healthy`` it has to answer, too."""
    state_dir = state_dir.expanduser().absolute()
    record = _read_record(state_dir)
    if record is None or not _is_running(record):
        return None
    server = MlflowServer(state_dir, record, process=None)
    return server if not healthy or is_healthy(server.uri) else None


def stop_mlflow_server(state_dir: Path, timeout_s: float = 15.0) -> bool:
    """End the server of ``state_dir``, whoever started it; False when none ran."""
    server = find_mlflow_server(state_dir, healthy=False)
    if server is None:
        return False
    os.kill(server.record.pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while _is_running(server.record) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    _record_file(server.state_dir).unlink(missing_ok=True)
    return True


def is_healthy(uri: str, timeout_s: float = 2.0) -> bool:
    """Whether an MLflow server answers at ``uri``."""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=timeout_s) as response:  # noqa: S310 - http(s) only
            return response.status == 200
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)  # up, and asks who we are
    except (OSError, ValueError):
        return False


def _spawn(state_dir: Path, port: int | None) -> MlflowServer:
    _require_full_mlflow()
    chosen = claim_port(port, what="the MLflow server")
    process = start_supervised(
        "the MLflow server",
        _command(state_dir, chosen),
        log_file=_log_file(state_dir),
        environment=_server_environment(),
        working_dir=state_dir,
    )
    pid = process.guard_process.pid
    record = ServerRecord(pid=pid, created_s=_created_s(pid) or 0.0, port=chosen)
    temporary = _record_file(state_dir).with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(record)))
    temporary.replace(_record_file(state_dir))
    return MlflowServer(state_dir, record, process)


def _command(state_dir: Path, port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", f"sqlite:///{state_dir / 'mlflow.db'}"),
        *("--no-serve-artifacts", "--default-artifact-root", str(state_dir / "artifacts")),
        *("--host", LOOPBACK, "--port", str(port), "--workers", "1"),
        *("--allowed-hosts", f"localhost:{port},{LOOPBACK}:{port}"),
        *("--uvicorn-opts", "--log-level warning --timeout-graceful-shutdown 3"),
    ]


def _server_environment() -> dict[str, str]:
    """Ours, less what would turn the server into a client of another one."""
    environment = {name: value for name, value in os.environ.items() if not re.match(r"_?MLFLOW_", name)}
    return environment | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONWARNINGS": "ignore",
    }


def _require_full_mlflow() -> None:
    missing = [name for name in ("mlflow", "flask", "sqlalchemy") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"The embedded MLflow server needs the full mlflow package ({', '.join(missing)} not found). "
            "Install it with: pip install 'irlops[mlflow-server]', or set MLFLOW_TRACKING_URI to a server that runs."
        )


@contextlib.contextmanager
def _starting(state_dir: Path) -> Iterator[None]:
    """Two processes that start a server for one folder at the same moment end with one server."""
    try:
        (state_dir / "artifacts").mkdir(parents=True, exist_ok=True)
        lock = (state_dir / "mlflow-server.lock").open("w")
    except OSError as error:
        raise StorageError(
            f"MLflow's folder {state_dir} can't be written ({error.strerror}). Free space, or choose another folder."
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read_record(state_dir: Path) -> ServerRecord | None:
    try:
        return ServerRecord(**json.loads(_record_file(state_dir).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _is_running(record: ServerRecord) -> bool:
    created_s = _created_s(record.pid)
    return created_s is not None and abs(created_s - record.created_s) < 1.0


def _created_s(pid: int) -> float | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def _record_file(state_dir: Path) -> Path:
    return state_dir / "mlflow-server.json"


def _log_file(state_dir: Path) -> Path:
    return state_dir / "mlflow-server.log"
