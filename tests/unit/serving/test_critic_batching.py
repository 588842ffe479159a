"""Requests that wait together are scored together, and one caller's trouble is not another's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from irlops_serving.critic.batching import MicroBatcher, TooManyWaitingError
from irlops_serving.critic.scoring import Rewards, Tokens


class SlowDoubler:
    """Rewards are twice the token ids; waits until it may go on."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.batches: list[int] = []

    def __call__(self, sequences: Sequence[Tokens]) -> list[Rewards]:
        self.may_go_on.wait(60)
        self.batches.append(len(sequences))
        return [(tokens * 2).astype(np.float32) for tokens in sequences]


def _sequences(*ids: int) -> list[Tokens]:
    return [np.array([token], dtype=np.int64) for token in ids]


async def _let_tasks_run() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_requests_that_arrive_during_a_pass_go_together_in_the_next():
    doubler = SlowDoubler()
    batcher = MicroBatcher(doubler)
    calls = [asyncio.create_task(batcher.score(_sequences(1, 2)))]
    await _let_tasks_run()
    calls += [asyncio.create_task(batcher.score(_sequences(first, first + 1))) for first in (10, 20)]
    await _let_tasks_run()
    doubler.may_go_on.set()
    answers = await asyncio.gather(*calls)
    assert doubler.batches == [2, 4]
    assert [[float(rewards[0]) for rewards in answer] for answer in answers] == [[2, 4], [20, 22], [40, 42]]


async def test_a_caller_who_left_costs_nothing():
    doubler = SlowDoubler()
    batcher = MicroBatcher(doubler)
    first = asyncio.create_task(batcher.score(_sequences(1)))
    await _let_tasks_run()  # the first is being scored now
    second = asyncio.create_task(batcher.score(_sequences(2)))
    await _let_tasks_run()
    second.cancel()
    third = asyncio.create_task(batcher.score(_sequences(3)))
    await _let_tasks_run()
    doubler.may_go_on.set()
    await asyncio.gather(first, third)
    assert doubler.batches == [1, 1]


async def test_a_batch_never_outgrows_its_token_budget():
    doubler = SlowDoubler()
    batcher = MicroBatcher(doubler, max_batch_tokens=3)
    calls = [asyncio.create_task(batcher.score(_sequences(1, 2))) for _ in range(3)]
    await _let_tasks_run()
    doubler.may_go_on.set()
    await asyncio.gather(*calls)
    assert doubler.batches == [2, 2, 2]  # two requests would be 4 tokens


async def test_a_full_queue_refuses_and_says_how_much_waits():
    doubler = SlowDoubler()
    batcher = MicroBatcher(doubler, max_waiting_tokens=3)
    scored = asyncio.create_task(batcher.score(_sequences(1)))
    await _let_tasks_run()
    waiting = asyncio.create_task(batcher.score(_sequences(2, 3)))
    await _let_tasks_run()
    with pytest.raises(TooManyWaitingError, match="2 tokens are waiting"):
        await batcher.score(_sequences(4, 5))
    doubler.may_go_on.set()
    await asyncio.gather(scored, waiting)


async def test_a_failing_pass_fails_its_callers_and_the_next_works():
    def fail_on_zero(sequences: Sequence[Tokens]) -> list[Rewards]:
        if any(int(tokens[0]) == 0 for tokens in sequences):
            raise RuntimeError("out of memory")
        return [tokens.astype(np.float32) for tokens in sequences]

    batcher = MicroBatcher(fail_on_zero)
    with pytest.raises(RuntimeError, match="out of memory"):
        await batcher.score(_sequences(0))
    assert float((await batcher.score(_sequences(7)))[0][0]) == 7.0
