"""Each selector's choice, worked out by hand."""

from __future__ import annotations

import math

import pytest

from irlops.selection import Calibration, Candidate, aggregate, select
from irlops.selection.selectors import vote_of

PLAIN = Calibration()


def candidate(answer: str | None, reward: float | None = None, num_tokens: int = 1, logprob: float | None = None):
    return Candidate(answer, num_tokens, None if reward is None else (reward,), logprob)


def choose(selector: str, *candidates: Candidate, calibration: Calibration = PLAIN):
    return select(candidates, selector, calibration)


def test_reward_chooses_the_candidate_the_critic_rewards_most():
    assert choose("reward", candidate("5", 0.1), candidate("6", 0.9), candidate("7", -2.0)).order == (1, 0, 2)


def test_ties_keep_the_policys_order():
    assert choose("reward", candidate("5", 1.0), candidate("6", 1.0), candidate("7", 1.0)).order == (0, 1, 2)


def test_a_candidate_that_the_critic_did_not_score_comes_last():
    assert choose("reward", candidate("5"), candidate("6", -9.0)).order == (1, 0)


def test_an_empty_completion_comes_last():
    assert choose("reward", Candidate(None, 0, ()), candidate("6", -9.0)).order == (1, 0)


def test_majority_counts_answers_that_agree_as_one():
    chosen = choose("majority", candidate("6"), candidate("5"), candidate("5.0"), candidate("$5"))
    assert chosen.index == 1
    assert chosen.agreement == 0.75  # 3 of 4
    assert chosen.margin == 0.5  # (3 - 1) / 4


def test_majority_gives_a_tie_to_the_answer_that_came_up_first():
    assert choose("majority", candidate("6"), candidate("5"), candidate("5"), candidate("6")).index == 0


def test_weighted_majority_adds_up_calibrated_odds():
    # exp(2) = 7.389 for 7; 2 x exp(-0.5) = 1.213 for 5.
    chosen = choose("weighted_majority", candidate("5", -0.5), candidate("5", -0.5), candidate("7", 2.0))
    assert chosen.index == 2
    assert [round(votes.weight, 3) for votes in chosen.answers] == [7.389, 1.213]


def test_weighted_majority_uses_temperature_and_bias():
    # (2 - 3) / 0.5 = -2: exp(-2) = 0.135 for 7; (-0.5 - 3) / 0.5 = -7: exp(-7) = 0.0009 for 5.
    sharp = Calibration(temperature=0.5, bias=3.0)
    chosen = choose("weighted_majority", candidate("5", -0.5), candidate("7", 2.0), calibration=sharp)
    assert chosen.answers[0].answer == "7"
    assert chosen.answers[0].weight == pytest.approx(0.1353, abs=1e-4)


def test_no_candidate_outvotes_fifty_even_ones():
    # However high its reward, a candidate weighs 0.98 / 0.02 = 49.
    assert vote_of(1.0) == pytest.approx(49)
    assert choose("weighted_majority", *[candidate("5", 0.0)] * 50, candidate("7", 30.0)).answers[0].answer == "5"


def test_weighted_majority_shows_the_best_rewarded_candidate_of_its_answer():
    assert choose("weighted_majority", candidate("5", 0.1), candidate("5", 3.0), candidate("6", 0.0)).index == 1


def test_candidates_without_an_answer_never_vote():
    chosen = choose("majority", candidate(None), candidate(None), candidate("5"))
    assert chosen.index == 2
    assert chosen.order == (2, 0, 1)


def test_without_any_answer_the_first_candidate_stands():
    chosen = choose("weighted_majority", candidate(None, 0.0), candidate(None, 0.0))
    assert (chosen.index, chosen.answers, chosen.agreement, chosen.margin) == (0, (), 0.0, 0.0)


def test_identical_candidates_choose_the_first_in_full_agreement():
    chosen = choose("weighted_majority", *[candidate("5", 0.0)] * 4)
    assert (chosen.index, chosen.agreement, chosen.margin) == (0, 1.0, 1.0)


def test_longest_counts_tokens():
    assert choose("longest", candidate("5", num_tokens=3), candidate("6", num_tokens=9)).index == 1


def test_logprob_is_per_token_so_that_length_does_not_decide():
    # -6 over 6 tokens is -1 a token, -4 over 2 tokens is -2 a token.
    long, short = candidate("5", num_tokens=6, logprob=-6.0), candidate("6", num_tokens=2, logprob=-4.0)
    assert choose("logprob", short, long).index == 1


def test_no_candidates_and_unknown_selectors_are_refused():
    with pytest.raises(ValueError, match="no candidate"):
        select([], "reward", PLAIN)
    with pytest.raises(ValueError, match="weighted_majority"):
        choose("best", candidate("5"))


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [("mean", 2.0), ("min", 1.0), ("last", 3.0), ("discounted", 17 / 7)],  # (3 + 2/2 + 1/4) / (1 + 1/2 + 1/4) = 17/7
)
def test_aggregations_by_hand(aggregation: str, expected: float):
    assert aggregate((1.0, 2.0, 3.0), aggregation, 0.5) == pytest.approx(expected)


def test_the_product_of_probabilities_is_the_log_odds_that_all_tokens_are_right():
    # .5 x .5 = .25, odds 1 to 3
    assert aggregate((0.0, 0.0), "product") == pytest.approx(math.log(1 / 3))
    assert aggregate((-1.7,), "product") == pytest.approx(-1.7)


@pytest.mark.parametrize("extreme", [1000.0, 40.0, -40.0, -1000.0])
def test_extreme_rewards_leave_the_product_finite_and_ordered(extreme: float):
    assert math.isfinite(aggregate((extreme, extreme), "product"))
    assert (aggregate((extreme, extreme), "product") > 0) == (extreme > 0)


def test_a_solution_without_tokens_has_no_aggregate():
    with pytest.raises(ValueError, match="without tokens"):
        aggregate((), "mean")


def test_a_long_solution_is_discounted_without_overflow():
    assert aggregate([1.0] * 100_000, "discounted", 0.9) == pytest.approx(1.0)
