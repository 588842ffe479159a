import time

import pytest


@pytest.fixture
def same_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock stands still. Budgets are counted by its minutes: whoever steps into the next one is granted more."""
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s)
