"""A circuit breaker: after failures in a row, refuse at once instead of making every caller wait for a timeout."""

from __future__ import annotations

import time
from collections.abc import Callable


class CircuitBreaker:
    """Closed (calls pass), open (calls are refused for ``open_s``), then half open: one call tries for all.

    Written here because the libraries are stale or synchronous, and it is one counter and one clock.
    """

    def __init__(self, failures: int, open_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._open_s, self._clock = failures, open_s, clock
        self._failures_in_row = 0
        self._opened_at_s: float | None = None
        self._trying = False

    @property
    def is_open(self) -> bool:
        """Whether calls are refused now."""
        return self.retry_after_s > 0

    @property
    def retry_after_s(self) -> float:
        """Seconds until a call may pass; 0 when it may now."""
        if self._opened_at_s is None:
            return 0.0
        left_s = self._opened_at_s + self._open_s - self._clock()
        return max(left_s, 0.001) if left_s > 0 or self._trying else 0.0

    def may_call(self) -> bool:
        """Ask before each call; True in the half-open state reserves the one trial, to be ended by a record."""
        if self.is_open:
            return False
        self._trying = self._opened_at_s is not None
        return True

    def record_success(self) -> None:
        """The call was answered (whatever the answer said to the client)."""
        self._failures_in_row, self._opened_at_s, self._trying = 0, None, False

    def record_failure(self) -> None:
        """The call got no usable answer."""
        self._failures_in_row += 1
        if self._trying or self._failures_in_row >= self._limit:
            self._opened_at_s = self._clock()
        self._trying = False

    def record_cancelled(self) -> None:
        """The caller left before there was an answer: says nothing about the server, but frees the trial."""
        self._trying = False
