"""Which pipeline is looked at next: each at most once at a time, none before it is due."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class WorkQueue:
    """Names with the time they are due; adding one again only ever brings it forward."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: dict[str, float] = {}
        self._busy: set[str] = set()
        self._changed = asyncio.Condition()

    async def add(self, name: str, delay_s: float = 0.0) -> None:
        """Look at ``name`` in ``delay_s`` at the latest."""
        at = self._clock() + delay_s
        async with self._changed:
            if at < self._due.get(name, float("inf")):
                self._due[name] = at
                self._changed.notify_all()

    async def forget(self, name: str) -> None:
        """It is gone."""
        async with self._changed:
            self._due.pop(name, None)

    async def take(self) -> str:
        """The next one that is due, as soon as one is; nobody else gets it before ``done``."""
        async with self._changed:
            while True:
                free = [(at, name) for name, at in self._due.items() if name not in self._busy]
                at, name = min(free, default=(float("inf"), ""))
                wait_s = at - self._clock()
                if wait_s <= 0:
                    del self._due[name]
                    self._busy.add(name)
                    return name
                await self._wait(min(wait_s, 3600.0))

    async def done(self, name: str) -> None:
        """It may be taken again."""
        async with self._changed:
            self._busy.discard(name)
            self._changed.notify_all()

    async def _wait(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except TimeoutError:
            return
