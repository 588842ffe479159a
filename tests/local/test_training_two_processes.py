"""Two real torchelastic workers with gloo learn what one process learns from the same global batch."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch import Tensor

from support.group_leavers import leave_groups
from support.miniature_jobs import Ended, launch, miniature, recorded, run_here, weights

pytestmark = pytest.mark.slow

NUM_GROUPS = 60
"""One in ten hung."""

LEARNED = {
    "sft": ("sft/loss", "sft/grad_norm", "dev/num_tokens"),
    "grpo": ("policy/loss", "policy/grad_norm", "policy/kl", "rollout/num_tokens", "dev/num_tokens"),
    "airl": (
        "critic/loss",
        "critic/num_corrupted",
        "critic/branch_loss",
        "critic/branch_accuracy",
        "reward/wrong",
        "policy/loss",
        "policy/kl",
        "rollout/num_tokens",
        "dev/group_std",
    ),
}
HALVES = {"sft": ("policy",), "grpo": ("policy",), "airl": ("policy", "critic")}


def mean_distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Mean absolute difference of all weights. A single one may differ by a whole step of AdamW: where a gradient is all
    but zero, rounding decides its sign."""
    assert one.keys() == other.keys()
    differences = torch.cat([(one[name] - other[name]).abs().flatten() for name in one])
    return float(differences.mean())


class Launched:
    """Each kind of job once, by two processes; the job itself refuses to export weights that differ between them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ended: dict[str, Ended] = {}

    def run_dir(self, kind: str) -> Path:
        if kind not in self._ended:
            self._ended[kind] = launch(miniature(kind), self._folder, num_processes=2)
        assert self._ended[kind].code == 0, self._ended[kind].output
        return self._folder / f"mini-{kind}"


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    return Launched(tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("kind", ["sft", "grpo", "airl"])
def test_two_processes_learn_what_one_learns_from_the_same_global_batch(by_two: Launched, tmp_path: Path, kind: str):
    one, two = run_here(miniature(kind), tmp_path), by_two.run_dir(kind)
    alone, together = recorded(one), recorded(two)
    assert alone.keys() == together.keys()
    for step, row in alone.items():
        for name in LEARNED[kind]:
            if name in row:
                assert together[step][name] == pytest.approx(row[name], rel=1e-2, abs=1e-4), (step, name)
    for half in HALVES[kind]:
        assert mean_distance(weights(two, half), weights(one, half)) < 1e-4


def test_a_job_of_two_processes_that_is_told_to_stop_goes_on_exactly_where_it_was(by_two: Launched, tmp_path: Path):
    stopped = launch(miniature("airl"), tmp_path, num_processes=2, sigterm_at="round    1/4")
    assert stopped.code == 143, stopped.output
    assert "asked to stop and saved its state" in stopped.output
    resumed = launch(miniature("airl"), tmp_path, num_processes=2)
    assert resumed.code == 0, resumed.output
    assert "resumed after round" in resumed.output
    for half in ("policy", "critic"):
        expected, found = weights(by_two.run_dir("airl"), half), weights(tmp_path / "mini-airl", half)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert list(recorded(tmp_path / "mini-airl")) == [0, 1, 2, 3, 4]


def test_weights_sharded_over_two_processes_learn_what_copies_learn(by_two: Launched, tmp_path: Path):
    ended = launch(miniature("sft", sharding="fsdp", evaluate_every=0), tmp_path, num_processes=2)
    assert ended.code == 0, ended.output
    copied, sharded = by_two.run_dir("sft"), tmp_path / "mini-sft"
    expected, found = recorded(copied), recorded(sharded)
    for step, row in expected.items():
        assert found[step]["sft/loss"] == pytest.approx(row["sft/loss"], rel=1e-4)
    assert mean_distance(weights(sharded), weights(copied)) < 1e-4


def test_muon_moves_sharded_matrices_as_it_moves_whole_ones(tmp_path: Path):
    muon = {"evaluate_every": 0, "optimizer": {"name": "muon", "learning_rate": 0.003}}
    whole = run_here(miniature("sft", **muon), tmp_path / "whole")
    ended = launch(miniature("sft", sharding="fsdp", **muon), tmp_path, num_processes=2)
    assert ended.code == 0, ended.output
    sharded = tmp_path / "mini-sft"
    for step, row in recorded(whole).items():
        assert recorded(sharded)[step]["sft/loss"] == pytest.approx(row["sft/loss"], rel=1e-3)
    assert mean_distance(weights(sharded), weights(whole)) < 1e-3


def test_leaving_a_group_never_hangs_while_its_last_barrier_is_still_being_let_go(tmp_path: Path):
    started = torch.multiprocessing.start_processes(
        leave_groups, (str(tmp_path), NUM_GROUPS), nprocs=2, join=False, start_method="spawn"
    )
    deadline_s = time.monotonic() + 120
    try:
        while not started.join(timeout=5):  # raises what a process raised
            assert time.monotonic() < deadline_s, (
                f"left only {len(list(tmp_path.glob('left-*')))} of {NUM_GROUPS} groups"
            )
    finally:
        for process in started.processes:
            process.kill()
