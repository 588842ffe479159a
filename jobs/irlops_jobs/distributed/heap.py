"""Giving back what a process has freed."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

AT_MOST_EVERY_S = 10.0
"""What was given back has to be asked for again, page by page: a third of a second for a worker of the tiny preset."""


def _find_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library than glibc
        return None


_trim = _find_trim()
_given_back_at_s = -AT_MOST_EVERY_S


def give_back_freed_memory() -> None:
    """Return freed pages of the heap to the system, if that was a while ago; does nothing without glibc.

    Every pass on a CPU has another shape, so its tensors leave holes that the next ones don't fit into. Over a run of the
    tiny preset that added up to a third of a worker's memory.
    """
    global _given_back_at_s
    if _trim is not None and time.monotonic() - _given_back_at_s >= AT_MOST_EVERY_S:
        _given_back_at_s = time.monotonic()
        _trim(0)
