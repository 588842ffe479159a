"""What an engine returns and what the updates consume: samples, and traces grouped by their question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn


@dataclass(frozen=True)
class Sample:
    """One sampled solution.

    Example:
        ``Sample(token_ids=(34, 17, 2), logprobs=(-0.1, -0.3, -0.01), truncated=False)``; 2 is the end token.
    """

    token_ids: tuple[int, ...]
    """Solution tokens; the end token is the last one unless the sample was truncated."""
    logprobs: tuple[float, ...]
    """Of each token under the sampling distribution at temperature 1, in nats, as the engine computed them."""
    truncated: bool
    """Ran out of tokens before the end token."""
    alternatives: tuple[int, ...] = ()
    """What the policy might as well have written at each token: drawn from it with the token itself excluded. Empty where
    the engine doesn't tell."""


OnProgress = Callable[[int, int], None]
"""Called now and then while sampling, with prompts that are done and all of them."""


class RolloutEngine(Protocol):
    """Samples solutions from the newest policy weights it was given."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        num_samples: int,
        seeds: Sequence[int],
        on_progress: OnProgress | None = None,
    ) -> list[list[Sample]]:
        """``num_samples`` solutions for each prompt; ``seeds`` (one a prompt) fix them, whatever shares the batch."""
        ...

    def load_weights(self, policy: nn.Module) -> None:
        """Sample from these weights from now on."""
        ...

    def close(self) -> None:
        """Give memory and processes back."""
        ...
