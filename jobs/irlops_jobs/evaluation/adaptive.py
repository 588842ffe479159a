"""Samples spent against accuracy: the stopping rule of adaptive sampling, replayed on samples that are there already.

A problem's samples are replayed in several random orders, so that no number hangs on the order in which they were drawn.
Dimension key: P problems, N samples, O orders, C confidences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from irlops.contracts.evaluation import Calibration, SamplingPoint
from irlops.selection.selectors import vote_of
from irlops.selection.stopping import FEWEST_CANDIDATES, confidence_in, evidence_of
from irlops_jobs.evaluation.bootstrap import Bootstrap
from irlops_jobs.evaluation.table import Floats, SampleTable

CONFIDENCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
NUM_ORDERS = 8
LEAST_CONFIDENCE = 0.8
"""Sampling never stops with less, whatever a few dev problems say: it would save half a sample."""
TOLERATED_LOSS = 0.005
"""Accuracy, on dev problems, that the chosen confidence may lose against spending every sample."""


@dataclass(frozen=True)
class Replay:
    """Every prefix of every order: how sure the rule was, and whether weighted majority was right.

    Example:
        One problem, one order of two samples, both right: ``confidence_PON = [[[0.8, 0.97]]]``, ``right_PON = [[[1, 1]]]``.
    """

    confidence_PON: Floats
    right_PON: Floats

    @classmethod
    def of(cls, table: SampleTable, calibration: Calibration, *, seed: int, num_orders: int = NUM_ORDERS) -> Replay:
        """Replay all problems; the same seed gives the same orders."""
        rng = np.random.default_rng(seed)
        num = table.samples_per_problem
        orders_ON = [rng.permutation(num).tolist() for _ in range(num_orders)]
        steps = np.array(
            [
                [_replay_one(table, problem, order, calibration) for order in orders_ON]
                for problem in range(table.num_problems)
            ]
        )
        return cls(steps[..., 0], steps[..., 1])

    def fixed(self, bootstrap: Bootstrap) -> list[SamplingPoint]:
        """Weighted majority after 1, 2, ... N samples of each problem."""
        right_PN = self.right_PON.mean(axis=1)
        return [
            _point(np.full(len(right_PN), place + 1.0), right_PN[:, place], bootstrap)
            for place in range(right_PN.shape[1])
        ]

    def adaptive(self, bootstrap: Bootstrap, confidences: Sequence[float] = CONFIDENCES) -> list[SamplingPoint]:
        """The rule at rising confidence."""
        return [_point(*self.stopped(confidence), bootstrap, confidence) for confidence in confidences]

    def stopped(self, confidence: float) -> tuple[Floats, Floats]:
        """(P,) samples spent and accuracy, when sampling stops as soon as the rule is this sure; at the latest after N."""
        num = self.confidence_PON.shape[-1]
        settled = self.confidence_PON >= confidence
        settled[..., : FEWEST_CANDIDATES - 1] = False
        settled[..., -1] = True
        place_PO = settled.argmax(axis=-1)
        assert place_PO.max() < num
        right_PO = np.take_along_axis(self.right_PON, place_PO[..., None], axis=-1)[..., 0]
        return (place_PO + 1.0).mean(axis=1), right_PO.mean(axis=1)


def choose_confidence(dev: Replay, confidences: Sequence[float] = CONFIDENCES) -> float:
    """The least sure rule that is as accurate as all samples, within ``TOLERATED_LOSS``; the surest when none is."""
    goal = dev.right_PON[..., -1].mean() - TOLERATED_LOSS
    allowed = [confidence for confidence in confidences if confidence >= LEAST_CONFIDENCE]
    return next((confidence for confidence in allowed if dev.stopped(confidence)[1].mean() >= goal), allowed[-1])


def _replay_one(
    table: SampleTable, problem: int, order: Sequence[int], calibration: Calibration
) -> list[tuple[float, float]]:
    """(confidence, right) after each sample: what ``is_settled`` and ``select`` say of the samples so far."""
    candidates = table.candidates(problem, calibration.aggregation)
    classes = table.answer_class_PN[problem]
    chances = np.nan_to_num(table.chance_of_being_right(calibration)[problem], nan=0.0)
    evidence: dict[int, float] = {}
    weights: dict[int, float] = {}
    members: dict[int, int] = {}
    seen: list[tuple[float, float]] = []
    for index in order:
        answer = int(classes[index])
        if answer >= 0:
            evidence[answer] = evidence.get(answer, 0.0) + evidence_of(candidates[index], calibration)
            weights[answer] = weights.get(answer, 0.0) + vote_of(float(chances[index]))
            members.setdefault(answer, int(index))
        if not weights:
            seen.append((0.0, float(table.right_PN[problem, order[0]])))
            continue
        # dicts keep the order in which answers came up, and max takes the first of equals: select's rule for ties.
        chosen = max(weights, key=weights.__getitem__)
        sure = confidence_in(list(evidence.values()), list(evidence).index(chosen))
        seen.append((sure, float(table.right_PN[problem, members[chosen]])))
    return seen


def _point(spent_P: Floats, right_P: Floats, bootstrap: Bootstrap, confidence: float | None = None) -> SamplingPoint:
    accuracy = bootstrap.mean(right_P)
    assert accuracy.mean is not None
    return SamplingPoint(
        mean_samples=float(spent_P.mean()), accuracy=accuracy.mean, ci95=accuracy.ci95, confidence=confidence
    )
