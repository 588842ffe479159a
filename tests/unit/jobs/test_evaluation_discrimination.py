"""How well rewards tell right from wrong, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from irlops_jobs.evaluation.bootstrap import Bootstrap
from irlops_jobs.evaluation.discrimination import auroc, auroc_within_question, pearson

TWO = Bootstrap.of(2, seed=0, num_resamples=200)
NAN = float("nan")


def test_difficulty_helps_over_all_samples_and_not_within_a_question():
    # An easy question with rewards 5 (right), 6 (wrong), a hard one with 0 (right), 1 (wrong).
    reward, right = np.array([[5.0, 6.0], [0.0, 1.0]]), np.array([[True, False], [True, False]])
    assert auroc(reward, right, TWO).mean == 0.25  # of four pairs only 5 > 1
    assert auroc_within_question(reward, right, TWO).mean == 0.0


def test_ties_within_a_question_count_as_half():
    # 1 = 1 counts half, 1 > 0 one: 1.5 of 2
    reward, right = np.array([[1.0, 1.0, 0.0]]), np.array([[True, False, False]])
    assert auroc_within_question(reward, right, Bootstrap.of(1, seed=0)).mean == 0.75


def test_without_a_pair_in_any_question_it_is_null():
    assert auroc_within_question(np.zeros((2, 2)), np.array([[True, True], [False, False]]), TWO).mean is None


def test_empty_completions_are_left_out():
    reward, right = np.array([[1.0, NAN], [0.0, NAN]]), np.array([[True, False], [False, True]])
    assert auroc(reward, right, TWO).mean == 1.0


def test_pearson_by_hand():
    # covariance 0.5, variances 1.25 and 0.25: 0.5 / sqrt(0.3125)
    reward, right = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[False, False], [True, True]])
    assert pearson(reward, right, TWO).mean == pytest.approx(0.894427, abs=1e-6)


def test_pearson_of_huge_rewards_keeps_its_digits():
    reward, right = np.array([[1.0, 2.0], [3.0, 4.0]]) + 1e9, np.array([[False, False], [True, True]])
    assert pearson(reward, right, TWO).mean == pytest.approx(0.894427, abs=1e-6)


@pytest.mark.parametrize(
    "right",
    [np.array([[True, True], [True, True]]), np.array([[False, False], [False, False]])],
    ids=["every sample is right", "no sample is right"],
)
def test_pearson_is_null_when_one_side_never_varies(right: np.ndarray):
    assert pearson(np.array([[1.0, 2.0], [3.0, 4.0]]), right, TWO).mean is None


def test_pearson_is_null_when_all_rewards_are_equal():
    assert pearson(np.ones((2, 2)), np.array([[True, False], [True, False]]), TWO).mean is None


def test_resamples_without_variation_are_left_out_of_the_interval():
    # Only the first of three problems has a wrong sample, with the lowest reward; resamples without it define nothing.
    reward, right = (
        np.array([[0.0, 3.0], [3.0, 3.1], [3.0, 3.1]]),
        np.array([[False, True], [True, True], [True, True]]),
    )
    low, high = pearson(reward, right, Bootstrap.of(3, seed=0)).ci95 or (0.0, 0.0)
    assert 0.9 < low <= high <= 1.0 + 1e-12
