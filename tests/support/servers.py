"""Real servers in processes of their own, for tests that talk to them over HTTP."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from irlops.local.processes import SupervisedProcess, claim_port, start_supervised


@contextmanager
def running_server(
    command: Sequence[str], log_file: Path, *, ready_path: str, timeout_s: float = 240.0
) -> Iterator[tuple[str, SupervisedProcess]]:
    """Start ``command --port P``, wait until it is ready, and yield its URL."""
    port = claim_port(None)
    process = start_supervised(log_file.stem, [*command, "--host", "127.0.0.1", "--port", str(port)], log_file=log_file)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(process, f"{url}{ready_path}", timeout_s)
        yield url, process
    finally:
        process.stop()


def wait_until_ready(process: SupervisedProcess, url: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not answers(url):
        assert process.is_running, f"{process.name} ended:\n{process.last_lines(20)}"
        assert time.monotonic() < deadline, f"{process.name} is not ready:\n{process.last_lines(20)}"
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def descendants_of(pid: int) -> set[int]:
    """Process ids below ``pid``, itself included; empty when it is gone."""
    import psutil

    try:
        process = psutil.Process(pid)
        return {pid, *(child.pid for child in process.children(recursive=True))}
    except psutil.NoSuchProcess:
        return set()


def is_alive(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(pids: set[int], timeout_s: float = 20.0) -> set[int]:
    """Those that are still there after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while (left := {pid for pid in pids if is_alive(pid)}) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left
