"""What each caller may still use: requests and tokens a minute, counted by the ``limits`` library."""

from __future__ import annotations

import time

from limits import RateLimitItemPerMinute
from limits.aio.storage import Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.storage import storage_from_string

from irlops_serving.gateway.callers import Caller
from irlops_serving.gateway.errors import ApiError, rate_limited
from irlops_serving.gateway.exchange import Headers
from irlops_serving.gateway.settings import LimitSettings


class Allowances:
    """Budgets of every caller.

    A request is counted before its work. Tokens are counted after, when they are known: a caller with any budget left
    may start, so the last request of a minute can go beyond it.
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
            left, reset_s = await self._state(self._item(tokens), "tokens", caller)
            if left <= 0:
                raise _refusal("tokens", caller, tokens, reset_s)
            headers += _headers("tokens", tokens, left, reset_s)
        requests = caller.requests_per_minute or self._requests
        if requests is not None:
            item = self._item(requests)
            counted = await self._limiter.hit(item, "requests", caller.name)
            left, reset_s = await self._state(item, "requests", caller)
            if not counted:
                raise _refusal("requests", caller, requests, reset_s)
            headers += _headers("requests", requests, left, reset_s)
        return headers

    async def charge(self, caller: Caller, num_tokens: int) -> None:
        """Count the tokens a request turned out to use."""
        limit = caller.tokens_per_minute or self._tokens
        if limit is None or num_tokens <= 0:
            return
        item = self._item(limit)
        # The library refuses, and does not count, what goes beyond the limit; then what is left is spent.
        if not await self._limiter.hit(item, "tokens", caller.name, cost=num_tokens):
            left, _ = await self._state(item, "tokens", caller)
            if left > 0:
                await self._limiter.hit(item, "tokens", caller.name, cost=left)

    async def _state(self, item: RateLimitItemPerMinute, kind: str, caller: Caller) -> tuple[int, float]:
        """What is left of a budget, and the seconds until some of it comes back."""
        stats = await self._limiter.get_window_stats(item, kind, caller.name)
        return max(0, stats.remaining), max(0.0, stats.reset_time - time.time())

    def _item(self, limit: int) -> RateLimitItemPerMinute:
        item = self._items.get(limit)
        if item is None:
            item = self._items[limit] = RateLimitItemPerMinute(limit)
        return item


def _headers(kind: str, limit: int, left: int, reset_s: float) -> Headers:
    name = kind.encode()
    return [
        (b"x-ratelimit-limit-" + name, str(limit).encode()),
        (b"x-ratelimit-remaining-" + name, str(left).encode()),
        (b"x-ratelimit-reset-" + name, f"{reset_s:.1f}s".encode()),
    ]


def _refusal(kind: str, caller: Caller, limit: int, reset_s: float) -> ApiError:
    wait_s = max(1.0, reset_s)
    return rate_limited(f"{caller.name!r} has used its {limit} {kind} a minute. Try again in {wait_s:.0f} s.", wait_s)
