"""The whole loop at miniature size, and what is left of it when somebody stops it halfway."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from irlops.contracts.summary import Summary
from support.servers import answers, descendants_of, wait_until_gone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

_SMALL_DATA = {"num_train": 200, "num_dev": 16, "num_test": 8}
_MINIATURE = {
    "sft": {"num_steps": 20, "batch_size": 8, "optimizer.warmup_steps": 2},
    "airl": {
        "num_rounds": 3,
        "prompts_per_round": 4,
        "rollouts.samples_per_prompt": 4,
        "rollouts.max_new_tokens": 32,
        "critic.warmup_rounds": 1,
        "critic.branch_warmup_updates": 2,
        "evaluate_every": 3,
        "evaluate_prompts": 8,
    },
    "evaluate": {
        "num_dev_problems": 8,
        "num_corrupted": 8,
        "bootstrap_resamples": 100,
        "rollouts.max_new_tokens": 48,
    },
}


@dataclass
class RunningDemo:
    """The command in a process of its own, with what it has printed and whoever it has started."""

    process: subprocess.Popen[bytes]
    output_file: Path
    seen_pids: set[int]

    @property
    def output(self) -> str:
        return self.output_file.read_text()

    def wait_for(self, text: str, timeout_s: float = 1000.0) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.output:
            self.seen_pids |= descendants_of(self.process.pid)
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.1)

    def wait_for_workers(self, count: int) -> None:
        """Until so many processes run a job's own module."""
        deadline = time.monotonic() + 1000
        while self._num_workers() < count:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.1)

    def _num_workers(self) -> int:
        self.seen_pids |= descendants_of(self.process.pid)
        commands: list[list[str]] = []
        for pid in self.seen_pids:
            with suppress(psutil.Error):
                commands.append(psutil.Process(pid).cmdline())
        return sum("irlops_jobs.sft" in command for command in commands)

    def end_with(self, ending: signal.Signals) -> tuple[int, set[int]]:
        """Exit code, and whoever is still there."""
        self.seen_pids |= descendants_of(self.process.pid)
        self.process.send_signal(ending)
        exit_code = self.process.wait(120)
        return exit_code, wait_until_gone(self.seen_pids)


@contextmanager
def running_demo(folder: Path, *options: str) -> Iterator[RunningDemo]:
    settings = [
        f"--set={stage}.{key}={value}"
        for stage, values in _MINIATURE.items()
        for key, value in {**values, **{f"data.{name}": size for name, size in _SMALL_DATA.items()}}.items()
    ]
    command = [
        sys.executable,
        "-m",
        "irlops.cli.main",
        "demo",
        "--output-dir",
        str(folder / "out"),
        *settings,
        *options,
    ]
    environment = {**os.environ, "IRLOPS_HOME": str(folder / "home"), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        yield RunningDemo(process, folder / "output", {process.pid})
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Finished:
    """What one whole run left and printed."""

    summary: Summary
    output: str
    folder: Path
    gateway_models: list[str]
    mlflow_answered: bool
    exit_code: int
    still_alive: set[int]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One run with --keep, asked while it still serves, and ended with Ctrl-C."""
    folder = tmp_path_factory.mktemp("demo")
    with running_demo(folder, "--seed", "7", "--keep") as demo:
        demo.wait_for("Ctrl-C ends all of it")
        summary = Summary.model_validate_json((folder / "out" / "summary.json").read_text())
        with urllib.request.urlopen(f"{summary.urls.gateway}/v1/models", timeout=10) as answer:
            models = [model["id"] for model in json.load(answer)["data"]]
        mlflow_answered = answers(f"{summary.urls.mlflow}/health")
        exit_code, alive = demo.end_with(signal.SIGINT)
        return Finished(summary, demo.output, folder, models, mlflow_answered, exit_code, alive)


def test_one_command_runs_the_whole_loop(finished: Finished) -> None:
    names = [stage.name for stage in finished.summary.stages]
    assert names == ["data", "mlflow", "sft", "airl", "evaluate", "register", "serve", "ask"]
    assert finished.summary.seed == 7
    assert set(finished.summary.evaluations) == {"untrained", "sft", "airl"}
    assert {row.seed for row in finished.summary.evaluations.values()} == {7}
    assert 0 < finished.summary.peak_rss_mib < 4096
    assert sum(stage.wall_s for stage in finished.summary.stages) <= finished.summary.wall_s


def test_the_pair_is_registered_with_its_evaluation_and_promoted(finished: Finished) -> None:
    pair = finished.summary.pair
    assert (pair.policy.version, pair.critic.version, pair.aliases) == (1, 1, ("champion",))
    assert pair.evaluation is not None
    assert pair.evaluation.metrics["pass_at_k.1"] == finished.summary.evaluations["airl"].pass_at_k[1].mean
    assert pair.lineage.run_id is not None
    assert pair.lineage.data_digest is not None


def test_the_answer_was_chosen_among_sixteen_scored_candidates(finished: Finished) -> None:
    rerank = finished.summary.answer.rerank
    assert (rerank.candidates_sampled, rerank.candidates_scored, rerank.degraded) == (16, 16, None)
    chosen = next(one for one in rerank.candidates if one.index == rerank.chosen_index)
    assert chosen.text == finished.summary.answer.text
    assert chosen.token_rewards


def test_the_critic_is_served_with_the_calibration_that_its_evaluation_fitted(finished: Finished) -> None:
    policy_dir = finished.summary.pair.critic.local_path
    assert policy_dir is not None
    fitted = finished.summary.evaluations["airl"].calibration
    assert json.loads((policy_dir / "calibration.json").read_text()) == json.loads(
        fitted.model_dump_json(by_alias=True)
    )


def test_report_and_pictures_lie_beside_the_summary(finished: Finished) -> None:
    out = finished.folder / "out"
    assert "<html" in (out / "report.html").read_text().lower()
    pictures = sorted(file.name for file in out.glob("*.png"))
    assert len(pictures) >= 4
    assert all(name in finished.output for name in pictures)


def test_the_end_shows_the_table_and_the_addresses(finished: Finished) -> None:
    rows = [
        line.split()[0] for line in finished.output.splitlines() if line.startswith(("untrained ", "SFT ", "AIRL "))
    ]
    assert rows == ["untrained", "SFT", "AIRL"]
    assert finished.summary.urls.gateway in finished.output
    assert finished.summary.urls.mlflow in finished.output


def test_kept_servers_answer_until_ctrl_c_and_leave_nothing_behind(finished: Finished) -> None:
    assert {"policy", "reranked"} <= set(finished.gateway_models)
    assert finished.mlflow_answered
    assert (finished.exit_code, finished.still_alive) == (0, set())


@pytest.mark.parametrize(
    ("ending", "exit_code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)],
    ids=["Ctrl-C", "SIGTERM", "a crash"],
)
def test_a_demo_that_is_stopped_while_it_trains_leaves_nothing_alive(
    tmp_path: Path, ending: signal.Signals, exit_code: int
) -> None:
    with running_demo(tmp_path, "--set", "sft.num_steps=100000") as demo:
        demo.wait_for_workers(2)
        assert demo.end_with(ending) == (exit_code, set()), demo.output


def test_a_demo_that_is_stopped_while_servers_start_leaves_nothing_alive(tmp_path: Path) -> None:
    with running_demo(tmp_path) as demo:
        demo.wait_for("[2/8]")
        assert demo.end_with(signal.SIGTERM) == (143, set()), demo.output
        assert "Stopping what still runs" in demo.output


def test_a_job_that_fails_ends_the_demo_with_one_message_and_its_logs(tmp_path: Path) -> None:
    with running_demo(tmp_path, "--set", "sft.data.num_train=4") as demo:
        assert demo.process.wait(1000) == 2, demo.output
        last = demo.output.strip().splitlines()[-1]
        assert last.startswith("Error: sft-tiny failed after")
        assert "4 demonstrations are fewer than one batch of 8" in last
        assert "worker-0.log" in last
        assert wait_until_gone(demo.seen_pids) == set()
