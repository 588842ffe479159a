"""Finding the known first error of corrupted solutions, and how often a guess at random would.

A rule turns the numbers of a trace's tokens into one guessed token:

    lowest       the token with the lowest number
    drop         the token whose number falls most below the one before it; the first one is compared with the trace's mean
    below_mean   the token whose number falls most below the mean of all before it; likewise for the first one
    change       the token from which on the numbers fit "wrong" best, and before it "right": with log-odds as numbers, the
                 most likely change point, argmin over t of the sum of (number - trace's mean) from t on

    first_below  the first token below a threshold, which was fitted on other traces; the lowest token where none is
    first_low    the first token nearer to the trace's lowest number than to its mean: what follows an error often reads worse

Ties go to the earliest. A guess is a hit when it is one of the corrupted tokens (``first_error_start`` to
``first_error_end``), so the chance of a random guess is their number over the trace's; its mean is exact, not drawn.
One rule stands for all traces of an evaluation, the best one on corrupted dev solutions (``choose_rules``); rewards,
log-probabilities and their sum each get the rule that suits them, so that the baseline is as strong as it can be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from irlops.contracts.evaluation import Estimate, FirstError
from irlops_jobs.evaluation.bootstrap import Bootstrap
from irlops_jobs.evaluation.carriers import CorruptedTrace, check_corrupted
from irlops_jobs.evaluation.table import Floats

DEFAULT_RULE = "lowest"
_NONE = Estimate(mean=None)


def _before_mean(values_T: Floats) -> Floats:
    """Mean of all tokens before each one; for the first one the mean of the trace."""
    sums = np.cumsum(values_T)
    return np.concatenate(([values_T.mean()], sums[:-1] / np.arange(1, len(values_T))))


def _suffix_sums(values_T: Floats) -> Floats:
    return np.cumsum((values_T - values_T.mean())[::-1])[::-1]


_RULES: dict[str, Callable[[Floats], Floats]] = {
    "lowest": lambda values_T: values_T,
    "drop": lambda values_T: values_T - np.concatenate(([values_T.mean()], values_T[:-1])),
    "below_mean": lambda values_T: values_T - _before_mean(values_T),
    "change": _suffix_sums,
    "first_low": lambda values_T: np.where(values_T <= (values_T.min() + values_T.mean()) / 2, -1.0, 0.0),
}
RULES = (*_RULES, "first_below")


def guess_first_error(token_numbers: Sequence[float] | Floats, rule: str, below: float | None = None) -> int:
    """The token that a rule takes for the first error.

    Args:
        below: Threshold of ``first_below``; without one it is ``lowest``.
    """
    values_T = np.asarray(token_numbers, np.float64)
    if rule == "first_below":
        under = np.flatnonzero(values_T < (-np.inf if below is None else below))
        return int(under[0] if len(under) else values_T.argmin())
    return int(np.argmin(_RULES[rule](values_T)))


@dataclass(frozen=True)
class ChosenRules:
    """The rule for each kind of number, and the thresholds of ``first_below``.

    Example: ``ChosenRules(reward="first_below", reward_below=-1.5, logprob="lowest")``.
    """

    reward: str = DEFAULT_RULE
    logprob: str = DEFAULT_RULE
    recovered: str = DEFAULT_RULE
    reward_below: float | None = None
    logprob_below: float | None = None
    recovered_below: float | None = None


KINDS: dict[str, Callable[[CorruptedTrace], Floats]] = {
    "reward": lambda trace: np.asarray(trace.token_rewards, np.float64),
    "logprob": lambda trace: np.asarray(trace.token_logprobs, np.float64),
    # The reward is log pi_E - log pi at the discriminator's optimum, so this is the expert's log-probability: AIRL's f.
    "recovered": lambda trace: (
        np.asarray(trace.token_rewards, np.float64) + np.asarray(trace.token_logprobs, np.float64)
    ),
}
"""What a trace's tokens are judged by."""


def choose_rules(dev: Sequence[CorruptedTrace]) -> ChosenRules:
    """The rules with the most hits on dev solutions; the first of equals, and the default without any solution.

    Raises:
        DataError: a trace lacks numbers or has NaN.
    """
    check_corrupted(dev)
    usable = [trace for trace in dev if _has_error(trace)]
    if not usable:
        return ChosenRules()
    chosen: dict[str, Any] = {}
    for kind, numbers_of in KINDS.items():
        numbers = [numbers_of(trace) for trace in usable]
        below = _fit_threshold(numbers, usable)
        hits = _hits(numbers, usable, below)
        chosen |= {kind: max(RULES, key=lambda rule: hits[rule].sum()), f"{kind}_below": below}
    return ChosenRules(**chosen)


def _fit_threshold(numbers: Sequence[Floats], traces: Sequence[CorruptedTrace]) -> float | None:
    """The middle of the thresholds with the most hits; None when no threshold hits any.

    A threshold hits a trace when it is above the lowest corrupted token's number and not above any number before.
    """
    ranges = [
        (
            min(values[trace.first_error_start : trace.first_error_end]),
            min(values[: trace.first_error_start], default=np.inf),
        )
        for values, trace in zip(numbers, traces, strict=True)
    ]
    ends = np.unique([end for pair in ranges for end in pair if np.isfinite(end)])
    middles = (ends[1:] + ends[:-1]) / 2
    if not len(middles):
        return None
    low_T, high_T = np.array(ranges).T
    hits = ((low_T[None] < middles[:, None]) & (middles[:, None] <= high_T[None])).sum(axis=1)
    best = np.flatnonzero(hits == hits.max())
    return float(middles[best[len(best) // 2]]) if hits.max() else None


def localise(
    traces: Sequence[CorruptedTrace], *, rules: ChosenRules | None = None, seed: int, num_resamples: int = 1000
) -> FirstError | None:
    """Hit@1 of the rewards, of the policy's log-probabilities and of their sum beside exact chance; None without any trace.

    Args:
        rules: Chosen on other traces than these.
    Raises:
        DataError: a trace lacks numbers or has NaN.
    """
    if not traces:
        return None
    check_corrupted(traces)
    rules = rules or ChosenRules()
    usable = [trace for trace in traces if _has_error(trace)]
    num_excluded = len(traces) - len(usable)
    hits = {
        kind: _hits([numbers_of(t) for t in usable], usable, getattr(rules, f"{kind}_below"))
        for kind, numbers_of in KINDS.items()
    }
    bootstrap = Bootstrap.of(max(len(usable), 1), seed=seed, num_resamples=num_resamples)
    found = {kind: bootstrap.mean(hits[kind][getattr(rules, kind)]) if usable else _NONE for kind in KINDS}
    chances = [(t.first_error_end - t.first_error_start) / t.num_tokens for t in usable]
    return FirstError(
        hit_at_1=found["reward"].mean,
        ci95=found["reward"].ci95,
        chance=float(np.mean(chances)) if usable else None,
        num_traces=len(usable),
        rule=rules.reward,
        threshold=_threshold(rules, "reward"),
        logprob_hit_at_1=found["logprob"].mean,
        logprob_ci95=found["logprob"].ci95,
        logprob_rule=rules.logprob,
        logprob_threshold=_threshold(rules, "logprob"),
        recovered_hit_at_1=found["recovered"].mean,
        recovered_ci95=found["recovered"].ci95,
        recovered_rule=rules.recovered,
        recovered_threshold=_threshold(rules, "recovered"),
        num_excluded=num_excluded,
        by_rule={rule: {kind: float(hits[kind][rule].mean()) for kind in KINDS} for rule in RULES if usable},
    )


def _threshold(rules: ChosenRules, kind: str) -> float | None:
    return getattr(rules, f"{kind}_below") if getattr(rules, kind) == "first_below" else None


def _has_error(trace: CorruptedTrace) -> bool:
    return 0 <= trace.first_error_start < trace.first_error_end <= trace.num_tokens


def _hits(numbers: Sequence[Floats], traces: Sequence[CorruptedTrace], below: float | None) -> dict[str, Floats]:
    return {
        rule: np.array(
            [
                float(trace.first_error_start <= guess_first_error(values, rule, below) < trace.first_error_end)
                for values, trace in zip(numbers, traces, strict=True)
            ]
        )
        for rule in RULES
    }
