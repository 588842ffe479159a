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
One rule stands for all traces of an evaluation, the best one on corrupted dev solutions (``choose_rules``); rewards and
log-probabilities each get the rule that suits them, so that the baseline is as strong as it can be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from irlops.contracts.evaluation import Estimate, FirstError
from irlops_jobs.evaluation.bootstrap import Bootstrap
from irlops_jobs.evaluation.carriers import CorruptedTrace, check_corrupted
from irlops_jobs.evaluation.table import Floats

DEFAULT_RULE = "lowest"
_NONE = (Estimate(mean=None), Estimate(mean=None))


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


def guess_first_error(token_numbers: Sequence[float], rule: str, below: float | None = None) -> int:
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
    reward_below: float | None = None
    logprob_below: float | None = None


def choose_rules(dev: Sequence[CorruptedTrace]) -> ChosenRules:
    """The rules with the most hits on dev solutions; the first of equals, and the default without any solution.

    Raises:
        DataError: a trace lacks numbers or has NaN.
    """
    check_corrupted(dev)
    usable = [trace for trace in dev if _has_error(trace)]
    if not usable:
        return ChosenRules()
    rewards, logprobs = [trace.token_rewards for trace in usable], [trace.token_logprobs for trace in usable]
    reward_below, logprob_below = _fit_threshold(rewards, usable), _fit_threshold(logprobs, usable)
    reward, logprob = _hits(rewards, usable, reward_below), _hits(logprobs, usable, logprob_below)
    return ChosenRules(
        reward=max(RULES, key=lambda rule: reward[rule].sum()),
        logprob=max(RULES, key=lambda rule: logprob[rule].sum()),
        reward_below=reward_below,
        logprob_below=logprob_below,
    )


def _fit_threshold(numbers: Sequence[Sequence[float]], traces: Sequence[CorruptedTrace]) -> float | None:
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
    """Hit@1 of the rewards and of the policy's log-probabilities beside exact chance; None without any trace.

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
    reward, logprob = (
        _hits([t.token_rewards for t in usable], usable, rules.reward_below),
        _hits([t.token_logprobs for t in usable], usable, rules.logprob_below),
    )
    bootstrap = Bootstrap.of(max(len(usable), 1), seed=seed, num_resamples=num_resamples)
    headline, baseline = (
        (bootstrap.mean(reward[rules.reward]), bootstrap.mean(logprob[rules.logprob])) if usable else _NONE
    )
    chances = [(t.first_error_end - t.first_error_start) / t.num_tokens for t in usable]
    return FirstError(
        hit_at_1=headline.mean,
        ci95=headline.ci95,
        chance=float(np.mean(chances)) if usable else None,
        num_traces=len(usable),
        rule=rules.reward,
        threshold=rules.reward_below if rules.reward == "first_below" else None,
        logprob_hit_at_1=baseline.mean,
        logprob_ci95=baseline.ci95,
        logprob_rule=rules.logprob,
        logprob_threshold=rules.logprob_below if rules.logprob == "first_below" else None,
        num_excluded=num_excluded,
        by_rule={r: {"reward": float(reward[r].mean()), "logprob": float(logprob[r].mean())} for r in RULES if usable},
    )


def _has_error(trace: CorruptedTrace) -> bool:
    return 0 <= trace.first_error_start < trace.first_error_end <= trace.num_tokens


def _hits(
    numbers: Sequence[Sequence[float]], traces: Sequence[CorruptedTrace], below: float | None
) -> dict[str, Floats]:
    return {
        rule: np.array(
            [
                float(trace.first_error_start <= guess_first_error(values, rule, below) < trace.first_error_end)
                for values, trace in zip(numbers, traces, strict=True)
            ]
        )
        for rule in RULES
    }
