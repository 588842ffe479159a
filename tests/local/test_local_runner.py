"""The runner starts replicas again as the training operator would, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from irlops.errors import ConfigError, PermanentError, RetryableError
from irlops.local.training import LocalJobResult, run_pytorchjob
from support.servers import descendants_of, wait_until_gone
from support.training_manifests import pytorchjob, script, worker, write_manifest

# Ends with these codes, one at each start; a file in the claim counts the starts.
ENDS_WITH = """
import os, pathlib, sys
starts = pathlib.Path(os.environ["STATE"], "starts-" + os.environ.get("PET_NODE_RANK", "0"))
starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
code = {codes}[min(len(starts.read_text()), len({codes})) - 1]
print("Error: it ends with", code) if code else print("done")
sys.exit(code) if code >= 0 else os.kill(os.getpid(), -code)
"""
pytestmark = pytest.mark.slow

CLAIM = {
    "pod": {"volumes": [{"name": "state", "persistentVolumeClaim": {"claimName": "state"}}]},
    "volumeMounts": [{"name": "state", "mountPath": "/state"}],
    "env": [{"name": "STATE", "value": "/state"}],
}
SLEEPS = "import time; print('ready', flush=True); time.sleep(600)"


def run(folder: Path, job, **options) -> LocalJobResult:
    return run_pytorchjob(write_manifest(folder, job), state_dir=folder / "state", **options)


def ends_with(*codes: int, restart_policy: str = "ExitCode", **run_policy):
    program = ENDS_WITH.replace("{codes}", repr(list(codes)))
    return pytorchjob(workers=worker(restart_policy=restart_policy, **script(program), **CLAIM), runPolicy=run_policy)


@pytest.mark.parametrize(
    ("policy", "codes", "exit_code", "num_restarts"),
    [
        ("ExitCode", (0,), 0, 0),
        ("ExitCode", (143, 200, 0), 0, 2),
        ("ExitCode", (2, 0), 2, 0),
        ("ExitCode", (127, 0), 127, 0),
        ("ExitCode", (-signal.SIGKILL, 0), 0, 1),
        ("OnFailure", (2, 0), 0, 1),
        ("ExitCode", (201, 0), 201, 0),
        ("Never", (200, 0), 200, 0),
    ],
    ids=["success", "what may pass is tried again", "bad input is final", "127 is final", "killed: again", "OnFailure: again",
         "a full disk is the user's to clear", "Never"],
)  # fmt: skip
def test_a_replica_is_started_again_as_its_restart_policy_says(tmp_path: Path, policy, codes, exit_code, num_restarts):
    result = run(tmp_path, ends_with(*codes, restart_policy=policy))
    assert (result.exit_code, result.num_restarts) == (exit_code, num_restarts)
    assert len((tmp_path / "state/state/starts-0").read_text()) == num_restarts + 1


def test_restarts_end_when_the_backoff_limit_is_reached(tmp_path: Path):
    result = run(tmp_path, ends_with(200, backoffLimit=1))
    assert (result.exit_code, result.num_restarts) == (200, 1)
    assert result.reason == (
        "worker-0: exit code 200, and its 1 restarts are used up (runPolicy.backoffLimit). Error: it ends with 200"
    )
    with pytest.raises(RetryableError, match="job failed: worker-0: exit code 200"):
        result.raise_if_failed()


def test_a_final_failure_says_what_the_replica_said(tmp_path: Path):
    with pytest.raises(PermanentError, match=r"job failed: worker-0: exit code 2\. Error: it ends with 2"):
        run(tmp_path, ends_with(2)).raise_if_failed()


def test_the_last_line_of_a_traceback_is_the_reason(tmp_path: Path):
    program = "print('fine so far'); import nowhere_to_be_found"
    result = run(tmp_path, pytorchjob(workers=worker(**script(program))))
    assert result.reason == "worker-0: exit code 1. ModuleNotFoundError: No module named 'nowhere_to_be_found'"


def test_the_error_of_the_worker_that_failed_goes_before_its_peers_and_launchers(tmp_path: Path):
    program = """if True:
        print("Error (rank 1): data.num_train is too large")
        print("Error (rank 0): Another worker is gone: closed")
        print("Error: worker 1 ended with exit code 2. Its message stands above.")
        raise SystemExit(2)"""
    assert run(tmp_path, pytorchjob(workers=worker(**script(program)))).reason.endswith(
        "Error (rank 1): data.num_train is too large"
    )


def test_workers_of_an_elastic_job_that_succeed_a_little_later_are_not_interrupted(tmp_path: Path):
    program = """if True:
        import os, pathlib, time
        time.sleep(1.5 * (os.environ["PET_RDZV_CONF"] == "is_host=0"))
        pathlib.Path(os.environ["STATE"], os.environ["PET_RDZV_CONF"]).touch()"""
    result = run(tmp_path, pytorchjob(workers=worker(replicas=2, **script(program), **CLAIM), elasticPolicy={}))
    assert result.succeeded
    assert {file.name for file in (tmp_path / "state/state").iterdir()} == {"is_host=0", "is_host=1"}


def test_a_job_with_a_master_is_over_when_that_succeeds(tmp_path: Path):
    job = pytorchjob(master=worker(**script("pass")), workers=worker(**script("pass")))
    assert run(tmp_path, job).succeeded


def test_a_job_that_runs_too_long_is_stopped(tmp_path: Path):
    result = run(tmp_path, pytorchjob(workers=worker(**script(SLEEPS)), runPolicy={"activeDeadlineSeconds": 1}))
    assert result.exit_code == 1
    assert "longer than activeDeadlineSeconds, 1 s" in result.reason


def test_every_line_arrives_with_the_name_of_who_said_it_and_stays_in_a_log(tmp_path: Path):
    lines: list[tuple[str, str]] = []
    job = pytorchjob(workers=worker(replicas=2, **script("print('one\\ntwo', end='')")))
    result = run(tmp_path, job, on_line=lambda who, line: lines.append((who, line)))
    assert [line for who, line in lines if who == "worker-1"] == ["one", "two"]
    assert result.log_files["worker-0"].read_text() == "one\ntwo"


def test_two_runs_of_one_job_never_share_a_state_folder(tmp_path: Path):
    may_end = tmp_path / "may-end"
    program = f"""if True:
        import pathlib, time
        print('ready', flush=True)
        while not pathlib.Path({str(may_end)!r}).exists(): time.sleep(0.05)"""
    job = pytorchjob(workers=worker(**script(program)))
    ready = threading.Event()
    first = threading.Thread(target=run, args=(tmp_path, job), kwargs={"on_line": lambda *_: ready.set()})
    first.start()
    assert ready.wait(60)
    with pytest.raises(ConfigError, match="job already runs on"):
        run(tmp_path, job)
    may_end.touch()
    first.join(60)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_nothing_stays_alive_whatever_ends_the_command(tmp_path: Path, how: signal.Signals):
    # Each worker starts a child that would outlive it, and takes its time to save.
    program = (
        "import signal, subprocess, sys, time, pathlib, os;"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path(os.environ['STATE'], 'saved').touch(), sys.exit(143)));"
        "print('ready', flush=True); time.sleep(600)"
    )
    file = write_manifest(tmp_path, pytorchjob(workers=worker(replicas=2, **script(program), **CLAIM)))
    command = [
        sys.executable,
        "-m",
        "irlops.cli.main",
        "train",
        "-f",
        str(file),
        "--state-dir",
        str(tmp_path / "state"),
    ]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as irlops:
        seen = ""
        while seen.count("ready") < 2:
            seen += irlops.stdout.readline()
        family = descendants_of(irlops.pid)
        assert len(family) >= 6  # two guards, two workers, two children
        irlops.send_signal(how)
        irlops.stdout.read()
        irlops.wait(30)
    assert wait_until_gone(family, timeout_s=15) == set()
    assert (tmp_path / "state/state/saved").exists()
    if how != signal.SIGKILL:
        assert irlops.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[how]
