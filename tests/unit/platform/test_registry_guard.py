"""A guarded command never outlives the process that asked for it."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[3] / "platform"

# A command with a child of its own, as `mlflow server` has; it says their pids.
COMMAND = (
    "import subprocess, sys, os; c = subprocess.Popen(['sleep', '60']); print(os.getpid(), c.pid, flush=True); c.wait()"
)

PARENT = f"""
    import os, subprocess, sys
    command = [sys.executable, "-m", "irlops.registry.guard", str(os.getpid()), sys.executable, "-c", {COMMAND!r}]
    guard = subprocess.Popen(command, env={{**os.environ, "PYTHONPATH": {str(ROOT)!r}}}, start_new_session=True)
    print(guard.pid, flush=True)
    sys.stdin.read()
"""


class Family:
    """A parent, its guard, the guarded command and that command's child."""

    def __init__(self) -> None:
        self.parent = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PARENT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.parent.stdout is not None
        self.guard = psutil.Process(int(self.parent.stdout.readline()))
        self.guarded = [psutil.Process(int(pid)) for pid in self.parent.stdout.readline().split()]

    def kill_parent(self) -> None:
        self.parent.kill()
        self.parent.wait()

    def end(self) -> None:
        self.kill_parent()
        for process in [self.guard, *self.guarded]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        for stream in (self.parent.stdin, self.parent.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture
def family() -> Iterator[Family]:
    made = Family()
    yield made
    made.end()


@pytest.mark.parametrize(
    "ending",
    [Family.kill_parent, lambda family: family.guard.terminate()],
    ids=["when the parent is killed outright", "when the guard is asked to stop"],
)
def test_the_command_and_its_children_end(family: Family, ending: Callable[[Family], None]) -> None:
    ending(family)
    assert psutil.wait_procs(family.guarded, timeout=30)[1] == []


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels don't tell a child that its parent died")
def test_the_command_is_asked_to_stop_when_the_guard_itself_is_killed(family: Family) -> None:
    family.guard.kill()
    assert psutil.wait_procs(family.guarded[:1], timeout=30)[1] == []


def test_a_released_command_outlives_the_parent(family: Family) -> None:
    family.guard.send_signal(signal.SIGUSR1)
    family.kill_parent()
    assert psutil.wait_procs(family.guarded, timeout=1.5)[0] == []
    family.guard.terminate()
    assert psutil.wait_procs(family.guarded, timeout=30)[1] == []


@pytest.mark.parametrize(("command", "code"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_the_guard_exits_with_the_command_s_code(command: str, code: int) -> None:
    import os

    argv = [sys.executable, "-m", "irlops.registry.guard", str(os.getpid()), sys.executable, "-c", command]
    assert subprocess.run(argv, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60).returncode == code


SLOW_TO_END = (
    "import signal, time; signal.signal(signal.SIGTERM, lambda *_: None); print('ready', flush=True); time.sleep(60)"
)


def test_a_command_gets_its_grace_and_sigusr2_ends_it() -> None:
    import os

    argv = [sys.executable, "-m", "irlops.registry.guard", str(os.getpid()), "--grace-s", "50"]
    guard = subprocess.Popen(
        [*argv, sys.executable, "-c", SLOW_TO_END], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    assert guard.stdout is not None
    guard.stdout.readline()
    guard.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        guard.wait(1.0)
    guard.send_signal(signal.SIGUSR2)
    assert guard.wait(30) == 137  # 128 + SIGKILL
    guard.stdout.close()
