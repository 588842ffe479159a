"""How well a number tells right samples from wrong ones, and what else it goes with."""

from __future__ import annotations

import numpy as np

from irlops.contracts.evaluation import Estimate
from irlops_jobs.evaluation.bootstrap import Bootstrap, interval
from irlops_jobs.evaluation.table import Booleans, Floats


def auroc(reward_PN: Floats, right_PN: Booleans, bootstrap: Bootstrap) -> Estimate:
    """Over all samples with a reward; null when all are right or all wrong."""
    problem_PN = np.broadcast_to(np.arange(len(reward_PN))[:, None], reward_PN.shape)
    known = ~np.isnan(reward_PN)
    return bootstrap.auroc(reward_PN[known], right_PN[known], problem_PN[known])


def auroc_within_question(reward_PN: Floats, right_PN: Booleans, bootstrap: Bootstrap) -> Estimate:
    """Over pairs of a right and a wrong sample of the same question: how hard a question is can't help here."""
    wins = np.zeros(len(reward_PN))
    pairs = np.zeros(len(reward_PN))
    for problem, (reward_N, right_N) in enumerate(zip(reward_PN, right_PN, strict=True)):
        known = ~np.isnan(reward_N)
        good, bad = reward_N[known & right_N], reward_N[known & ~right_N]
        difference = good[:, None] - bad[None, :]
        wins[problem] = (difference > 0).sum() + 0.5 * (difference == 0).sum()
        pairs[problem] = difference.size
    return bootstrap.ratio(wins, pairs)


def pearson(one_PN: Floats, other_PN: Floats | Booleans, bootstrap: Bootstrap) -> Estimate:
    """Correlation over samples in which both are known; null when one of them never varies."""
    one, other = np.asarray(one_PN, np.float64), np.asarray(other_PN, np.float64)
    known = ~(np.isnan(one) | np.isnan(other))
    if known.sum() < 2 or np.ptp(one[known]) == 0 or np.ptp(other[known]) == 0:
        return Estimate(mean=None)
    # Centred and scaled first: sums of squares of raw values would lose what they differ by.
    one = np.where(known, (one - one[known].mean()) / one[known].std(), 0.0)
    other = np.where(known, (other - other[known].mean()) / other[known].std(), 0.0)
    sums_P6 = np.stack(
        [known.sum(1), one.sum(1), other.sum(1), (one * one).sum(1), (other * other).sum(1), (one * other).sum(1)],
        axis=1,
    ).astype(np.float64)
    value = _correlation(sums_P6.sum(axis=0)[None])[0]
    return Estimate(mean=float(value), ci95=interval(_correlation(bootstrap.counts_RP @ sums_P6)))


def _correlation(sums_R6: Floats) -> Floats:
    count, one, other, one_one, other_other, one_other = sums_R6.T
    covariance = one_other / count - one * other / count**2
    variances = (one_one / count - (one / count) ** 2) * (other_other / count - (other / count) ** 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Both were scaled to a variance of about 1: what is left below this is rounding, of a resample without any variation.
        return np.where(variances > 1e-12, covariance / np.sqrt(np.maximum(variances, 0.0)), np.nan)
