"""Every number of one row, on few samples whose numbers can be counted."""

from __future__ import annotations

import json

import numpy as np
import pytest

from irlops.contracts.evaluation import Calibration, DatasetFacts, Evaluation
from irlops.contracts.pair import summarise_evaluation
from irlops_jobs.evaluation.carriers import ScoredProblem
from irlops_jobs.evaluation.measure import Measured, calibrate, compare, measure
from irlops_jobs.evaluation.pass_at_k import pass_at_k
from irlops_jobs.evaluation.selection import reported_ks, selector_hits
from support.scored_samples import problem, sample, table_of
from support.scored_worlds import draw_world

PLAIN = Calibration()


def measured(*problems: ScoredProblem, calibration: Calibration = PLAIN, row: str = "airl") -> Measured:
    facts = DatasetFacts(name="arithmetic", num_problems=len(problems))
    return measure(problems, calibration, row=row, dataset=facts, seed=0, num_resamples=100)


def two_problems() -> tuple[ScoredProblem, ScoredProblem]:
    """The critic is right about the first: 5 is best, though 6 has the majority; and wrong about the second."""
    first = problem(sample("6", -2.0), sample("6", -2.0), sample("5", 3.0), sample("7", -1.0))
    second = problem(sample("5", -1.0), sample("5", -1.0), sample("6", 2.0), sample(None, -3.0))
    return first, second


def test_selectors_by_hand():
    one = measured(*two_problems()).evaluation
    chosen = {name: by_k[1].mean for name, by_k in one.selectors.items()}
    # random: (1/4 + 2/4) / 2. reward: 5, then 6. majority: 6, then 5. weighted: odds exp(3) = 20 for 5 against
    # 2 x 0.14 for 6; then exp(2) = 7.4 for 6 against 2 x 0.37 for 5. longest and log-probability: the first of equals.
    assert chosen == {
        "random": 0.375, "reward": 0.5, "majority": 0.5, "weighted_majority": 0.5, "longest": 0.5, "logprob": 0.5,
    }  # fmt: skip


def test_random_is_the_exact_expectation_and_equals_pass_at_k():
    table, calibration = draw_world(separation=1.0, solve_rates=(1, 1), num_problems=20, num_samples=6)
    random = selector_hits(table, calibration, (1, 3))["random"]
    assert random[3] == pytest.approx(pass_at_k(table.right_PN.sum(axis=1), 6, 3))


def test_a_votes_best_two_are_one_sample_of_each_of_two_answers():
    table = table_of(problem(sample("6", 0.0), sample("6", 0.0), sample("6", 0.0), sample("5", 0.0)))
    hits = selector_hits(table, PLAIN, (1, 2))
    assert [hits["majority"][k].tolist() for k in (1, 2)] == [[0.0], [1.0]]
    assert hits["reward"][2].tolist() == [0.0]  # its first two are both a 6


def test_only_published_k_that_there_are_samples_for():
    assert (reported_ks(4), reported_ks(16)) == ((1, 3), (1, 3, 5, 10))


def test_differences_are_paired_over_problems():
    differences = measured(*two_problems()).evaluation.differences
    assert differences["reward-random"].mean == pytest.approx(0.125)  # 0.5 - 0.375
    assert differences["weighted_majority-majority"].mean == 0.0
    assert differences["weighted_majority-majority"].ci95 == (-1.0, 1.0)  # +1 on one problem, -1 on the other


def test_samples_that_some_number_leaves_out_are_counted():
    counts = measured(
        problem(sample("5", 1.0), sample(None), sample(None, 0.0), sample("5", 1.0, truncated=True))
    ).evaluation.samples
    assert counts.model_dump() == {
        "total": 4, "without_answer": 3, "truncated": 1, "empty": 1, "without_answer_span": 2, "well_formatted": 1,
    }  # fmt: skip


def test_the_strict_rule_stands_beside_the_lenient_one():
    one = measured(problem(sample("5.0", 0.0), sample("5", 0.0))).evaluation
    assert (one.pass_at_k[1].mean, one.strict.pass_at_1.mean, one.strict.disagreements) == (1.0, 0.5, 1)


def test_identical_samples_have_defined_numbers_and_null_for_the_rest():
    one = measured(problem(*[sample("5", 1.0)] * 4), problem(*[sample("5", 1.0)] * 4)).evaluation
    assert one.pass_at_k[1].mean == 1.0
    assert (one.critic.auroc, one.critic.pearson_correctness, one.critic.pearson_format) == (None, None, None)
    assert one.critic.ece == pytest.approx(1 - 0.731, abs=1e-3)  # sigmoid(1) said of what is always right


def test_one_sample_that_falls_apart_does_not_decide_what_the_reward_goes_with():
    usual = [problem(sample("5", 2.0), sample("5", 1.0), sample("6", -1.0), sample("6", -2.0)) for _ in range(5)]
    broken = problem(sample("5", 2.0), sample("5", 1.0), sample("6", -1.0), sample("6", -1000.0, truncated=True))
    critic = measured(*usual, broken).evaluation.critic
    assert critic.pearson_format_raw == pytest.approx(1.0, abs=1e-3)
    assert critic.pearson_correctness_raw == pytest.approx(0.21, abs=0.02)
    assert (critic.pearson_correctness or 0.0) > 0.9
    assert abs(critic.pearson_format or 1.0) < 0.5


def test_only_empty_completions_have_no_number_about_the_critic():
    one = measured(problem(sample(None), sample(None))).evaluation
    assert one.pass_at_k[1].mean == 0.0
    assert one.selectors["reward"][1].mean == 0.0
    assert (one.critic.auroc, one.critic.ece) == (None, None)


@pytest.mark.parametrize("answer", ["5", "6", None], ids=["all right", "all wrong", "no answer"])
def test_the_body_is_json_without_nan_and_read_back_the_same(answer: str | None):
    one = measured(problem(sample(answer, 1.0), sample(answer, 2.0))).evaluation
    text = json.dumps(one.body(), allow_nan=False)
    assert Evaluation.model_validate_json(text) == one


def test_a_gate_on_a_null_number_refuses():
    body = measured(problem(sample("5", 1.0), sample("5", 2.0))).evaluation.body()
    assert "critic.auroc" in summarise_evaluation(body).not_finite


def test_aggregations_stand_beside_the_chosen_one():
    # By the mean the wrong one is best (0 against 1), by the lowest token the right one (0 against -3).
    one = measured(problem(sample("5", 0.0, 0.0), sample("6", 5.0, -3.0)), calibration=Calibration(aggregation="min"))
    numbers = one.evaluation.by_aggregation
    assert (numbers["mean"].auroc, numbers["min"].auroc) == (0.0, 1.0)
    assert (numbers["mean"].reward_at_1.mean, numbers["min"].reward_at_1.mean) == (0.0, 1.0)
    assert one.evaluation.critic.auroc == 1.0


def test_other_policies_samples_are_measured_by_the_same_critic_as_transfer():
    pair = measured(*two_problems())
    other = measured(problem(sample("5", 2.0), sample("6", 1.0), sample("6", 1.0), sample("6", 1.0)), two_problems()[1])
    one = compare(pair, {"untrained": other})
    assert one.transfer["untrained"].auroc == pytest.approx(other.evaluation.critic.auroc)
    assert one.untrained == one.transfer["untrained"]
    # 3/8 against (1/4 + 2/4) / 2: no difference in the mean, nor on any problem
    assert one.differences["pass@1-untrained"].mean == 0.0


def test_everything_fitted_comes_from_dev_problems():
    rng = np.random.default_rng(0)
    right = [
        [sample("5", r) for r in rng.normal(1, 1, 4)] + [sample("6", r) for r in rng.normal(-1, 1, 4)]
        for _ in range(60)
    ]
    calibration = calibrate([problem(*samples) for samples in right], seed=0)
    assert calibration.temperature == pytest.approx(0.5, rel=0.2)  # log-odds of the two normals: 2 r
    assert calibration.bias == pytest.approx(0.0, abs=0.15)
    assert 0.8 <= calibration.stop_confidence <= 0.999
