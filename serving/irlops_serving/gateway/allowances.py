"""What each caller may still use: requests and tokens a minute, counted by the ``limits`` library."""

from __future__ import annotations

import time

from limits import RateLimitItemPerMinute
from limits.aio.storage import Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.storage import storage_from_string

from irlops_serving.gateway.callers import Caller
from irlops_serving.gateway.errors import rate_limited
from irlops_serving.gateway.exchange import Headers
from irlops_serving.gateway.settings import LimitSettings


class Allowances:
    """Budgets of every caller.

    A request is counted before its work. Tokens are counted after, when they are known: a caller with any budget left
    may start, so one request can overdraw it, and then waits the longer.
    """

    def __init__(self, settings: LimitSettings) -> None:
        storage = storage_from_string(settings.storage_url)
        assert isinstance(storage, Storage), "storage_url names an async storage"
        # A sliding window has no minute boundary at which twice the budget passes.
        self._limiter = SlidingWindowCounterRateLimiter(storage)
        self._requests, self._tokens = settings.requests_per_minute, settings.tokens_per_minute
        self._items: dict[int, RateLimitItemPerMinute] = {}

    async def admit(self, caller: Caller) -> Headers:
        """Count one request; returns OpenAI's ``x-ratelimit-*`` headers.

        Raises:
            ApiError: 429 with the seconds to wait when either budget is spent.
        """
        headers: Headers = []
        tokens = caller.tokens_per_minute or self._tokens
        if tokens is not None:
            item = self._item(tokens)
            if not await self._limiter.test(item, "tokens", caller.name):
                raise await self._refusal(item, "tokens", caller, tokens)
            headers += await self._headers(item, "tokens", caller, tokens)
        requests = caller.requests_per_minute or self._requests
        if requests is not None:
            item = self._item(requests)
            if not await self._limiter.hit(item, "requests", caller.name):
                raise await self._refusal(item, "requests", caller, requests)
            headers += await self._headers(item, "requests", caller, requests)
        return headers

    async def charge(self, caller: Caller, num_tokens: int) -> None:
        """Count the tokens a request turned out to use."""
        limit = caller.tokens_per_minute or self._tokens
        if limit is None or num_tokens <= 0:
            return
        item = self._item(limit)
        left = (await self._limiter.get_window_stats(item, "tokens", caller.name)).remaining
        # The library refuses (and does not count) a hit beyond the limit; what overdraws spends the rest.
        await self._limiter.hit(item, "tokens", caller.name, cost=max(1, min(num_tokens, left)))

    def _item(self, limit: int) -> RateLimitItemPerMinute:
        item = self._items.get(limit)
        if item is None:
            item = self._items[limit] = RateLimitItemPerMinute(limit)
        return item

    async def _headers(self, item: RateLimitItemPerMinute, kind: str, caller: Caller, limit: int) -> Headers:
        stats = await self._limiter.get_window_stats(item, kind, caller.name)
        name = kind.encode()
        return [
            (b"x-ratelimit-limit-" + name, str(limit).encode()),
            (b"x-ratelimit-remaining-" + name, str(max(0, stats.remaining)).encode()),
            (b"x-ratelimit-reset-" + name, f"{max(0.0, stats.reset_time - time.time()):.1f}s".encode()),
        ]

    async def _refusal(self, item: RateLimitItemPerMinute, kind: str, caller: Caller, limit: int) -> Exception:
        stats = await self._limiter.get_window_stats(item, kind, caller.name)
        wait_s = max(1.0, stats.reset_time - time.time())
        return rate_limited(
            f"{caller.name!r} has used its {limit} {kind} a minute. Try again in {wait_s:.0f} s.", wait_s
        )
