"""Runs a command and ends it when whoever asked for it is gone, also when that process was killed outright.

    python -m irlops.registry.guard PARENT_PID [--grace-s SECONDS] COMMAND...

It stays between the two: it watches its parent (twice a second), passes SIGTERM and SIGINT on to the command's whole
process group, and exits with the command's code. SIGUSR1 tells it to stop watching: the command then outlives the
parent. PR_SET_PDEATHSIG alone is not enough: it fires when the *thread* that started the process ends, it is lost in
grandchildren, and only Linux has it; here it covers the case that the guard itself is killed.

Asked to stop, the command has SECONDS to end by itself (a training job saves its state); SIGUSR2 ends the wait.
When the parent is gone nobody waits for what the command would save: it gets a few seconds at most.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

_WATCH_EVERY_S = 0.5
_GRACE_S = 5.0
_POLL_S = 0.05
_PR_SET_PDEATHSIG = 1


def run_guarded(parent_pid: int, command: list[str], grace_s: float = _GRACE_S) -> int:
    """Run ``command`` until it ends, a signal asks for its end, or the parent is gone; the command's exit code."""
    wake, stopping, hurrying, detached = (threading.Event() for _ in range(4))

    def stop(*_: object) -> None:
        stopping.set()
        wake.set()

    for stop_signal in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop_signal, stop)
    signal.signal(signal.SIGUSR1, lambda *_: detached.set())
    signal.signal(signal.SIGUSR2, lambda *_: hurrying.set())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # The guard has no threads yet, so running code between fork and exec is safe here.
    child = subprocess.Popen(command, start_new_session=True, preexec_fn=_end_with_the_guard)
    try:
        while child.poll() is None and not stopping.is_set():
            if not detached.is_set() and os.getppid() != parent_pid:
                break
            wake.wait(_WATCH_EVERY_S)
    finally:
        _end_group(child, grace_s if stopping.is_set() else min(grace_s, _GRACE_S), hurrying)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _end_with_the_guard() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end_group(child: subprocess.Popen[bytes], grace_s: float, hurrying: threading.Event) -> None:
    for ending in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, ending)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + grace_s
        while child.poll() is None and not hurrying.is_set() and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    child.wait()


def _main(argv: list[str]) -> int:
    parent_pid, *rest = argv
    if rest[0] == "--grace-s":
        return run_guarded(int(parent_pid), rest[2:], float(rest[1]))
    return run_guarded(int(parent_pid), rest)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
