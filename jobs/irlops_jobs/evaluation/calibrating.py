"""From rewards to chances of being right: Platt scaling on dev problems, and how honest the chances are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from irlops.contracts.evaluation import AGGREGATIONS, Aggregation, Calibration, Estimate, ReliabilityBin
from irlops_jobs.evaluation.bootstrap import Bootstrap, interval, weighted_auroc
from irlops_jobs.evaluation.table import Booleans, Floats, SampleTable, sigmoid

NUM_BINS = 15
_SMALLEST_SLOPE = 1e-3
"""Of the log-odds per standard deviation of the reward: a critic that sorts the wrong way round, or not at all, gives every
sample nearly the base rate, since a temperature can't be negative."""


def fit_calibration(dev: SampleTable, gamma: float = 0.9) -> Calibration:
    """The aggregation that sorts dev samples best (AUROC), and its temperature and bias.

    All right, all wrong or no spread of rewards leaves the aggregation at ``mean`` and gives everyone the base rate.
    """
    aggregation = max(AGGREGATIONS, key=lambda name: _auroc(dev, name))
    temperature, bias = fit_temperature(dev.reward_by(aggregation), dev.right_PN)
    return Calibration(aggregation=aggregation, gamma=gamma, temperature=temperature, bias=bias)


def _auroc(dev: SampleTable, aggregation: Aggregation) -> float:
    reward_PN = dev.reward_by(aggregation)
    known = ~np.isnan(reward_PN)
    value = weighted_auroc(reward_PN[known], dev.right_PN[known], np.ones((1, int(known.sum()))))[0]
    return 0.5 if np.isnan(value) else float(value)


def fit_temperature(reward_PN: Floats, right_PN: Booleans) -> tuple[float, float]:
    """Temperature (> 0) and bias with the least log loss of ``sigmoid((reward - bias) / temperature)``.

    Targets are Platt's, (n + 1) / (n + 2) and 1 / (n + 2), so that perfectly separated samples get a finite temperature.
    """
    known = ~np.isnan(reward_PN)
    reward, right = reward_PN[known], right_PN[known]
    if not len(reward):
        return 1.0, 0.0
    num_right = int(right.sum())
    num_wrong = len(right) - num_right
    target = np.where(right, (num_right + 1) / (num_right + 2), 1 / (num_wrong + 2))
    centre, spread = float(reward.mean()), float(reward.std()) or 1.0
    scaled = (reward - centre) / spread

    def loss(parameters: Floats) -> tuple[float, Floats]:
        logit = parameters[0] * scaled + parameters[1]
        residual = sigmoid(logit) - target
        value = np.mean(np.logaddexp(0.0, logit) - target * logit)
        return float(value), np.array([np.mean(residual * scaled), np.mean(residual)], np.float64)

    start = np.array([1.0, np.log((num_right + 1) / (num_wrong + 1))])
    fitted = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(_SMALLEST_SLOPE, None), (None, None)])
    slope, intercept = float(fitted.x[0]), float(fitted.x[1])
    return spread / slope, centre - intercept * spread / slope


@dataclass(frozen=True)
class Reliability:
    """Predicted against observed chances, by bins of equal width, kept by problem for resampling."""

    sums_PB3: Floats
    """Count, sum of predicted chances, number right."""

    @classmethod
    def of(cls, probability_PN: Floats, right_PN: Booleans, num_bins: int = NUM_BINS) -> Reliability:
        known = ~np.isnan(probability_PN)
        place_PN = np.clip((np.where(known, probability_PN, 0.0) * num_bins).astype(int), 0, num_bins - 1)
        sums = np.zeros((len(probability_PN), num_bins, 3))
        problem = np.broadcast_to(np.arange(len(probability_PN))[:, None], probability_PN.shape)[known]
        for column, values in enumerate((np.ones(len(problem)), probability_PN[known], right_PN[known])):
            np.add.at(sums[..., column], (problem, place_PN[known]), values)
        return cls(sums)

    def ece(self, bootstrap: Bootstrap) -> Estimate:
        """Expected calibration error: mean distance of predicted and observed, bins weighed by their samples."""
        if self.sums_PB3[..., 0].sum() == 0:
            return Estimate(mean=None)
        value = _ece(self.sums_PB3.sum(axis=0)[None])[0]
        resampled: Floats = np.asarray(np.tensordot(bootstrap.counts_RP, self.sums_PB3, axes=1), np.float64)
        return Estimate(mean=float(value), ci95=interval(_ece(resampled)))

    def bins(self) -> list[ReliabilityBin]:
        """For the picture and the record."""
        sums = self.sums_PB3.sum(axis=0)
        width = 1.0 / len(sums)
        return [
            ReliabilityBin(
                lower=place * width,
                upper=(place + 1) * width,
                num_samples=int(count),
                predicted=float(predicted / count) if count else None,
                observed=float(right / count) if count else None,
            )
            for place, (count, predicted, right) in enumerate(sums)
        ]


def _ece(sums_RB3: Floats) -> Floats:
    gaps = np.abs(sums_RB3[..., 1] - sums_RB3[..., 2]).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return gaps / sums_RB3[..., 0].sum(axis=-1)
