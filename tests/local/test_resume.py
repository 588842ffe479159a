"""A job that is stopped and started again ends bit for bit where it would have ended undisturbed."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from irlops.contracts.exit_codes import ExitCode, exit_code_for
from irlops.errors import CheckpointError, PreemptedError, StorageError
from support.miniature_jobs import miniature, recorded, run_here, sigterm_after, weights

pytestmark = pytest.mark.slow

HALVES = {"sft": ("policy",), "grpo": ("policy",), "airl": ("policy", "critic")}
DROPOUT = {"lora": {"rank": 4, "dropout": 0.1}}


def assert_equal(found: Path, expected: Path, kind: str) -> None:
    for half in HALVES[kind]:
        one, other = weights(found, half), weights(expected, half)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), half


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("sft", {}), ("sft", {"model": DROPOUT}), ("grpo", {}), ("airl", {})],
    ids=["sft", "sft with adapters and dropout", "grpo", "airl with replay and running rewards"],
)
def test_a_stopped_job_ends_where_an_undisturbed_one_does(tmp_path: Path, kind: str, changes):
    document = miniature(kind, **changes)
    undisturbed = run_here(document, tmp_path / "undisturbed")
    run_dir = tmp_path / "stopped" / f"mini-{kind}"
    with pytest.raises(PreemptedError) as stopped, sigterm_after(1, run_dir):
        run_here(document, tmp_path / "stopped")
    assert exit_code_for(stopped.value) == 143
    steps_done = max(recorded(run_dir))
    run_here(document, tmp_path / "stopped")
    assert 1 <= steps_done < max(recorded(run_dir))
    assert recorded(run_dir).keys() == recorded(undisturbed).keys()
    assert_equal(run_dir, undisturbed, kind)


def test_a_checkpoint_before_the_policys_first_update_changes_nothing(tmp_path: Path):
    # Its optimizer has no state yet when round 1, the critic's alone, is saved.
    seldom = run_here(miniature("airl", checkpoints={"every": 4}), tmp_path / "seldom")
    often = run_here(miniature("airl", checkpoints={"every": 1}), tmp_path / "often")
    assert_equal(often, seldom, "airl")


def test_a_job_that_had_ended_exports_the_same_again(tmp_path: Path):
    before = weights(run_here(miniature("sft"), tmp_path))
    after = weights(run_here(miniature("sft"), tmp_path))
    assert all(torch.equal(before[name], after[name]) for name in before)


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """The operating system refuses to write more into any file, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error from write() instead of a signal
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_leaves_the_last_checkpoint_and_the_job_goes_on_from_it_later(tmp_path: Path):
    document = miniature("sft", optimizer={"schedule": "constant"})
    undisturbed = run_here(document, tmp_path / "undisturbed")
    run_dir = tmp_path / "full" / "mini-sft"
    run_here({**document, "num_steps": 3}, tmp_path / "full")  # its only checkpoint is that of step 3
    with (
        files_of_at_most(200_000),
        pytest.raises(StorageError, match=r"Training can go on from 3; free space") as failed,
    ):
        run_here(document, tmp_path / "full")
    assert exit_code_for(failed.value) == ExitCode.STORAGE
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-000003"]
    run_here(document, tmp_path / "full")
    assert_equal(run_dir, undisturbed, "sft")


def test_a_torn_checkpoint_is_named_with_what_to_remove(tmp_path: Path):
    run_dir = run_here(miniature("sft"), tmp_path)
    [torn] = (run_dir / "checkpoints" / "step-000006").glob("*.distcp")
    os.truncate(torn, 1000)
    with pytest.raises(CheckpointError, match=r"step-000006 can't be read: .*Remove that folder"):
        run_here(miniature("sft", num_steps=9), tmp_path)


def test_a_checkpoint_of_another_run_is_not_resumed(tmp_path: Path):
    run_here(miniature("sft"), tmp_path)
    with pytest.raises(CheckpointError, match=r"seed: 0 there, 1 in the job file.*another run_name"):
        run_here(miniature("sft", seed=1), tmp_path)
