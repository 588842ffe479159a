"""Adaptive sampling, replayed: by hand, against the gateway's own lines, and in a world with known probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest

from irlops.contracts.evaluation import Calibration
from irlops.selection import is_settled, select
from irlops_jobs.evaluation.adaptive import Replay, choose_confidence
from irlops_jobs.evaluation.bootstrap import Bootstrap
from support.scored_samples import problem, sample, table_of
from support.scored_worlds import draw_world

SURE = math.log(0.75 / 0.25)  # a chance of 0.75


def replay_of(*confidences: float, right: list[float]) -> Replay:
    return Replay(np.array([[confidences]]), np.array([[right]]))


def test_sampling_stops_as_soon_as_the_rule_is_sure():
    spent, right = replay_of(0.5, 0.7, 0.95, 0.99, right=[0, 0, 1, 1]).stopped(0.9)
    assert (spent.tolist(), right.tolist()) == ([3.0], [1.0])


def test_two_samples_are_the_fewest():
    assert replay_of(0.99, 0.99, 0.99, right=[1, 1, 1]).stopped(0.9)[0].tolist() == [2.0]


def test_without_confidence_every_sample_is_spent():
    spent, right = replay_of(0.1, 0.1, 0.1, right=[1, 1, 0]).stopped(0.9)
    assert (spent.tolist(), right.tolist()) == ([3.0], [0.0])


def test_confidence_grows_by_hand_when_samples_agree():
    # odds 3 x 2 = 6 a sample against 4: 6/10, 36/40
    replay = Replay.of(table_of(problem(sample("5", SURE), sample("5", SURE))), Calibration(), seed=0, num_orders=1)
    assert replay.confidence_PON[0, 0] == pytest.approx([0.6, 0.9])
    assert replay.right_PON[0, 0].tolist() == [1.0, 1.0]


def test_a_problem_that_nobody_answers_is_wrong_at_every_count():
    replay = Replay.of(table_of(problem(sample(None, 1.0), sample(None, 1.0))), Calibration(), seed=0)
    assert replay.right_PON.sum() == 0
    assert replay.confidence_PON.sum() == 0


def test_the_replay_says_what_the_gateways_own_lines_say():
    table, calibration = draw_world(separation=1.5, solve_rates=(1, 1), num_problems=25, num_samples=8)
    replay = Replay.of(table, calibration, seed=3, num_orders=2)
    orders = np.random.default_rng(3)
    for order_index in range(2):
        order = orders.permutation(8)
        for number in range(25):
            candidates = [table.candidates(number, "mean")[i] for i in order]
            for count in range(1, 9):
                chosen = select(candidates[:count], "weighted_majority", calibration).index
                assert replay.right_PON[number, order_index, count - 1] == table.right_PN[number, order[chosen]]
                sure = replay.confidence_PON[number, order_index, count - 1] >= 0.9 and count > 1
                assert is_settled(candidates[:count], calibration, 0.9) == sure


def test_fixed_counts_and_confidences_become_points():
    replay = replay_of(0.5, 0.95, 0.99, right=[0, 1, 1])
    bootstrap = Bootstrap.of(1, seed=0)
    assert [(p.mean_samples, p.accuracy) for p in replay.fixed(bootstrap)] == [(1, 0), (2, 1), (3, 1)]
    assert [(p.confidence, p.mean_samples) for p in replay.adaptive(bootstrap, (0.9, 0.98))] == [(0.9, 2), (0.98, 3)]


def test_the_least_confidence_that_loses_nothing_is_chosen():
    # At 0.9 it stops after two samples, wrong; at 0.95 after three, right as after all four.
    replay = replay_of(0.5, 0.92, 0.96, 0.99, right=[0, 0, 1, 1])
    assert choose_confidence(replay, (0.5, 0.9, 0.95, 0.98)) == 0.95


def test_never_less_than_the_least_confidence_is_chosen():
    assert choose_confidence(replay_of(0.6, 0.6, right=[1, 1]), (0.5, 0.8, 0.9)) == 0.8


@pytest.mark.parametrize("separation", [2.0, 3.0], ids=["AUROC 0.92", "AUROC 0.98"])
@pytest.mark.parametrize("solve_rates", [(2.0, 1.0), (1.0, 1.0), (0.6, 0.6)], ids=["mostly solved", "even", "divided"])
def test_with_a_good_critic_half_the_samples_are_as_accurate_as_all(
    separation: float, solve_rates: tuple[float, float]
):
    dev, calibration = draw_world(separation=separation, solve_rates=solve_rates, num_problems=96, seed=1)
    test, _ = draw_world(separation=separation, solve_rates=solve_rates, num_problems=500, seed=2)
    confidence = choose_confidence(Replay.of(dev, calibration, seed=0))
    replay = Replay.of(test, calibration, seed=0, num_orders=2)
    spent, right = replay.stopped(confidence)
    assert right.mean() >= replay.right_PON[..., -1].mean() - 0.01
    assert spent.mean() <= 8


def test_the_rule_spends_more_on_harder_problems():
    table, calibration = draw_world(separation=2.5, solve_rates=(1.0, 1.0), num_problems=600)
    spent, _ = Replay.of(table, calibration, seed=0, num_orders=1).stopped(0.9)
    rate = table.right_PN.mean(axis=1)
    assert spent[rate > 0.8].mean() < 3
    assert spent[rate < 0.2].mean() > 8


def test_a_critic_that_knows_nothing_still_stops_only_on_agreement():
    table, _ = draw_world(separation=1e-9, solve_rates=(2.0, 1.0), num_problems=300)
    base_rate = Calibration(temperature=1.0, bias=-math.log(2.0))
    replay = Replay.of(table, base_rate, seed=0, num_orders=1)
    assert replay.stopped(0.99)[1].mean() >= replay.right_PON[..., -1].mean() - 0.02
