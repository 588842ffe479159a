"""Requests that wait at the same moment are scored together, off the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from irlops_serving.critic.scoring import Rewards, Tokens

ScoreFunction = Callable[[Sequence[Tokens]], list[Rewards]]


class TooManyWaitingError(Exception):
    """More tokens wait than the server promises to work off; the caller should come back later."""


@dataclass(frozen=True)
class _Waiting:
    sequences: Sequence[Tokens]
    num_tokens: int
    done: asyncio.Future[list[Rewards]]


class MicroBatcher:
    """One worker thread; while it computes, requests gather and then go together.

    Nothing is held back to wait for company: a lone request starts at once.
    """

    def __init__(
        self, score: ScoreFunction, *, max_batch_tokens: int = 32_768, max_waiting_tokens: int = 1_048_576
    ) -> None:
        self._score = score
        self._max_batch_tokens = max_batch_tokens
        self._max_waiting_tokens = max_waiting_tokens
        self._waiting: deque[_Waiting] = deque()
        self._num_waiting_tokens = 0
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="critic")

    async def score(self, sequences: Sequence[Tokens]) -> list[Rewards]:
        """Rewards of ``sequences``, in their order.

        Raises:
            TooManyWaitingError: the queue is full.
        """
        num_tokens = sum(map(len, sequences))
        if self._waiting and self._num_waiting_tokens + num_tokens > self._max_waiting_tokens:
            raise TooManyWaitingError(
                f"{self._num_waiting_tokens} tokens are waiting to be scored; try again in a moment."
            )
        request = _Waiting(sequences, num_tokens, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._num_waiting_tokens += num_tokens
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work_off())
        return await request.done

    async def _work_off(self) -> None:
        while self._waiting:
            batch = self._take()
            if not batch:
                continue
            sequences = [tokens for request in batch for tokens in request.sequences]
            try:
                rewards = await asyncio.get_running_loop().run_in_executor(self._thread, self._score, sequences)
            except Exception as error:
                _fail(batch, error)
            else:
                _answer(batch, rewards)

    def _take(self) -> list[_Waiting]:
        """The oldest requests, as many as fit; those whose caller has left are dropped."""
        batch: list[_Waiting] = []
        num_tokens = 0
        while self._waiting and (not batch or num_tokens + self._waiting[0].num_tokens <= self._max_batch_tokens):
            request = self._waiting.popleft()
            self._num_waiting_tokens -= request.num_tokens
            if not request.done.done():
                batch.append(request)
                num_tokens += request.num_tokens
        return batch


def _answer(batch: Sequence[_Waiting], rewards: list[Rewards]) -> None:
    start = 0
    for request in batch:
        end = start + len(request.sequences)
        if not request.done.done():
            request.done.set_result(rewards[start:end])
        start = end


def _fail(batch: Sequence[_Waiting], error: Exception) -> None:
    for request in batch:
        if not request.done.done():
            request.done.set_exception(error)
