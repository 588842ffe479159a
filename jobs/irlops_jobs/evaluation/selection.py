"""What each selector's choice is worth, by the lines that the gateway chooses with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from irlops.contracts.evaluation import Calibration, Estimate
from irlops.selection import Selection, select
from irlops_jobs.evaluation.bootstrap import Bootstrap
from irlops_jobs.evaluation.pass_at_k import pass_at_k
from irlops_jobs.evaluation.table import Booleans, Floats, SampleTable

REPORTED_KS = (1, 3, 5, 10)
RANKING = ("reward", "longest", "logprob")
VOTING = ("majority", "weighted_majority")


def reported_ks(samples_per_problem: int) -> tuple[int, ...]:
    """The published k that there are samples for."""
    return tuple(k for k in REPORTED_KS if k <= samples_per_problem)


def selector_hits(table: SampleTable, calibration: Calibration, ks: Sequence[int]) -> dict[str, dict[int, Floats]]:
    """(P,) accuracy of each selector's best k on every problem: 1 where any of them is right.

    ``random`` is the exact expectation over all choices of k samples. A ranking selector's best k are its first k samples;
    a voting one's are one sample of each of its first k answers.
    """
    num_right_P = table.right_PN.sum(axis=1)
    hits = {"random": {k: pass_at_k(num_right_P, table.samples_per_problem, k) for k in ks}}
    for selector in (*RANKING[:1], *VOTING, *RANKING[1:]):
        chosen = [_tried(table, problem, selector, calibration) for problem in range(table.num_problems)]
        hits[selector] = {k: _any_right(table.right_PN, (order[:k] for order in chosen)) for k in ks}
    return hits


def estimate_all(hits: dict[str, dict[int, Floats]], bootstrap: Bootstrap) -> dict[str, dict[int, Estimate]]:
    """Means over problems with intervals."""
    return {name: {k: bootstrap.mean(values_P) for k, values_P in by_k.items()} for name, by_k in hits.items()}


def _tried(table: SampleTable, problem: int, selector: str, calibration: Calibration) -> list[int]:
    """Samples in the order in which a selector would try them."""
    selection = select(table.candidates(problem, calibration.aggregation), selector, calibration)
    return _one_of_each_answer(selection) if selector in VOTING else list(selection.order)


def _one_of_each_answer(selection: Selection) -> list[int]:
    places = {index: place for place, index in enumerate(selection.order)}
    firsts = [min(answer.members, key=places.__getitem__) for answer in selection.answers]
    return firsts or [selection.index]


def _any_right(right_PN: Booleans, chosen: Iterable[Sequence[int]]) -> Floats:
    return np.array(
        [bool(right_N[list(indices)].any()) for right_N, indices in zip(right_PN, chosen, strict=True)], np.float64
    )
