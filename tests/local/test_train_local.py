"""The shipped airl-tiny manifest on two local workers, at miniature size: a worker is killed, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest
from safetensors.numpy import load_file

from irlops.local.training import LocalJobResult, run_pytorchjob

pytestmark = pytest.mark.slow

MANIFEST = Path(__file__).parents[2] / "manifests" / "training" / "airl-tiny.yaml"
MINIATURE = {
    "model.policy_from": None,  # random weights will do
    "data.num_train": 64,
    "data.num_dev": 8,
    "data.num_test": 8,
    "num_rounds": 8,
    "prompts_per_round": 4,
    "rollouts.samples_per_prompt": 2,
    "rollouts.max_new_tokens": 16,
    "critic.warmup_rounds": 1,
    "critic.branch_warmup_updates": 2,
    "critic.branch_updates_per_round": 1,
    "critic.branch_batch_size": 4,
    "evaluate_every": 4,
    "evaluate_prompts": 8,
    "checkpoints.every": 3,
    "collapse.action": "warn",
}


def train(state_dir: Path, on_line=lambda who, line: None) -> LocalJobResult:
    return run_pytorchjob(MANIFEST, state_dir=state_dir, overrides=MINIATURE, on_line=on_line)


class Killer:
    """Sends SIGKILL to one process of the job when round 4 is done: the last checkpoint is that of round 3."""

    def __init__(self, program: str, node: str) -> None:
        self._program, self._node = program, node
        self.lines: list[str] = []
        self.has_killed = False

    def __call__(self, who: str, line: str) -> None:
        self.lines.append(line)
        if "round    4/8" in line and not self.has_killed:
            self.has_killed = True
            os.kill(self._victim().pid, signal.SIGKILL)

    def _victim(self) -> psutil.Process:
        for process in psutil.Process().children(recursive=True):
            if (
                process.cmdline()[-2:] == ["-m", self._program]
                and "--grace-s" not in process.cmdline()  # the guard names the command it guards
                and f"is_host={self._node}" in process.environ()["PET_RDZV_CONF"]
            ):
                return process
        raise AssertionError("no such process runs")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state_dir = tmp_path_factory.mktemp("undisturbed")
    assert train(state_dir).succeeded
    return state_dir / "irlops-state" / "airl-tiny"


@pytest.mark.parametrize(
    ("program", "node", "num_restarts"),
    [("irlops_jobs.airl", "0", 0), ("irlops_jobs.launch", "0", 1), ("irlops_jobs.launch", "1", 2)],
    ids=["a process inside a pod", "a whole pod", "the pod where all meet"],
)
def test_a_killed_worker_changes_nothing_of_what_is_learned(
    undisturbed: Path, tmp_path: Path, program: str, node: str, num_restarts: int
):
    killer = Killer(program, node)
    result = train(tmp_path, killer)
    assert result.succeeded, result.reason
    assert killer.has_killed
    assert result.num_restarts == num_restarts
    assert any("airl-tiny: resumed after round" in line for line in killer.lines)
    run_dir = tmp_path / "irlops-state" / "airl-tiny"
    for half in ("policy", "critic"):
        expected, found = (load_file(folder / half / "model.safetensors") for folder in (undisturbed, run_dir))
        assert expected.keys() == found.keys()
        assert all((expected[name] == found[name]).all() for name in expected)


def test_each_round_is_recorded_once(undisturbed: Path):
    rows = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(9))
