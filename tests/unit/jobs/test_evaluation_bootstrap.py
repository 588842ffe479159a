"""Bootstrap intervals in cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from irlops_jobs.evaluation.bootstrap import Bootstrap, weighted_auroc


def test_two_problems_give_their_two_values_as_interval():
    # Resampled means are 0, 1/2 and 1 with chances 1/4, 1/2, 1/4: the outer 2.5 % lie at 0 and 1.
    estimate = Bootstrap.of(2, seed=0).mean(np.array([0.0, 1.0]))
    assert (estimate.mean, estimate.ci95) == (0.5, (0.0, 1.0))


def test_equal_values_leave_no_doubt():
    assert Bootstrap.of(50, seed=0).mean(np.full(50, 0.25)).ci95 == pytest.approx((0.25, 0.25))


def test_many_problems_agree_with_the_normal_interval():
    # 400 coins: 1.96 sqrt(0.25 / 400) = 0.049
    values = np.array([0.0, 1.0] * 200)
    low, high = Bootstrap.of(400, seed=0, num_resamples=4000).mean(values).ci95 or (0, 0)
    assert (low, high) == pytest.approx((0.451, 0.549), abs=0.005)


def test_problems_without_a_number_are_left_out():
    assert Bootstrap.of(3, seed=0).mean(np.array([np.nan, 0.5, 0.5])).mean == 0.5


def test_without_any_number_the_mean_is_null_and_not_nan():
    estimate = Bootstrap.of(2, seed=0).mean(np.array([np.nan, np.nan]))
    assert (estimate.mean, estimate.ci95) == (None, None)


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).random(30)
    assert Bootstrap.of(30, seed=7).mean(values) == Bootstrap.of(30, seed=7).mean(values)


def test_auroc_counts_ties_as_half():
    # right 2, 1 against wrong 1, 0: 1 + 1 + 1/2 + 1 of 4 pairs
    scores, right = np.array([2.0, 1.0, 1.0, 0.0]), np.array([True, True, False, False])
    assert weighted_auroc(scores, right, np.ones((1, 4))) == pytest.approx([3.5 / 4])


def test_auroc_of_equal_scores_is_a_half():
    assert weighted_auroc(np.zeros(4), np.array([True, False, True, False]), np.ones((1, 4))) == pytest.approx([0.5])


def test_a_weight_of_two_counts_a_sample_twice():
    # right 1 (twice), wrong 2 and 0: (0 + 1) x 2 of 4 pairs; without the wrong 0: none of 2
    scores, right = np.array([1.0, 2.0, 0.0]), np.array([True, False, False])
    weights = np.array([[2.0, 1.0, 1.0], [2.0, 1.0, 0.0]])
    assert weighted_auroc(scores, right, weights) == pytest.approx([0.5, 0.0])


def test_auroc_is_null_when_every_sample_is_right():
    estimate = Bootstrap.of(2, seed=0).auroc(np.array([1.0, 2.0]), np.array([True, True]), np.array([0, 1]))
    assert (estimate.mean, estimate.ci95) == (None, None)


def test_auroc_is_null_without_any_sample():
    nothing = np.array([])
    assert Bootstrap.of(2, seed=0).auroc(nothing, nothing.astype(bool), nothing.astype(int)).mean is None


def test_aurocs_interval_resamples_whole_problems():
    # Each problem alone sorts perfectly (1) or perversely (0). Drawn together they give 1/2, so the interval is all of [0, 1].
    scores = np.array([1.0, 0.0, 0.0, 1.0])
    right, problem = np.array([True, False, True, False]), np.array([0, 0, 1, 1])
    estimate = Bootstrap.of(2, seed=0).auroc(scores, right, problem)
    assert (estimate.mean, estimate.ci95) == (0.5, (0.0, 1.0))
