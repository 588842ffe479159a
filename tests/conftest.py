"""What all tests share: the quick ones run first, so that a broken line is reported before the first server starts."""

import signal

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


def pytest_configure() -> None:
    """Programs under test are interrupted with SIGINT; a shell that starts the tests in the background leaves it ignored,
    and children inherit that."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
