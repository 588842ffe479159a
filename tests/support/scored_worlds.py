"""Scored samples of a world whose probabilities are known: what a perfect calibration would say is calculated, not fitted."""

from __future__ import annotations

import math

import numpy as np

from irlops.contracts.evaluation import AGGREGATIONS, Calibration
from irlops_jobs.evaluation.table import SampleTable


def draw_world(
    *,
    separation: float,
    solve_rates: tuple[float, float],
    num_problems: int = 400,
    num_samples: int = 16,
    seed: int = 0,
) -> tuple[SampleTable, Calibration]:
    """Right samples have rewards around separation / 2, wrong ones around -separation / 2, both with a spread of 1.

    The log-odds that a reward r speaks for are then exactly separation * r, to which the base rate is added.

    Args:
        separation: 2.5 is a critic with an AUROC of 0.96, 1.2 one with 0.80.
        solve_rates: Parameters of the Beta distribution that problems' solve rates come from.
    """
    rng = np.random.default_rng(seed)
    rate_P = rng.beta(*solve_rates, num_problems)
    right = rng.random((num_problems, num_samples)) < rate_P[:, None]
    # Half of the wrong samples of a problem make the same mistake; the others make one of eight.
    wrong = np.where(rng.random(right.shape) < 0.5, 1, rng.integers(2, 10, right.shape))
    reward = rng.normal(np.where(right, separation / 2, -separation / 2), 1.0)
    base = solve_rates[0] / sum(solve_rates)
    table = SampleTable(
        right_PN=right,
        strictly_right_PN=right,
        answer_class_PN=np.where(right, 0, wrong),
        rewards_by_aggregation=dict.fromkeys(AGGREGATIONS, reward),
        span_reward_PN=reward,
        logprob_PN=np.zeros(right.shape),
        num_tokens_PN=np.ones(right.shape, np.int64),
        truncated_PN=np.zeros(right.shape, bool),
        well_formatted_PN=np.ones(right.shape, bool),
    )
    bias = -math.log(base / (1 - base)) / separation
    return table, Calibration(temperature=1 / separation, bias=bias)
