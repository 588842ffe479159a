"""The guard warns at the first bad check and gives up only after its patience."""

import pytest

from irlops.contracts.jobs import CollapseConfig
from irlops_jobs.collapse import CollapseGuard

HEALTHY = {"dev/auroc": 0.8, "dev/group_std": 0.5, "dev/accuracy": 0.6, "dev/truncated": 0.0, "policy/kl": 0.1}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"dev/auroc": 0.5}, "AUROC 0.500 is below 0.600"),
        ({"dev/group_std": 0.0}, "spread within a question 0.000 is below"),
        ({"dev/truncated": 0.9}, "truncated part of samples 0.900 is above"),
        ({"policy/kl": 3.0}, "KL to the warm start"),
        ({"dev/accuracy": 0.3}, "accuracy on held-out questions 0.300 is below 0.450"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_every_sign_of_collapse_is_named_with_its_number(change, told):
    guard = CollapseGuard(CollapseConfig())
    guard.judge(HEALTHY)
    verdict = guard.judge(HEALTHY | change)
    assert not verdict.is_healthy
    assert told in "; ".join(verdict.warnings)


def test_one_bad_check_is_a_warning_and_patience_ends_in_a_roll_back():
    guard = CollapseGuard(CollapseConfig(patience=2))
    bad = HEALTHY | {"dev/auroc": 0.4}
    assert [guard.judge(m).should_roll_back for m in (HEALTHY, bad, HEALTHY, bad, bad)] == [False] * 4 + [True]


def test_the_last_check_needs_no_second_one_because_its_pair_would_be_published():
    guard = CollapseGuard(CollapseConfig(patience=2))
    guard.judge(HEALTHY)
    assert guard.judge(HEALTHY | {"dev/auroc": 0.4}, is_last=True).should_roll_back
    assert not CollapseGuard(CollapseConfig(patience=2)).judge(HEALTHY, is_last=True).should_roll_back


@pytest.mark.parametrize("key", sorted(HEALTHY))
def test_a_number_that_is_none_is_a_sign_of_collapse(key):
    assert not CollapseGuard(CollapseConfig()).judge(HEALTHY | {key: float("nan")}).is_healthy


def test_a_run_that_may_only_warn_never_rolls_back():
    guard = CollapseGuard(CollapseConfig(action="warn", patience=1))
    assert not guard.judge(HEALTHY | {"dev/auroc": 0.1}, is_last=True).should_roll_back


def test_a_resumed_guard_remembers_the_best_accuracy_and_its_patience():
    guard = CollapseGuard(CollapseConfig(patience=2))
    guard.judge(HEALTHY)
    guard.judge(HEALTHY | {"dev/accuracy": 0.1})
    resumed = CollapseGuard(CollapseConfig(patience=2))
    resumed.restore(guard.state())
    assert resumed.judge(HEALTHY | {"dev/accuracy": 0.1}).should_roll_back


def test_what_was_not_measured_is_not_judged():
    assert CollapseGuard(CollapseConfig()).judge({"dev/accuracy": 0.5}).is_healthy
