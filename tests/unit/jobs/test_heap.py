"""Memory that was freed goes back to the system."""

import ctypes

import psutil
import pytest

from irlops_jobs.distributed import heap

BLOCK, NUM_BLOCKS = 64 * 2**10, 1024  # small enough for the heap, 64 MiB together


@pytest.mark.skipif(heap._trim is None, reason="the C library is not glibc")
def test_freed_pages_below_memory_that_is_in_use_are_given_back(monkeypatch):
    monkeypatch.setattr(heap, "_given_back_at_s", -heap.AT_MOST_EVERY_S)
    blocks = [ctypes.create_string_buffer(b"x" * BLOCK) for _ in range(NUM_BLOCKS)]
    in_use = blocks[-1]  # on top of the heap: without trimming nothing below it is ever returned
    del blocks
    before = psutil.Process().memory_info().rss
    heap.give_back_freed_memory()
    assert before - psutil.Process().memory_info().rss > BLOCK * NUM_BLOCKS // 2
    assert len(in_use) == BLOCK + 1


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert heap._find_trim() is None


def test_it_happens_once_in_a_while_however_short_the_rounds_are(monkeypatch):
    calls = []
    monkeypatch.setattr(heap, "_trim", calls.append)
    monkeypatch.setattr(heap, "_given_back_at_s", -heap.AT_MOST_EVERY_S)
    for _ in range(5):
        heap.give_back_freed_memory()
    assert calls == [0]
