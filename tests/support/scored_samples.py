"""Scored samples and corrupted solutions for tests of the evaluation: few, with numbers chosen by hand."""

from __future__ import annotations

from collections.abc import Sequence

from irlops_jobs.evaluation.carriers import CorruptedTrace, ScoredProblem, ScoredSample, ScoredSamples
from irlops_jobs.evaluation.table import SampleTable


def sample(
    answer: str | None, *rewards: float, truncated: bool = False, logprob: float = -0.5, span: int = 1
) -> ScoredSample:
    """A solution of as many tokens as there are rewards, the last ``span`` of which are its answer."""
    num = len(rewards)
    return ScoredSample(
        text="" if answer is None else f"some steps\n#### {answer}",
        answer=answer,
        num_tokens=num,
        token_rewards=rewards,
        token_logprobs=(logprob,) * num,
        truncated=truncated,
        answer_span=None if answer is None else (num - span, num),
    )


def problem(*samples: ScoredSample, gold: str = "5") -> ScoredProblem:
    return ScoredProblem("How many?", gold, samples)


def table_of(*problems: ScoredProblem) -> SampleTable:
    return SampleTable.of(ScoredSamples.of(problems))


def trace(rewards: Sequence[float], error: tuple[int, int], logprobs: Sequence[float] | None = None) -> CorruptedTrace:
    return CorruptedTrace(rewards, logprobs or [-1.0] * len(rewards), *error, len(rewards))
