"""Rewards on a scale of their own: centred and divided by what the critic's output has been so far."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from irlops_jobs.distributed.runtime import Runtime

_SMALLEST_STD = 1e-3


class RunningScale:
    """Mean and standard deviation of all token rewards seen, over all processes and rounds.

    A critic's logits grow while it learns; clipping limits and advantages then mean something else every round.

    Example:
        After rewards 1 and 3: mean 2, std 1, and ``apply`` turns 3 into 1.
    """

    def __init__(self) -> None:
        self._count, self._sum, self._sum_of_squares = 0.0, 0.0, 0.0

    def add(self, rewards: Iterable[Tensor], runtime: Runtime) -> None:
        """Take this process's rewards in, but for those that are not finite; every process must call it equally often.

        One of those would make all later rewards NaN, long after the update that it stands for was left out.
        """
        rows = [row[torch.isfinite(row)].double() for row in rewards]
        local = [sum(len(row) for row in rows), *(sum(float((row**power).sum()) for row in rows) for power in (1, 2))]
        count, total, squares = runtime.total(*local)
        self._count += count
        self._sum += total
        self._sum_of_squares += squares

    @property
    def mean(self) -> float:
        return self._sum / self._count if self._count else 0.0

    @property
    def std(self) -> float:
        """Population standard deviation, at least 0.001; 1 before anything was seen."""
        if not self._count:
            return 1.0
        return max(math.sqrt(max(self._sum_of_squares / self._count - self.mean**2, 0.0)), _SMALLEST_STD)

    def apply(self, reward: Tensor) -> Tensor:
        """(reward - mean) / std, elementwise."""
        return (reward - self.mean) / self.std

    def state(self) -> dict[str, float]:
        return {"count": self._count, "sum": self._sum, "sum_of_squares": self._sum_of_squares}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._count, self._sum, self._sum_of_squares = state["count"], state["sum"], state["sum_of_squares"]
