"""From scored samples to evaluation.json: every number of one row, measured by one calibrated critic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from irlops.contracts.evaluation import (
    AGGREGATIONS,
    Aggregation,
    AggregationNumbers,
    Calibration,
    CriticNumbers,
    DatasetFacts,
    Estimate,
    Evaluation,
    FirstError,
    RowNumbers,
    SampleCounts,
    StrictRule,
)
from irlops_jobs.evaluation.adaptive import Replay, choose_confidence
from irlops_jobs.evaluation.bootstrap import Bootstrap, weighted_auroc
from irlops_jobs.evaluation.calibrating import Reliability, fit_calibration
from irlops_jobs.evaluation.carriers import ScoredProblem, ScoredSamples
from irlops_jobs.evaluation.discrimination import auroc, auroc_within_question, pearson
from irlops_jobs.evaluation.pass_at_k import pass_at_k
from irlops_jobs.evaluation.selection import estimate_all, reported_ks, selector_hits
from irlops_jobs.evaluation.table import Floats, SampleTable, sigmoid


@dataclass(frozen=True)
class Measured:
    """One row's numbers, with what pictures and paired differences are made from."""

    table: SampleTable
    calibration: Calibration
    evaluation: Evaluation
    hits: dict[str, dict[int, Floats]]
    """(P,) accuracy of each selector's best k."""


def calibrate(dev: Sequence[ScoredProblem], *, seed: int, gamma: float = 0.9) -> Calibration:
    """Everything that is fitted, on dev problems only: aggregation, temperature, bias, and how sure to be before stopping.

    Raises:
        DataError: no problem, or broken numbers.
    """
    table = SampleTable.of(ScoredSamples.of(dev, "dev"), gamma)
    calibration = fit_calibration(table, gamma)
    confidence = choose_confidence(Replay.of(table, calibration, seed=seed))
    return calibration.model_copy(update={"stop_confidence": confidence})


def measure(
    problems: Sequence[ScoredProblem],
    calibration: Calibration,
    *,
    row: str,
    dataset: DatasetFacts,
    seed: int,
    num_resamples: int = 1000,
    first_errors: tuple[FirstError | None, FirstError | None] = (None, None),
) -> Measured:
    """All numbers of one row.

    Args:
        problems: Test problems with the row's samples, scored by the critic that ``calibration`` belongs to.
        first_errors: Of corrupted solutions, and of the policy's own samples.
    Raises:
        DataError: no problem, or broken numbers.
    """
    table = SampleTable.of(ScoredSamples.of(problems, f"test/{row}"), calibration.gamma)
    bootstrap = Bootstrap.of(table.num_problems, seed=seed, num_resamples=num_resamples)
    ks = reported_ks(table.samples_per_problem)
    hits = selector_hits(table, calibration, ks)
    chances = table.chance_of_being_right(calibration)
    reliability = Reliability.of(chances, table.right_PN)
    replay = Replay.of(table, calibration, seed=seed)
    evaluation = Evaluation(
        row=row,
        dataset=dataset,
        samples_per_problem=table.samples_per_problem,
        seed=seed,
        pass_at_k={k: bootstrap.mean(pass_at_k(table.right_PN.sum(axis=1), table.samples_per_problem, k)) for k in ks},
        selectors=estimate_all(hits, bootstrap),
        differences=_differences(hits, replay, calibration, bootstrap),
        strict=_strict(table, bootstrap),
        samples=_counts(table),
        critic=_critic_numbers(table, calibration, chances, reliability, bootstrap),
        by_aggregation={name: _by_aggregation(table, name, bootstrap) for name in AGGREGATIONS},
        calibration=calibration,
        reliability=reliability.bins(),
        first_error=first_errors[0],
        first_own_error=first_errors[1],
        adaptive=replay.adaptive(bootstrap),
        fixed=replay.fixed(bootstrap),
    )
    return Measured(table, calibration, evaluation, hits)


def compare(measured: Measured, others: Mapping[str, Measured]) -> Evaluation:
    """The pair's evaluation with the other rows in it, and what the pair's policy gains over each, paired over problems."""
    evaluation = measured.evaluation
    bootstrap = Bootstrap.of(measured.table.num_problems, seed=evaluation.seed)
    gained = {
        f"pass@1-{name}": bootstrap.mean(measured.hits["random"][1] - other.hits["random"][1])
        for name, other in others.items()
    }
    transfer = {
        name: RowNumbers(
            pass_at_k=other.evaluation.pass_at_k,
            selectors=other.evaluation.selectors,
            auroc=other.evaluation.critic.auroc,
            auroc_within_question=other.evaluation.critic.auroc_within_question,
        )
        for name, other in others.items()
    }
    return evaluation.model_copy(
        update={
            "differences": {**evaluation.differences, **gained},
            "transfer": transfer,
            "untrained": transfer.get("untrained"),
        }
    )


def _differences(
    hits: dict[str, dict[int, Floats]], replay: Replay, calibration: Calibration, bootstrap: Bootstrap
) -> dict[str, Estimate]:
    weighted = hits["weighted_majority"][1]
    # Against the mean over the same orders, so that ties broken by order don't count as a difference.
    stopped = replay.stopped(calibration.stop_confidence)[1] - replay.right_PON[..., -1].mean(axis=1)
    return {
        "reward-random": bootstrap.mean(hits["reward"][1] - hits["random"][1]),
        "reward-majority": bootstrap.mean(hits["reward"][1] - hits["majority"][1]),
        "weighted_majority-majority": bootstrap.mean(weighted - hits["majority"][1]),
        "adaptive-weighted_majority": bootstrap.mean(stopped),
    }


def _strict(table: SampleTable, bootstrap: Bootstrap) -> StrictRule:
    return StrictRule(
        pass_at_1=bootstrap.mean(table.strictly_right_PN.mean(axis=1)),
        disagreements=int((table.strictly_right_PN != table.right_PN).sum()),
    )


def _counts(table: SampleTable) -> SampleCounts:
    return SampleCounts(
        total=table.right_PN.size,
        without_answer=int((table.answer_class_PN < 0).sum()),
        truncated=int(table.truncated_PN.sum()),
        empty=int((table.num_tokens_PN == 0).sum()),
        without_answer_span=int(np.isnan(table.span_reward_PN).sum()),
        well_formatted=int(table.well_formatted_PN.sum()),
    )


def _critic_numbers(
    table: SampleTable, calibration: Calibration, chances: Floats, reliability: Reliability, bootstrap: Bootstrap
) -> CriticNumbers:
    # Correlations are of the calibrated chance: log-odds have no bound, so a few samples that fall apart decide a Pearson
    # correlation of theirs alone, and a sample that falls apart is badly formatted, too.
    reward, span, right = table.reward_by(calibration.aggregation), table.span_reward_PN, table.right_PN
    estimates = {
        "auroc": auroc(reward, right, bootstrap),
        "auroc_within_question": auroc_within_question(reward, right, bootstrap),
        "auroc_answer_span": auroc(span, right, bootstrap),
        "ece": reliability.ece(bootstrap),
        "ece_before": Reliability.of(sigmoid(reward), right).ece(bootstrap),
        "pearson_correctness": pearson(chances, right, bootstrap),
        "pearson_format": pearson(chances, table.well_formatted_PN, bootstrap),
        "pearson_length": pearson(chances, table.num_tokens_PN.astype(np.float64), bootstrap),
        "pearson_correctness_raw": pearson(reward, right, bootstrap),
        "pearson_format_raw": pearson(reward, table.well_formatted_PN, bootstrap),
        "pearson_correctness_answer_span": pearson(span, right, bootstrap),
        "pearson_format_answer_span": pearson(span, table.well_formatted_PN, bootstrap),
    }
    return CriticNumbers(
        **{name: estimate.mean for name, estimate in estimates.items()},
        ci95={name: estimate.ci95 for name, estimate in estimates.items() if estimate.ci95 is not None},
    )


def _by_aggregation(table: SampleTable, aggregation: Aggregation, bootstrap: Bootstrap) -> AggregationNumbers:
    reward_PN = table.reward_by(aggregation)
    known = ~np.isnan(reward_PN)
    value = float(weighted_auroc(reward_PN[known], table.right_PN[known], np.ones((1, int(known.sum()))))[0])
    # The first of the highest, as selection breaks ties; an empty completion is never it unless all are.
    best_P = np.where(known, reward_PN, -np.inf).argmax(axis=1)
    return AggregationNumbers(
        auroc=None if np.isnan(value) else value,
        auroc_within_question=auroc_within_question(reward_PN, table.right_PN, bootstrap).mean,
        reward_at_1=bootstrap.mean(table.right_PN[np.arange(len(best_P)), best_P]),
    )
