"""What all tests share: the quick ones run first, so that a broken line is reported before the first server starts."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
