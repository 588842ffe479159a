"""Intervals by resampling problems: percentile bootstrap, vectorised, the same resamples for every number of a table.

Samples of one problem stay together, because they are not independent. Dimension key: R resamples, P problems, S samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from irlops.contracts.evaluation import Estimate

_LEVELS = (2.5, 97.5)
_RESAMPLES_AT_ONCE = 64


@dataclass(frozen=True)
class Bootstrap:
    """How often each problem is drawn in each resample.

    Example:
        ``Bootstrap.of(1319, seed=0).mean(right_P)`` -> ``Estimate(mean=0.31, ci95=(0.29, 0.33))``
    """

    counts_RP: NDArray[np.float64]

    @classmethod
    def of(cls, num_problems: int, *, seed: int, num_resamples: int = 1000) -> Bootstrap:
        """Draw the resamples; the same seed gives the same ones."""
        rng = np.random.default_rng(seed)
        shares = np.full(num_problems, 1.0 / num_problems)
        return cls(rng.multinomial(num_problems, shares, size=num_resamples).astype(np.float64))

    def mean(self, values_P: NDArray[np.floating] | NDArray[np.bool_]) -> Estimate:
        """Mean over problems; problems with NaN are left out, and without any other the mean is null."""
        values = np.asarray(values_P, np.float64)
        known = ~np.isnan(values)
        return self.ratio(np.where(known, values, 0.0), known.astype(np.float64))

    def ratio(self, numerator_P: NDArray[np.float64], denominator_P: NDArray[np.float64]) -> Estimate:
        """Sum over sum; null where the denominator is 0."""
        total = denominator_P.sum()
        if total == 0:
            return Estimate(mean=None)
        with np.errstate(divide="ignore", invalid="ignore"):
            resampled_R = (self.counts_RP @ numerator_P) / (self.counts_RP @ denominator_P)
        return Estimate(mean=float(numerator_P.sum() / total), ci95=interval(resampled_R))

    def auroc(
        self, scores_S: NDArray[np.float64], right_S: NDArray[np.bool_], problem_S: NDArray[np.int64]
    ) -> Estimate:
        """Chance that a right sample outscores a wrong one, ties half; null when all are right or all wrong.

        Args:
            problem_S: the problem that each sample belongs to.
        """
        value = weighted_auroc(scores_S, right_S, np.ones((1, len(scores_S))))[0]
        if np.isnan(value):
            return Estimate(mean=None)
        chunks = [
            weighted_auroc(scores_S, right_S, self.counts_RP[start : start + _RESAMPLES_AT_ONCE][:, problem_S])
            for start in range(0, len(self.counts_RP), _RESAMPLES_AT_ONCE)
        ]
        return Estimate(mean=float(value), ci95=interval(np.concatenate(chunks)))


def weighted_auroc(
    scores_S: NDArray[np.float64], right_S: NDArray[np.bool_], weights_RS: NDArray[np.float64]
) -> NDArray[np.float64]:
    """AUROC under each row of sample weights; NaN where a side has no weight."""
    if not len(scores_S):
        return np.full(len(weights_RS), np.nan)
    order = np.argsort(scores_S, kind="stable")
    ranked = scores_S[order]
    starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))
    weights = weights_RS[:, order]
    positive_RG = np.add.reduceat(np.where(right_S[order], weights, 0.0), starts, axis=1)
    negative_RG = np.add.reduceat(np.where(right_S[order], 0.0, weights), starts, axis=1)
    below_RG = np.cumsum(negative_RG, axis=1) - negative_RG
    wins_R = (positive_RG * (below_RG + 0.5 * negative_RG)).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return wins_R / (positive_RG.sum(axis=1) * negative_RG.sum(axis=1))


def interval(resampled_R: NDArray[np.float64]) -> tuple[float, float] | None:
    """Percentile interval; resamples in which the number isn't defined are left out."""
    finite = resampled_R[np.isfinite(resampled_R)]
    if not len(finite):
        return None
    low, high = np.percentile(finite, _LEVELS)
    return float(low), float(high)
