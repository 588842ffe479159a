"""Scores candidates while others are still being written, in few calls: half of what is left, then half of the rest, …

Scoring takes the same cores (or the same accelerator's time) as writing, and every call reads the prompt again. A call for
each candidate would slow the writing down; one call at the end would come too late. Halving makes the last call small.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from irlops_serving.gateway.critic import CriticClient, TokenizedSolution
from irlops_serving.gateway.errors import ApiError
from irlops_serving.gateway.logs import logger

# Where candidates take long to write, those that are done don't wait for half of the others.
GATHER_AT_MOST_S = 0.25


class OverlappedScorer:
    """One request's scores. ``add`` never waits; ``drain`` waits for all; ``close`` ends what is left.

    One call at a time: what finishes meanwhile makes the next batch, so batches grow with the load by themselves.
    """

    def __init__(self, critic: CriticClient, on_scored: Callable[[int], None] = lambda _: None) -> None:
        self._critic, self._on_scored = critic, on_scored
        self.rewards: dict[int, list[float]] = {}
        """Token rewards by candidate index."""
        self.failure: ApiError | None = None
        """Why scoring stopped; the candidates without rewards stay without."""
        self.busy_s = 0.0
        self._waiting: dict[int, TokenizedSolution] = {}
        self._known: dict[TokenizedSolution, list[float]] = {}
        self._num_expected = 0
        """Candidates still being written."""
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def expect(self, num: int) -> None:
        """Tell that ``num`` candidates are about to be written."""
        self._num_expected = num

    def add(self, index: int, solution: TokenizedSolution) -> None:
        """Score candidate ``index`` as soon as the critic is free."""
        self._num_expected -= 1
        self._more.set()
        if self.failure is not None:
            return
        if solution in self._known:
            self._keep(index, self._known[solution])
            return
        self._waiting[index] = solution
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._score_waiting())

    async def drain(self) -> None:
        """Wait until everything added is scored, or scoring has failed. Nothing more is expected then."""
        self.expect(0)
        self._more.set()
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])
        if self._task is not None:
            self._task.result()

    async def close(self) -> None:
        """Cancel what runs."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    def _keep(self, index: int, rewards: list[float]) -> None:
        self.rewards[index] = rewards
        self._on_scored(index)

    async def _gather(self) -> None:
        """Until at least as many candidates wait as are still being written."""
        # A moment for what finishes in the same breath: samples of one wave often end on the same token.
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(GATHER_AT_MOST_S):
                while len(self._waiting) < self._num_expected:
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            return

    async def _score_waiting(self) -> None:
        while self._waiting:
            await self._gather()
            batch, self._waiting = self._waiting, {}
            distinct = list(dict.fromkeys(batch.values()))
            started_s = time.perf_counter()
            try:
                rewards = await self._critic.score(distinct)
            except ApiError as error:
                self.failure = error
                logger.warning("critic_failed", code=error.code, error=str(error))
                return
            finally:
                self.busy_s += time.perf_counter() - started_s
            self._known.update(zip(distinct, rewards, strict=True))
            for index, solution in batch.items():
                self._keep(index, self._known[solution])
