"""Places and queues."""

import asyncio

import pytest

from irlops_serving.gateway.admission import Gate
from irlops_serving.gateway.errors import ApiError
from irlops_serving.gateway.metrics import Metrics


def _gate(places=1, max_queued=1, queue_timeout_s=60.0):
    return Gate("policy", places, max_queued, queue_timeout_s, Metrics())


async def _hold(gate, until, order=None, name=None):
    async with gate:
        if order is not None:
            order.append(name)
        await until.wait()


async def test_who_waits_is_served_in_order():
    gate, until, order = _gate(max_queued=3), asyncio.Event(), []
    tasks = []
    for name in "abc":
        tasks.append(asyncio.create_task(_hold(gate, until, order, name)))
        await asyncio.sleep(0)
    until.set()
    await asyncio.gather(*tasks)
    assert order == ["a", "b", "c"]


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back():
    gate, until = _gate(queue_timeout_s=70), asyncio.Event()
    tasks = [asyncio.create_task(_hold(gate, until)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(ApiError) as refused:
        async with gate:
            pass
    assert (refused.value.status, refused.value.code, refused.value.retry_after_s) == (503, "overloaded", 70)
    until.set()
    await asyncio.gather(*tasks)


async def test_who_waited_too_long_is_refused_and_leaves_the_queue():
    gate, until = _gate(queue_timeout_s=0.01), asyncio.Event()
    task = asyncio.create_task(_hold(gate, until))
    await asyncio.sleep(0)
    for _ in range(2):
        with pytest.raises(ApiError, match="No place was free"):
            async with gate:
                pass
    until.set()
    await task


async def test_a_place_of_a_waiter_who_left_goes_to_the_next():
    gate, until = _gate(max_queued=2), asyncio.Event()
    first, second, third = (asyncio.create_task(_hold(gate, until)) for _ in range(3))
    await asyncio.sleep(0)
    second.cancel()
    until.set()
    await asyncio.wait_for(asyncio.gather(first, third), 30)
    async with gate:
        pass
    assert second.cancelled() or second.cancelling()
