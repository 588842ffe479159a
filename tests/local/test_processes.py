"""Child processes end with whoever started them, and what they said last is kept."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from irlops.errors import ConfigError, StorageError
from irlops.local.processes import claim_port, describe_exit, start_supervised, stop_all
from support.servers import descendants_of, wait_until_gone

# Starts a grandchild that ignores SIGTERM, says so, and waits.
STUBBORN_FAMILY = (
    "import signal, subprocess, sys, time;"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
    "print('ready', flush=True); time.sleep(600)"
)


def _wait_for(log_file: Path, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in log_file.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_command_that_ends_leaves_its_exit_code_and_last_lines(tmp_path: Path):
    program = "for i in range(20): print('line', i)\nraise SystemExit(7)"
    process = start_supervised("counter", [sys.executable, "-c", program], log_file=tmp_path / "counter.log")
    assert process.guard_process.wait(20) == 7
    assert process.last_lines(2) == "line 18\nline 19"


def test_a_silent_command_says_so(tmp_path: Path):
    process = start_supervised("silent", [sys.executable, "-c", ""], log_file=tmp_path / "silent.log")
    process.guard_process.wait(20)
    assert process.last_lines() == "(it printed nothing)"


def test_stopping_ends_grandchildren_and_whoever_ignores_sigterm(tmp_path: Path):
    process = start_supervised("family", [sys.executable, "-c", STUBBORN_FAMILY], log_file=tmp_path / "family.log")
    _wait_for(process.log_file, "ready")
    family = descendants_of(process.guard_process.pid)
    assert len(family) == 3  # the guard, the command, its child
    process.stop()
    assert wait_until_gone(family) == set()


def test_several_are_stopped_at_the_same_time(tmp_path: Path):
    sleep = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(600)"]
    processes = [start_supervised(str(index), sleep, log_file=tmp_path / f"{index}.log") for index in range(3)]
    for process in processes:
        _wait_for(process.log_file, "ready")
    stop_all(processes)
    assert [process.exit_code for process in processes] == [128 + signal.SIGTERM] * 3


def _owner(tmp_path: Path, then: str) -> subprocess.Popen[bytes]:
    """A process that supervises the stubborn family, does ``then``, and waits."""
    program = f"""
import sys, time
from pathlib import Path
from irlops.local.processes import start_supervised
process = start_supervised("family", [sys.executable, "-c", {STUBBORN_FAMILY!r}], log_file=Path("family.log"))
while "ready" not in Path("family.log").read_text(): time.sleep(0.05)
{then}
Path("started").write_text(str(process.guard_process.pid))
time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path)
    deadline = time.monotonic() + 30
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return owner


def test_an_owner_killed_outright_leaves_nothing_alive(tmp_path: Path):
    owner = _owner(tmp_path, "")
    everyone = descendants_of(owner.pid)
    assert len(everyone) == 4
    owner.kill()
    owner.wait()
    assert wait_until_gone(everyone) == set()


def test_a_released_process_outlives_its_owner_until_its_guard_is_asked(tmp_path: Path):
    owner = _owner(tmp_path, "process.release()")
    family = descendants_of(owner.pid) - {owner.pid}
    owner.kill()
    owner.wait()
    time.sleep(1.5)  # the guard looks twice a second
    assert wait_until_gone(family, timeout_s=0) == family
    os.kill(int((tmp_path / "started").read_text()), signal.SIGTERM)
    assert wait_until_gone(family) == set()


def test_a_port_in_use_is_named_with_who_wanted_it():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Port {port} for the gateway can't be taken"):
            claim_port(port, what="the gateway")


def test_without_a_wish_a_free_port_is_taken():
    assert claim_port(None) > 0


def test_a_log_that_cant_be_written_is_an_error_of_storage(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="can't be written"):
        start_supervised("x", ["true"], log_file=tmp_path / "file" / "x.log")


@pytest.mark.parametrize(("code", "words"), [(2, "exit code 2"), (137, "killed by SIGKILL"), (200, "exit code 200")])
def test_exit_codes_are_put_in_words(code: int, words: str):
    assert describe_exit(code) == words
