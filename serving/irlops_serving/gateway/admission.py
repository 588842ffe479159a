"""How many requests run at once: a bounded number run, a bounded number wait, the rest are told to come back."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

from irlops_serving.gateway.errors import overloaded
from irlops_serving.gateway.metrics import Metrics, labelled


class Gate:
    """Places for one kind of request. ``async with gate:`` waits for one, first come first served.

    asyncio.Semaphore has neither a bound on waiters nor a count of them.
    """

    def __init__(self, kind: str, places: int, max_queued: int, queue_timeout_s: float, metrics: Metrics) -> None:
        self._free, self._max_queued, self._timeout_s = places, max_queued, queue_timeout_s
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._in_flight, self._queued = labelled(metrics.in_flight, kind), labelled(metrics.queued, kind)
        self._refused_full = labelled(metrics.refused, "queue_full")
        self._refused_slow = labelled(metrics.refused, "queue_timeout")

    async def __aenter__(self) -> None:
        if self._free > 0:
            self._free -= 1
        else:
            await self._wait()
        self._in_flight.inc()

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._in_flight.dec()
        self._release()

    def _release(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._free += 1

    async def _wait(self) -> None:
        if len(self._waiting) >= self._max_queued:
            self._refused_full.inc()
            raise overloaded(f"Too many requests are waiting ({len(self._waiting)}).", self._timeout_s)
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        self._queued.inc()
        try:
            async with asyncio.timeout(self._timeout_s):
                await place
        except BaseException as error:
            self._give_back(place)
            if not isinstance(error, TimeoutError):
                raise
            self._refused_slow.inc()
            raise overloaded(f"No place was free within {self._timeout_s:g} s.", self._timeout_s) from None
        finally:
            self._queued.dec()

    def _give_back(self, place: asyncio.Future[None]) -> None:
        if place.done() and not place.cancelled():
            # The place was given in the same moment as the wait ended: pass it on.
            self._release()
        elif place in self._waiting:
            self._waiting.remove(place)
