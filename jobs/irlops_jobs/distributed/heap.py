"""Giving back what a process has freed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable


def _find_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library than glibc
        return None


_trim = _find_trim()


def give_back_freed_memory() -> None:
    """Return freed pages of the heap to the system; does nothing without glibc.

    Every pass on a CPU has another shape, so its tensors leave holes that the next ones don't fit into. Over a run of the
    tiny preset that added up to a third of a worker's memory; once a round it costs some milliseconds.
    """
    if _trim is not None:
        _trim(0)
