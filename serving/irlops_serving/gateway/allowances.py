"""What each caller may still use: requests and tokens a minute, counted by the ``limits`` library.

A budget is taken from the library in shares of one per cent and spent from the share: a busy caller costs a call of the
library (or of a shared store) once in many requests, and a small budget, whose share is one, is counted exactly.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from limits import RateLimitItemPerMinute
from limits.aio.storage import Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import ConfigurationError, StorageError
from limits.storage import storage_from_string

from irlops.errors import ConfigError
from irlops_serving.gateway.callers import Caller
from irlops_serving.gateway.errors import ApiError, budgets_unavailable, rate_limited
from irlops_serving.gateway.exchange import Headers
from irlops_serving.gateway.logs import logger
from irlops_serving.gateway.settings import LimitSettings

SHARES_OF_A_BUDGET = 100
# What the library said about a budget is asked again after this long, whatever was used meanwhile.
STATE_IS_FRESH_S = 0.5
# A shared store that answers later than this is as good as away: requests wait for it.
STORE_LIMIT_S = 2.0
# With OIDC, callers are as many as the provider has users: beyond this number those whose minute is over are forgotten.
MANY_ACCOUNTS = 10_000
FORGET_AFTER_S = 120.0


@dataclass(slots=True)
class _Account:
    """One budget of one caller."""

    kind: str
    caller: str
    limit: int
    item: RateLimitItemPerMinute
    share: int
    credit: int = 0
    """Taken from the library and not yet spent; negative: spent and not yet told to the library."""
    remaining: int = 0
    reset_at_s: float = 0.0
    asked_at_s: float = 0.0

    @property
    def left(self) -> int:
        return max(0, self.remaining + self.credit)

    def headers(self) -> Headers:
        """OpenAI's ``x-ratelimit-*`` headers."""
        name, reset_s = self.kind.encode(), max(0.0, self.reset_at_s - time.time())
        return [
            (b"x-ratelimit-limit-" + name, b"%d" % self.limit),
            (b"x-ratelimit-remaining-" + name, b"%d" % self.left),
            (b"x-ratelimit-reset-" + name, b"%.1fs" % reset_s),
        ]

    def refusal(self) -> ApiError:
        """429, with the seconds until some of the budget comes back."""
        wait_s = max(1.0, self.reset_at_s - time.time())
        message = f"{self.caller!r} has used its {self.limit} {self.kind} a minute. Try again in {wait_s:.0f} s."
        return rate_limited(message, wait_s)


class Allowances:
    """Budgets of every caller.

    A request is counted before its work. Tokens are counted after, when they are known: a caller with any budget left
    may start, so the last request of a minute can go beyond it.
    """

    def __init__(self, settings: LimitSettings) -> None:
        # A sliding window has no minute boundary at which twice the budget passes.
        self._limiter = SlidingWindowCounterRateLimiter(open_store(settings.storage_url))
        self._requests, self._tokens = settings.requests_per_minute, settings.tokens_per_minute
        self._accounts: dict[tuple[str, str, int], _Account] = {}
        self._look_again_at = MANY_ACCOUNTS

    async def admit(self, caller: Caller) -> Headers:
        """Count one request; returns OpenAI's ``x-ratelimit-*`` headers.

        Raises:
            ApiError: 429 with the seconds to wait when either budget is spent; 503 when a shared store is away.
        """
        try:
            return await self._admit(caller)
        except StorageError as error:
            logger.error("budgets_not_read", error=str(error))
            raise budgets_unavailable() from error

    async def _admit(self, caller: Caller) -> Headers:
        headers: Headers = []
        if limit := caller.tokens_per_minute or self._tokens:
            account = self._account("tokens", caller, limit)
            if time.monotonic() - account.asked_at_s > STATE_IS_FRESH_S or account.left <= 0:
                await self._ask(account)
            if account.left <= 0:
                raise account.refusal()
            headers += account.headers()
        if limit := caller.requests_per_minute or self._requests:
            account = self._account("requests", caller, limit)
            if account.credit <= 0 and not await self._take_share(account):
                raise account.refusal()
            account.credit -= 1
            headers += account.headers()
        return headers

    async def charge(self, caller: Caller, num_tokens: int) -> None:
        """Count the tokens a request turned out to use."""
        limit = caller.tokens_per_minute or self._tokens
        if limit is None or num_tokens <= 0:
            return
        account = self._account("tokens", caller, limit)
        account.credit -= num_tokens
        owed = -account.credit
        if owed < account.share:
            return
        account.credit = 0
        try:
            await self._settle(account, owed)
        except StorageError as error:
            # The answer was given; the next charge tells the store of these, too.
            account.credit -= owed
            logger.error("budgets_not_written", error=str(error))

    async def _settle(self, account: _Account, owed: int) -> None:
        # The library refuses, and does not count, what goes beyond the limit; then what is left is spent.
        if not await self._limiter.hit(account.item, account.kind, account.caller, cost=owed):
            await self._ask(account)
            if account.remaining > 0:
                await self._limiter.hit(account.item, account.kind, account.caller, cost=account.remaining)
        await self._ask(account)

    async def _take_share(self, account: _Account) -> bool:
        for share in (account.share, 1):
            if await self._limiter.hit(account.item, account.kind, account.caller, cost=share):
                account.credit += share
                await self._ask(account)
                return True
        await self._ask(account)
        return False

    async def _ask(self, account: _Account) -> None:
        stats = await self._limiter.get_window_stats(account.item, account.kind, account.caller)
        account.remaining, account.reset_at_s = stats.remaining, stats.reset_time
        account.asked_at_s = time.monotonic()

    def _account(self, kind: str, caller: Caller, limit: int) -> _Account:
        key = (kind, caller.name, limit)
        account = self._accounts.get(key)
        if account is None:
            self._forget_old_accounts()
            share = max(1, limit // SHARES_OF_A_BUDGET)
            account = _Account(kind, caller.name, limit, RateLimitItemPerMinute(limit), share)
            self._accounts[key] = account
        return account

    def _forget_old_accounts(self) -> None:
        """What is lost is a share at most, and its window has passed; the store itself lets go of old windows."""
        if len(self._accounts) < self._look_again_at:
            return
        last_s = time.monotonic() - FORGET_AFTER_S
        self._accounts = {key: one for key, one in self._accounts.items() if one.asked_at_s > last_s}
        self._look_again_at = max(MANY_ACCOUNTS, 2 * len(self._accounts))  # not at every newcomer, where all are busy


def open_store(url: str) -> Storage:
    """The store that ``limits.storage_url`` names; connected to at the first request.

    Raises:
        ConfigError: no such kind of store, or its client is not installed.
    """
    is_redis = url.partition("://")[0].startswith("async+redis")
    limits_s = {"socket_timeout": STORE_LIMIT_S, "socket_connect_timeout": STORE_LIMIT_S}
    options = {"implementation": "redispy", **limits_s} if is_redis else {}
    try:
        storage = storage_from_string(url, wrap_exceptions=True, **options)
    except ConfigurationError as error:
        # The library quotes the URL, which may hold a password.
        said = str(error).replace(url, f"{url.partition('://')[0]}://…")
        raise ConfigError(
            f"limits.storage_url can't be used ({said}). Name async+memory:// or async+redis://…."
        ) from None
    if not isinstance(storage, Storage):
        raise ConfigError("limits.storage_url names a store that would block. Put 'async+' before its scheme.")
    return storage
