"""Finding the known first error of corrupted solutions, and how often a guess at random would.

A rule turns the numbers of a trace's tokens into one guessed token:

    lowest       the token with the lowest number
    drop         the token whose number falls most below the one before it; the first one is compared with the trace's mean
    below_mean   the token whose number falls most below the mean of all before it; likewise for the first one
    change       the token from which on the numbers fit "wrong" best, and before it "right": with log-odds as numbers, the
                 most likely change point, argmin over t of the sum of (number - trace's mean) from t on

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

from irlops.contracts.evaluation import FirstError
from irlops_jobs.evaluation.bootstrap import Bootstrap
from irlops_jobs.evaluation.carriers import CorruptedTrace, check_corrupted
from irlops_jobs.evaluation.table import Floats

DEFAULT_RULE = "lowest"


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
RULES = tuple(_RULES)


def guess_first_error(token_numbers: Sequence[float], rule: str) -> int:
    """The token that a rule takes for the first error."""
    return int(np.argmin(_RULES[rule](np.asarray(token_numbers, np.float64))))


@dataclass(frozen=True)
class ChosenRules:
    """The rule for each kind of number. Example: ``ChosenRules(reward="lowest", logprob="drop")``."""

    reward: str = DEFAULT_RULE
    logprob: str = DEFAULT_RULE


def choose_rules(dev: Sequence[CorruptedTrace]) -> ChosenRules:
    """The rules with the most hits on dev solutions; the first of equals, and the default without any solution.

    Raises:
        DataError: a trace lacks numbers or has NaN.
    """
    check_corrupted(dev)
    usable = [trace for trace in dev if _has_error(trace)]
    if not usable:
        return ChosenRules()
    reward = _hits([trace.token_rewards for trace in usable], usable)
    logprob = _hits([trace.token_logprobs for trace in usable], usable)
    return ChosenRules(
        reward=max(RULES, key=lambda rule: reward[rule].sum()), logprob=max(RULES, key=lambda rule: logprob[rule].sum())
    )


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
    if not usable:
        return FirstError(
            hit_at_1=None, chance=None, num_traces=0, rule=rules.reward, logprob_hit_at_1=None, logprob_rule=rules.logprob,
            num_excluded=num_excluded,
        )  # fmt: skip
    bootstrap = Bootstrap.of(len(usable), seed=seed, num_resamples=num_resamples)
    reward, logprob = (
        _hits([t.token_rewards for t in usable], usable),
        _hits([t.token_logprobs for t in usable], usable),
    )
    headline, baseline = bootstrap.mean(reward[rules.reward]), bootstrap.mean(logprob[rules.logprob])
    return FirstError(
        hit_at_1=headline.mean,
        ci95=headline.ci95,
        chance=float(np.mean([(t.first_error_end - t.first_error_start) / t.num_tokens for t in usable])),
        num_traces=len(usable),
        rule=rules.reward,
        logprob_hit_at_1=baseline.mean,
        logprob_ci95=baseline.ci95,
        logprob_rule=rules.logprob,
        num_excluded=num_excluded,
        by_rule={r: {"reward": float(reward[r].mean()), "logprob": float(logprob[r].mean())} for r in RULES},
    )


def _has_error(trace: CorruptedTrace) -> bool:
    return 0 <= trace.first_error_start < trace.first_error_end <= trace.num_tokens


def _hits(numbers: Sequence[Sequence[float]], traces: Sequence[CorruptedTrace]) -> dict[str, Floats]:
    return {
        rule: np.array(
            [
                float(trace.first_error_start <= guess_first_error(values, rule) < trace.first_error_end)
                for values, trace in zip(numbers, traces, strict=True)
            ]
        )
        for rule in RULES
    }
