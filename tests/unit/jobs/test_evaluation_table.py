"""Samples as arrays: who is right, who agrees, what has no reward; and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from irlops.contracts.evaluation import Calibration
from irlops.errors import DataError
from irlops_jobs.evaluation.carriers import ScoredSample, ScoredSamples
from irlops_jobs.evaluation.table import is_well_formatted
from support.scored_samples import problem, sample, table_of


def test_answers_that_agree_share_a_class_and_gold_decides():
    table = table_of(problem(sample("5.0", 1.0), sample("6", 1.0), sample("$5", 1.0), sample(None, 1.0), gold="5"))
    assert table.answer_class_PN.tolist() == [[0, 1, 0, -1]]
    assert table.right_PN.tolist() == [[True, False, True, False]]


def test_the_strict_rule_is_kept_apart():
    table = table_of(problem(sample("5.0", 1.0), sample("5", 1.0), gold="5"))
    assert table.strictly_right_PN.tolist() == [[False, True]]


def test_a_truncated_sample_is_wrong_and_never_votes():
    table = table_of(problem(sample("5", 1.0, truncated=True), sample("5", 1.0)))
    assert table.right_PN.tolist() == [[False, True]]
    assert table.strictly_right_PN.tolist() == [[False, True]]
    assert table.answer_class_PN.tolist() == [[-1, 0]]


def test_an_empty_completion_has_no_reward_and_no_vote():
    table = table_of(problem(sample(None), sample("5", 1.0)))
    assert np.isnan(table.reward_by("min")[0, 0])
    assert table.candidates(0, "min")[0].token_rewards is None
    assert np.isnan(table.chance_of_being_right(Calibration())[0, 0])


def test_rewards_by_aggregation_and_over_the_answer_span():
    table = table_of(problem(sample("5", 1.0, 2.0, 6.0, span=2)))
    # discounted by 0.9: (6 + 0.9 x 2 + 0.81 x 1) / (1 + 0.9 + 0.81)
    assert [table.reward_by(name)[0, 0] for name in ("mean", "min", "last", "discounted")] == pytest.approx(
        [3.0, 1.0, 6.0, 8.61 / 2.71]
    )
    assert table.span_reward_PN[0, 0] == 4.0


def test_a_solution_without_an_answer_has_no_answer_span():
    assert np.isnan(table_of(problem(sample(None, 1.0, 2.0))).span_reward_PN[0, 0])


def test_log_probabilities_are_summed():
    assert table_of(problem(sample("5", 1.0, 1.0, logprob=-0.5))).logprob_PN.tolist() == [[-1.0]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2+3=5\n#### 5", True),
        ("2+3=5\n#### 5\n", True),
        ("#### 5", False),
        ("2+3=5\n#### 5 apples", False),
        ("a\n#### 5\nb\n#### 6", False),
        ("<think>2+3</think><answer>5</answer>", True),
        ("", False),
    ],
    ids=["as demonstrated", "a last line break", "no reasoning", "more behind it", "two answers", "tags", "empty"],
)
def test_what_counts_as_well_formatted(text: str, expected: bool):
    assert is_well_formatted(ScoredSample(text, "5", 1, (0.0,), (0.0,))) is expected


def test_no_problem_is_refused():
    with pytest.raises(DataError, match="test/airl holds no problem"):
        ScoredSamples.of([], "test/airl")


def test_different_numbers_of_samples_are_refused():
    with pytest.raises(DataError, match="different numbers of samples"):
        ScoredSamples.of([problem(sample("5", 1.0)), problem(sample("5", 1.0), sample("5", 1.0))])


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_broken_rewards_are_refused_by_name(broken: float):
    with pytest.raises(DataError, match="sample 1 of problem 0: token 1 of its rewards is"):
        ScoredSamples.of([problem(sample("5", 1.0), sample("5", 1.0, broken))])


def test_tokens_without_a_reward_are_refused():
    with pytest.raises(DataError, match="3 tokens but 1 rewards"):
        ScoredSamples.of([problem(ScoredSample("a", None, 3, (0.0,), (0.0, 0.0, 0.0)))])
