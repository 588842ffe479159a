"""What an evaluation starts from: problems with scored samples, and corrupted solutions with a known first error.

Made by ``irlops_jobs.evaluate`` (which samples and scores), consumed by everything in this package. A critic of one policy
on another's samples is just another ``ScoredSamples``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from irlops.errors import DataError


@dataclass(frozen=True)
class ScoredSample:
    """One sampled solution with the critic's and the policy's numbers for each of its tokens.

    Example:
        ``ScoredSample(text="5+2=7\\n#### 7", answer="7", num_tokens=9, token_rewards=(0.2, ...), token_logprobs=(-0.1, ...),
        truncated=False, answer_span=(6, 9))``
    """

    text: str
    answer: str | None
    """Final answer, None when the sample gives none or was truncated; such a sample is wrong and never votes."""
    num_tokens: int
    token_rewards: Sequence[float]
    """One per solution token, the critic's raw logit; higher reads more like an expert. Empty for an empty completion."""
    token_logprobs: Sequence[float]
    """One per solution token, nats, under the policy that sampled it."""
    truncated: bool = False
    """Ran out of tokens before its end."""
    answer_span: tuple[int, int] | None = None
    """Token positions (first, one after the last) of the final answer's place, None when there is none."""
    token_ids: Sequence[int] = ()
    """For pictures of single tokens; may be left out."""


@dataclass(frozen=True)
class ScoredProblem:
    """A question with its gold answer and every sample the policy gave."""

    question: str
    gold: str
    samples: tuple[ScoredSample, ...]
    only_solution_ids: Sequence[int] = ()
    """The right solution's tokens where there is but one to the letter; empty where a question may be solved in many words."""


@dataclass(frozen=True)
class CorruptedTrace:
    """An expert's solution with one known first error, scored token by token.

    Example:
        ``CorruptedTrace(token_rewards=(1.0, 0.9, -0.5, 0.1), token_logprobs=(...), first_error_start=2, first_error_end=3,
        num_tokens=4)``: the third token is the first wrong one.
    """

    token_rewards: Sequence[float]
    token_logprobs: Sequence[float]
    first_error_start: int
    """Token position."""
    first_error_end: int
    """Token position, exclusive."""
    num_tokens: int
    token_ids: Sequence[int] = ()
    """For pictures; may be left out."""


@dataclass(frozen=True)
class ScoredSamples:
    """All problems of one split, with the same number of samples each.

    Raises:
        DataError: no problems, different numbers of samples, or numbers that are missing, infinite or NaN.
    """

    problems: tuple[ScoredProblem, ...]
    name: str = "samples"
    """For messages: ``test/airl``."""

    @classmethod
    def of(cls, problems: Iterable[ScoredProblem], name: str = "samples") -> ScoredSamples:
        """From any iterable."""
        return cls(tuple(problems), name)

    def __post_init__(self) -> None:
        if not self.problems:
            raise DataError(f"{self.name} holds no problem. Evaluate on at least one.")
        counts = Counter(len(problem.samples) for problem in self.problems)
        if len(counts) > 1 or 0 in counts:
            seen = ", ".join(f"{count} of {num}" for num, count in sorted(counts.items()))
            raise DataError(
                f"{self.name}: problems have different numbers of samples, or none ({seen}). Sample each equally often."
            )
        for number, problem in enumerate(self.problems):
            for index, sample in enumerate(problem.samples):
                _check_numbers(sample, f"{self.name}: sample {index} of problem {number}")

    @property
    def samples_per_problem(self) -> int:
        return len(self.problems[0].samples)


def check_corrupted(traces: Sequence[CorruptedTrace]) -> None:
    """Hold corrupted traces to what localisation reads.

    Raises:
        DataError: names the first trace that lacks numbers or has NaN.
    """
    for number, trace in enumerate(traces):
        _check_numbers(trace, f"corrupted trace {number}")


def _check_numbers(scored: ScoredSample | CorruptedTrace, name: str) -> None:
    for what, values in (("rewards", scored.token_rewards), ("log-probabilities", scored.token_logprobs)):
        if len(values) != scored.num_tokens:
            raise DataError(f"{name} has {scored.num_tokens} tokens but {len(values)} {what}. Score every token once.")
        if not all(map(math.isfinite, values)):
            place = next(i for i, value in enumerate(values) if not math.isfinite(value))
            raise DataError(
                f"{name}: token {place} of its {what} is {values[place]}. The model that gave it is broken (training "
                "diverged, or its file is damaged): go back to its last healthy checkpoint."
            )
