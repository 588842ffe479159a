"""Platt's fit and calibration errors by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from irlops.contracts.evaluation import Calibration
from irlops_jobs.evaluation.bootstrap import Bootstrap
from irlops_jobs.evaluation.calibrating import Reliability, fit_calibration, fit_temperature
from support.scored_samples import problem, sample, table_of
from support.scored_worlds import draw_world

TWO = Bootstrap.of(2, seed=0, num_resamples=200)


def chance(reward: float, fitted: tuple[float, float]) -> float:
    return Calibration(temperature=fitted[0], bias=fitted[1]).probability(reward)


def test_platts_fit_by_hand():
    # Reward 1: 3 of 4 right; -1: 1 of 4. Platt's targets are 5/6 and 1/6, so at 1 their mean is (3 x 5/6 + 1/6) / 4 = 2/3:
    # log-odds log 2 at 1 and -log 2 at -1, a temperature of 1 / log 2 without bias.
    reward = np.array([[1.0, 1, 1, 1], [-1.0, -1, -1, -1]])
    right = np.array([[True, True, True, False], [True, False, False, False]])
    assert fit_temperature(reward, right) == pytest.approx((1 / math.log(2), 0.0), abs=1e-3)


def test_a_known_temperature_and_bias_are_found_again():
    table, truth = draw_world(separation=2.0, solve_rates=(2000.0, 1000.0), num_problems=800)
    temperature, bias = fit_temperature(table.reward_by("mean"), table.right_PN)
    assert temperature == pytest.approx(truth.temperature, rel=0.06)
    assert bias == pytest.approx(truth.bias, abs=0.05)


def test_rewards_without_spread_give_everyone_the_base_rate():
    # 1 right of 4: targets 2/3 and 3 x 1/5, mean 0.3167
    fitted = fit_temperature(np.ones((1, 4)), np.array([[True, False, False, False]]))
    assert chance(1.0, fitted) == pytest.approx((2 / 3 + 3 / 5) / 4, abs=1e-4)


def test_only_right_samples_give_a_finite_fit():
    # target (4 + 1) / (4 + 2) for all
    fitted = fit_temperature(np.array([[1.0, 2.0, 3.0, 4.0]]), np.ones((1, 4), bool))
    assert all(map(math.isfinite, fitted))
    assert chance(2.5, fitted) == pytest.approx(5 / 6, abs=0.01)


def test_perfectly_separated_samples_get_a_finite_temperature():
    temperature, bias = fit_temperature(np.array([[1.0, 2.0, -1.0, -2.0]]), np.array([[True, True, False, False]]))
    assert 0 < temperature < 10
    assert bias == pytest.approx(0.0, abs=0.01)


def test_a_critic_that_sorts_the_wrong_way_round_gives_nearly_the_base_rate():
    fitted = fit_temperature(np.array([[-1.0, -1.0, 1.0, 1.0]]), np.array([[True, True, False, False]]))
    assert chance(1.0, fitted) == pytest.approx(0.5, abs=0.01)
    assert chance(1.0, fitted) > chance(-1.0, fitted)


def test_without_any_reward_nothing_is_fitted():
    assert fit_temperature(np.full((1, 2), np.nan), np.array([[True, False]])) == (1.0, 0.0)


def test_the_aggregation_that_sorts_best_is_chosen():
    # By the lowest token right samples (0.5) lie above wrong ones (0); by the mean (1, 2) below, and by the last as well.
    dev = table_of(problem(sample("5", 1.5, 0.5, 1.0), sample("6", 4.0, 0.0, 2.0)))
    assert fit_calibration(dev).aggregation == "min"


def test_all_right_leaves_the_mean():
    assert fit_calibration(table_of(problem(sample("5", 1.0), sample("5", 2.0)))).aggregation == "mean"


def test_ece_by_hand():
    # Two at 0.95, one of them right: |1.9 - 1|; two at 0.05, none right: |0.1 - 0|. (0.9 + 0.1) / 4
    reliability = Reliability.of(np.array([[0.95, 0.95], [0.05, 0.05]]), np.array([[True, False], [False, False]]))
    assert reliability.ece(TWO).mean == pytest.approx(0.25)


def test_chances_that_come_true_have_no_error():
    right = np.array([[True] * 3 + [False], [True] * 3 + [False]])
    assert Reliability.of(np.full((2, 4), 0.75), right).ece(TWO).mean == pytest.approx(0.0)


def test_opposite_errors_in_different_bins_do_not_cancel():
    reliability = Reliability.of(np.array([[0.1, 0.9]]), np.array([[True, False]]))
    assert reliability.ece(Bootstrap.of(1, seed=0)).mean == pytest.approx(0.9)


def test_empty_bins_are_null_and_certainty_belongs_to_the_last_bin():
    bins = Reliability.of(np.array([[1.0, 0.0]]), np.array([[True, False]])).bins()
    assert [one.num_samples for one in bins] == [1] + [0] * 13 + [1]
    assert (bins[-1].predicted, bins[-1].observed) == (1.0, 1.0)
    assert (bins[1].predicted, bins[1].observed) == (None, None)


def test_samples_without_a_reward_have_no_chance():
    nothing = Reliability.of(np.full((2, 1), np.nan), np.array([[True], [False]]))
    assert nothing.ece(TWO).mean is None
