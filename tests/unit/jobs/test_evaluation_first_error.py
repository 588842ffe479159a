"""Finding a known first error: the rules, exact chance, and rules chosen on other solutions."""

from __future__ import annotations

import pytest

from irlops.errors import DataError
from irlops_jobs.evaluation.first_error import ChosenRules, choose_rules, guess_first_error, localise
from support.scored_samples import trace


@pytest.mark.parametrize(
    ("rule", "numbers", "expected"),
    [
        ("lowest", [3.0, -2.0, -1.0, -4.0, 1.0], 3),
        ("drop", [3.0, -2.0, -1.0, -4.0, 1.0], 1),  # 3 to -2 falls by 5; -1 to -4 by 3
        ("below_mean", [3.0, -1.0, 4.0, 0.0, -3.0], 4),  # -3 - 6/4 = -4.5; -1 - 3 = -4; the last drop is only 3
        ("change", [1.0, 1.0, -1.0, 0.5, -1.5], 2),  # mean 0; sums to the end: 0, -1, -2, -1, -1.5
        ("first_low", [2.0, -2.0, 2.0, -3.0, 2.0], 1),  # lowest -3, mean 0.2: the first at or below -1.4
    ],
)
def test_rules_by_hand(rule: str, numbers: list[float], expected: int):
    assert guess_first_error(numbers, rule) == expected


@pytest.mark.parametrize("rule", ["lowest", "drop", "below_mean", "first_low"])
def test_the_first_token_can_be_guessed(rule: str):
    assert guess_first_error([-5.0, 1.0, 1.0], rule) == 0


def test_equal_numbers_guess_the_first_token():
    assert guess_first_error([1.0, 1.0, 1.0], "lowest") == 0


def test_hits_chance_and_the_log_probability_baseline_by_hand():
    traces = [
        trace(
            [1.0, -1.0, 1.0, 1.0], (1, 2), logprobs=[-9.0, -1.0, -1.0, -1.0]
        ),  # found; chance 1/4; not by log-probability
        trace([1.0, 1.0, -1.0, 1.0], (0, 2), logprobs=[-1.0, -9.0, -1.0, -1.0]),  # missed; chance 2/4; found
    ]
    found = localise(traces, seed=0)
    assert found is not None
    assert (found.hit_at_1, found.chance, found.logprob_hit_at_1) == (0.5, 0.375, 0.5)
    assert (found.num_traces, found.ci95, found.rule) == (2, (0.0, 1.0), "lowest")
    # Reward plus log-probability: -8, -2, 0, 0 guesses the first token, and 0, -8, -2, 0 the second; the error of the
    # second trace is its first two.
    assert found.by_rule["lowest"] == {"reward": 0.5, "logprob": 0.5, "recovered": 0.5}
    assert (found.recovered_hit_at_1, found.recovered_rule) == (0.5, "lowest")


def test_rules_are_chosen_on_other_traces_for_rewards_and_log_probabilities_each():
    # The error is the drop to -1 for the rewards, not their lowest; for the log-probabilities it is the lowest.
    dev = [trace([3.0, -1.0, -2.0], (1, 2), logprobs=[-1.0, -9.0, -8.0])]
    rules = choose_rules(dev)
    assert (rules.reward, rules.logprob) == ("drop", "lowest")
    found = localise([trace([3.0, -1.0, -2.0], (1, 2))], rules=rules, seed=0)
    assert found is not None
    assert (found.hit_at_1, found.rule) == (1.0, "drop")
    assert found.by_rule["lowest"]["reward"] == 0.0


def test_without_dev_traces_the_lowest_token_is_guessed():
    assert choose_rules([]) == ChosenRules("lowest", "lowest")


def test_without_traces_there_is_no_localisation():
    assert localise([], seed=0) is None


def test_an_error_behind_the_last_token_is_excluded_and_counted():
    found = localise([trace([1.0, 2.0], (2, 3)), trace([-1.0, 2.0], (0, 1))], seed=0)
    assert found is not None
    assert (found.num_traces, found.num_excluded, found.hit_at_1) == (1, 1, 1.0)


def test_only_excluded_traces_give_null_and_not_nan():
    found = localise([trace([1.0, 2.0], (2, 3))], seed=0)
    assert found is not None
    assert (found.hit_at_1, found.chance, found.logprob_hit_at_1) == (None, None, None)


def test_a_broken_reward_stops_with_the_trace_that_has_it():
    with pytest.raises(DataError, match="corrupted trace 1: token 0 of its rewards is nan"):
        localise([trace([1.0], (0, 1)), trace([float("nan")], (0, 1))], seed=0)


def test_a_threshold_takes_the_first_token_below_it():
    assert guess_first_error([3.0, -1.0, -4.0], "first_below", -0.5) == 1
    assert guess_first_error([3.0, -1.0, -4.0], "first_below", -2.0) == 2


def test_where_no_token_is_below_the_threshold_the_lowest_is_taken():
    assert guess_first_error([3.0, 1.0, 2.0], "first_below", 0.0) == 1


def test_the_threshold_lies_in_the_middle_of_those_that_hit_most():
    # Hit where the threshold is above the error's -2 and -1 and not above the 4 and 0.5 before it: -1 to 0.5.
    dev = [trace([4.0, -2.0, -6.0], (1, 2)), trace([0.5, 9.0, -1.0, -9.0, 9.0, -9.0], (2, 3))]
    below = choose_rules(dev).reward_below
    assert below == -0.25
    found = localise(dev, rules=ChosenRules("first_below", reward_below=below), seed=0)
    assert found is not None
    assert (found.hit_at_1, found.rule, found.threshold) == (1.0, "first_below", -0.25)


def test_an_error_in_the_first_token_needs_no_token_before_it():
    assert choose_rules([trace([-2.0, 1.0], (0, 1))]).reward == "lowest"
