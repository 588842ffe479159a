"""Child processes that never outlive us, and whose last words are kept.

    start_supervised("critic", [...], log_file=...) -> SupervisedProcess -> stop()

Between us and the command sits the guard (``irlops.registry.guard``): it ends the command's whole process group when
we ask for it, and also when we are gone, however we went. What the command prints goes to a file, never to a pipe that
could fill up.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from irlops.errors import ConfigError, StorageError
from irlops.registry import guard

LOOPBACK = "127.0.0.1"
_LOG_TAIL_BYTES = 65_536
_GRACE_S = 5.0
# The guard gives the command its grace after SIGTERM and as long after SIGKILL; this is both, and a little.
_STOP_TIMEOUT_S = 12.0


@dataclass(frozen=True)
class SupervisedProcess:
    """A running (or ended) command.

    Made by ``start_supervised``; its owner calls ``stop`` when done.
    Example: ``SupervisedProcess(name="critic", log_file=Path("logs/critic.log"), guard_process=...)``.
    """

    name: str
    """What messages call it."""
    log_file: Path
    """Its standard output and error."""
    guard_process: subprocess.Popen[bytes]
    """The guard; it ends when the command has ended, with the command's exit code (128 + N after signal N)."""

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self.guard_process.poll()

    @property
    def is_running(self) -> bool:
        return self.exit_code is None

    def last_lines(self, count: int = 8) -> str:
        """The end of what it printed, empty lines left out."""
        try:
            with self.log_file.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
                text = log.read().decode(errors="replace")
        except OSError:
            text = ""
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        return "\n".join(lines[-count:]) or "(it printed nothing)"

    def release(self) -> int:
        """Let it outlive us, once it runs; the guard's process id: SIGTERM to it ends everything."""
        self.guard_process.send_signal(signal.SIGUSR1)
        self.guard_process.returncode = (
            0  # ours no longer: keeps the interpreter from warning about a child left behind
        )
        return self.guard_process.pid

    def ask_to_stop(self) -> None:
        """Send SIGTERM and return at once; who does not follow within the grace gets SIGKILL."""
        if self.is_running:
            self.guard_process.terminate()

    def hurry(self) -> None:
        """End the grace: SIGKILL now, when it has been asked to stop."""
        if self.is_running:
            self.guard_process.send_signal(signal.SIGUSR2)

    def stop(self, timeout_s: float = _STOP_TIMEOUT_S) -> None:
        """End it with all its descendants, and wait for that."""
        self.ask_to_stop()
        try:
            self.guard_process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.guard_process.kill()  # the kernel then ends the command
            self.guard_process.wait()


def start_supervised(
    name: str,
    command: Sequence[str],
    *,
    log_file: Path,
    environment: Mapping[str, str] | None = None,
    working_dir: Path | None = None,
    grace_s: float = _GRACE_S,
) -> SupervisedProcess:
    """Start ``command`` so that it ends with this process.

    Args:
        name: What messages call it.
        command: The program and its arguments.
        log_file: Gets its output; an older file is overwritten.
        environment: Its whole environment; None takes ours.
        working_dir: None takes ours.
        grace_s: How long it may take to end after SIGTERM, for example to save its state. A process with a long grace is
            stopped with an equally long ``stop(timeout_s)``.

    Raises:
        StorageError: the log file can't be written.
    """
    try:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        log = log_file.open("wb")
    except OSError as error:
        raise StorageError(
            f"The log {log_file} of {name} can't be written ({error.strerror}). Free space, or choose another folder."
        ) from error
    with log:
        process = subprocess.Popen(
            # Isolated and without site-packages: the guard needs only the standard library and starts in milliseconds.
            [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), "--grace-s", str(grace_s), *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=None if environment is None else dict(environment),
            cwd=working_dir,
            start_new_session=True,  # Ctrl-C in the terminal is for us; we stop our children in order
        )
    return SupervisedProcess(name=name, log_file=log_file, guard_process=process)


def stop_all(processes: Sequence[SupervisedProcess], timeout_s: float = _STOP_TIMEOUT_S) -> None:
    """End several at the same time: asked all at once, waited for together, last started first."""
    for process in reversed(processes):
        process.ask_to_stop()
    deadline = time.monotonic() + timeout_s
    for process in reversed(processes):
        process.stop(max(0.1, deadline - time.monotonic()))


def claim_port(port: int | None, *, what: str = "the server") -> int:
    """A port on the loopback interface that nothing listens on.

    Args:
        port: The wanted one; None or 0 takes a free one.
        what: Who wants it, for the message.

    Raises:
        ConfigError: the port is in use.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port or 0))
        except OSError as error:
            raise ConfigError(
                f"Port {port} for {what} can't be taken ({error.strerror}). Stop what listens there, or choose another "
                "port; 0 takes a free one."
            ) from error
        return probe.getsockname()[1]


def describe_exit(exit_code: int) -> str:
    """An exit code in words: ``exit code 2``, ``killed by SIGKILL``."""
    if exit_code > 128 and exit_code - 128 in {int(known) for known in signal.Signals}:
        return f"killed by {signal.Signals(exit_code - 128).name}"
    return f"exit code {exit_code}"
