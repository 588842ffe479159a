"""A pair behind its gateway, as processes of this machine.

    serve_pair(policy_dir, critic_dir) -> ServedPair -> wait_until_ready() -> urls -> ... -> stop()

Three processes: the policy (vLLM or transformers), the critic (KServe's model server or vLLM) and the gateway, all on the
loopback interface. None outlives this process, however it ends, unless ``release()`` was called. None is restarted: one
that ends is reported with the last lines it printed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

import yaml

from irlops.contracts.exit_codes import ExitCode
from irlops.errors import ConfigError, MissingDependencyError, StorageError, UnavailableError
from irlops.local.processes import LOOPBACK, SupervisedProcess, claim_port, describe_exit, start_supervised, stop_all
from irlops.registry.folders import check_pair_folders, inspect_model_folder

PolicyBackend = Literal["auto", "vllm", "transformers"]
CriticBackend = Literal["kserve", "vllm"]

READY_TIMEOUT_S = 600.0
"""Loading a model of billions of weights from a cold disk takes minutes."""
_POLL_S = 0.2
_RECORD = "servers.json"
_NEEDED = {"policy": ("torch", "transformers", "uvicorn"), "critic": ("torch", "transformers", "kserve")}
_CRITIC_PROTOCOLS: dict[CriticBackend, str] = {"kserve": "v2", "vllm": "vllm"}
_CRITIC_READY_PATHS: dict[CriticBackend, str] = {"kserve": "/v2/models/critic/ready", "vllm": "/health"}


@dataclass(frozen=True)
class Ports:
    """Where each server listens; None takes a free port."""

    gateway: int | None = None
    policy: int | None = None
    critic: int | None = None


@dataclass(frozen=True)
class PairUrls:
    """Addresses of a served pair. Example: ``PairUrls(gateway="http://127.0.0.1:8080", policy=…, critic=…)``."""

    gateway: str
    policy: str
    critic: str


@dataclass(frozen=True)
class ServerStatus:
    """How far one server is, for a progress display.

    Example: ``ServerStatus(name="critic", is_ready=True, elapsed_s=8.4)``.
    """

    name: str
    is_ready: bool
    elapsed_s: float
    """Until it was ready, or until now."""


OnProgress = Callable[[Sequence[ServerStatus]], None]


class ServedPair:
    """The running (or starting) servers of one pair. Made by ``serve_pair``; as a context manager it stops them."""

    def __init__(self, urls: PairUrls, log_dir: Path, servers: Sequence[tuple[SupervisedProcess, str]]) -> None:
        self.urls = urls
        self.log_dir = log_dir
        """Each server's output and the gateway's settings."""
        self.processes = [process for process, _ in servers]
        self._ready_urls = [ready_url for _, ready_url in servers]
        self._ready_after_s: dict[str, float] = {}
        self._started_s = time.monotonic()

    def status(self) -> list[ServerStatus]:
        """How far each server is; a server is asked until it is ready, and then no more."""
        elapsed_s = time.monotonic() - self._started_s
        for process, ready_url in zip(self.processes, self._ready_urls, strict=True):
            if process.name not in self._ready_after_s and _answers(ready_url):
                self._ready_after_s[process.name] = elapsed_s
        return [
            ServerStatus(
                process.name, process.name in self._ready_after_s, self._ready_after_s.get(process.name, elapsed_s)
            )
            for process in self.processes
        ]

    def wait_until_ready(self, timeout_s: float = READY_TIMEOUT_S, on_progress: OnProgress | None = None) -> ServedPair:
        """Return once all three answer.

        Raises:
            UnavailableError: one ended (with its last lines), or they are not ready in time.
            ConfigError: one ended because of what it was told.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.status()
            if on_progress is not None:
                on_progress(status)
            late = [server.name for server in status if not server.is_ready]
            if not late:
                return self
            self.check()
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"After {timeout_s:.0f} s these servers are not ready: {', '.join(late)}. "
                    f"Their output is in {self.log_dir}."
                )
            time.sleep(_POLL_S)

    def check(self) -> None:
        """Do nothing while all run.

        Raises:
            UnavailableError: one ended; the message has its last lines.
            ConfigError: it ended because of what it was told (exit code 2).
        """
        for process in self.processes:
            if (exit_code := process.exit_code) is not None:
                kind = ConfigError if exit_code == ExitCode.BAD_INPUT else UnavailableError
                raise kind(
                    f"The {process.name} server has ended ({describe_exit(exit_code)}). Its last lines:\n"
                    f"{process.last_lines()}\nThe whole log: {process.log_file}"
                )

    def wait(self) -> None:
        """Block until one of the servers ends. Raises what ``check`` raises."""
        while True:
            self.check()
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End all three with everything they started."""
        stop_all(self.processes)

    def release(self) -> None:
        """Let the servers outlive this process; ``stop_released(log_dir)`` ends them later."""
        pids = {process.name: process.release() for process in self.processes}
        (self.log_dir / _RECORD).write_text(json.dumps({"urls": asdict(self.urls), "guards": pids}, indent=2))
        self.processes = []

    def __enter__(self) -> ServedPair:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def serve_pair(
    policy_dir: Path,
    critic_dir: Path,
    *,
    ports: Ports | None = None,
    backend: PolicyBackend = "auto",
    critic_backend: CriticBackend = "kserve",
    critic_dtype: Literal["float32", "bfloat16"] = "float32",
    versions: tuple[str, str] = ("unversioned", "unversioned"),
    log_dir: Path | None = None,
) -> ServedPair:
    """Start the servers of a pair; call ``wait_until_ready()`` before the first request.

    Args:
        policy_dir: Hugging Face layout; ``critic_dir`` likewise, with ``calibration.json`` when there is one.
        ports: Fixed ports; free ones otherwise.
        backend: ``auto`` takes vLLM where it is installed.
        critic_backend: KServe's model server, or stock vLLM's pooling server.
        critic_dtype: Of the critic's weights in memory; ``bfloat16`` takes half of the time on a CPU that has it.
        versions: Of policy and critic, as the gateway's answers name them.
        log_dir: Gets the servers' output; by default ``$IRLOPS_HOME/serve/PORT`` (``.irlops`` here).

    Raises:
        PairError: the folders are no pair.
        ConfigError: a port is in use.
        MissingDependencyError: a package that a server needs is not installed.
        StorageError: the log folder can't be written.
    """
    policy_dir, critic_dir = policy_dir.expanduser().absolute(), critic_dir.expanduser().absolute()
    check_pair_folders(inspect_model_folder(policy_dir, "policy"), inspect_model_folder(critic_dir, "critic"))
    _require_packages()
    chosen = _claim(ports or Ports())
    urls = PairUrls(**{name: f"http://{LOOPBACK}:{port}" for name, port in chosen.items()})
    log_dir = (log_dir or _default_log_dir(chosen["gateway"])).expanduser().absolute()
    config = _write_gateway_config(log_dir, policy_dir, critic_dir, urls, versions, _CRITIC_PROTOCOLS[critic_backend])
    shared = _cores() // 2 or 1  # the gateway has candidates scored while others are still being written
    commands = [
        ("policy", [*_model_options(policy_dir, shared), "--backend", backend], "/health"),
        (
            "critic",
            [*_model_options(critic_dir, shared), "--backend", critic_backend, "--dtype", critic_dtype],
            _CRITIC_READY_PATHS[critic_backend],
        ),
        ("gateway", ["--config", str(config)], "/readyz"),
    ]
    servers: list[tuple[SupervisedProcess, str]] = []
    with _stopping_on_failure(servers):
        for name, options, ready_path in commands:
            arguments = [*options, "--host", LOOPBACK, "--port", str(chosen[name])]
            command = [sys.executable, "-P", "-m", f"irlops_serving.{name}", *arguments]
            process = start_supervised(name, command, log_file=log_dir / f"{name}.log", environment=_environment())
            servers.append((process, f"{getattr(urls, name)}{ready_path}"))
    return ServedPair(urls, log_dir, servers)


def stop_released(log_dir: Path) -> bool:
    """End servers that ``release()`` left running; False when none were."""
    record = log_dir / _RECORD
    try:
        guards = json.loads(record.read_text())["guards"]
    except (OSError, ValueError, KeyError):
        return False
    running = [pid for pid in guards.values() if _is_guard(pid)]
    for pid in running:
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 15
    while any(_is_guard(pid) for pid in running) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    record.unlink(missing_ok=True)
    return bool(running)


def _require_packages() -> None:
    for server, packages in _NEEDED.items():
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        if missing:
            raise MissingDependencyError(
                f"The {server} server needs {', '.join(missing)}, which is not installed. "
                "Install it with: pip install 'irlops[serving]'."
            )


def _claim(ports: Ports) -> dict[str, int]:
    chosen: dict[str, int] = {}
    for name, port in asdict(ports).items():
        if port is not None and port in chosen.values():
            raise ConfigError(
                f"Port {port} is asked for twice. Give every server a port of its own, or leave them out."
            )
        chosen[name] = claim_port(port, what=f"the {name}")
    return chosen


def _write_gateway_config(
    log_dir: Path, policy_dir: Path, critic_dir: Path, urls: PairUrls, versions: tuple[str, str], critic_protocol: str
) -> Path:
    pair: dict[str, object] = {
        "policy": {"url": urls.policy, "model": "policy", "tokenizer_file": str(policy_dir / "tokenizer.json")},
        "critic": {"url": urls.critic, "model": "critic", "protocol": critic_protocol},
        "policy_version": versions[0],
        "critic_version": versions[1],
    }
    calibration = critic_dir / "calibration.json"
    if calibration.is_file():
        pair["calibration_file"] = str(calibration)
    file = log_dir / "gateway.yaml"
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump({"pair": pair}, sort_keys=False))
    except OSError as error:
        raise StorageError(
            f"The folder {log_dir} for the servers' logs can't be written ({error.strerror}). Free space, or choose another."
        ) from error
    return file


def _model_options(model_dir: Path, threads: int) -> list[str]:
    return ["--model-dir", str(model_dir), "--threads", str(threads)]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _environment() -> dict[str, str]:
    # Threads that spin while they wait would take the cores from the other servers.
    ours = {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
    if collector := os.environ.get("IRLOPS_GATEWAY_OTLP_ENDPOINT"):
        ours["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector  # policy and critic send their part of a trace there too
    return {**ours, **os.environ}


def _default_log_dir(gateway_port: int) -> Path:
    return Path(os.environ.get("IRLOPS_HOME", ".irlops")) / "serve" / str(gateway_port)


@contextlib.contextmanager
def _stopping_on_failure(servers: list[tuple[SupervisedProcess, str]]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        stop_all([process for process, _ in servers])
        raise


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - http on the loopback interface
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _is_guard(pid: int) -> bool:
    """Whether ``pid`` is still the guard it was: process ids are given out again."""
    import psutil

    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and any("guard.py" in part for part in process.cmdline())
    except psutil.Error:
        return False
