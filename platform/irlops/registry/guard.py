"""Runs a command and ends it when whoever asked for it is gone, also when that process was killed outright.

    python -m irlops.registry.guard PARENT_PID COMMAND...

It stays between the two: it watches its parent (twice a second), passes SIGTERM and SIGINT on to the command's whole
process group, and exits with the command's code. SIGUSR1 tells it to stop watching: the command then outlives the
parent. PR_SET_PDEATHSIG alone is not enough: it fires when the *thread* that started the process ends, it is lost in
grandchildren, and only Linux has it; here it covers the case that the guard itself is killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading

_WATCH_EVERY_S = 0.5
_GRACE_S = 5.0
_PR_SET_PDEATHSIG = 1


def run_guarded(parent_pid: int, command: list[str]) -> int:
    """Run ``command`` until it ends, a signal asks for its end, or the parent is gone; the command's exit code."""
    wake, stopping, detached = threading.Event(), threading.Event(), threading.Event()

    def stop(*_: object) -> None:
        stopping.set()
        wake.set()

    for stop_signal in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop_signal, stop)
    signal.signal(signal.SIGUSR1, lambda *_: detached.set())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # The guard has no threads yet, so running code between fork and exec is safe here.
    child = subprocess.Popen(command, start_new_session=True, preexec_fn=_end_with_the_guard)
    try:
        while child.poll() is None and not stopping.is_set():
            if not detached.is_set() and os.getppid() != parent_pid:
                break
            wake.wait(_WATCH_EVERY_S)
    finally:
        _end_group(child)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _end_with_the_guard() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end_group(child: subprocess.Popen[bytes]) -> None:
    for ending in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, ending)
        except ProcessLookupError:
            break
        try:
            child.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            continue
    child.wait()


if __name__ == "__main__":
    sys.exit(run_guarded(int(sys.argv[1]), sys.argv[2:]))
