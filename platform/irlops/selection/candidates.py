"""What selection looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """One sampled solution, as selection sees it.

    Example:
        ``Candidate(answer="17", num_tokens=41, token_rewards=(0.2, 0.9), logprob=-3.1)``
    """

    answer: str | None
    """Extracted final answer; None when there is none, and such a candidate never votes."""
    num_tokens: int
    token_rewards: Sequence[float] | None = None
    """None when the critic could not be asked."""
    logprob: float | None = None
    """Sum over the solution's tokens under the policy, nats."""
