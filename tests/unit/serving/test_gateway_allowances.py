"""Budgets of callers."""

import contextlib
import shutil
import socket
import subprocess
import time

import pytest

from irlops.errors import ConfigError
from irlops_serving.gateway.allowances import Allowances
from irlops_serving.gateway.callers import Caller
from irlops_serving.gateway.errors import ApiError
from irlops_serving.gateway.settings import LimitSettings

pytestmark = pytest.mark.usefixtures("same_minute")


async def _admitted(allowances, caller, tries):
    count = 0
    for _ in range(tries):
        try:
            await allowances.admit(caller)
        except ApiError:
            return count
        count += 1
    return count


@pytest.mark.parametrize("limit", [1, 7, 100, 1234], ids=str)
async def test_exactly_as_many_requests_as_the_budget_pass(limit):
    allowances = Allowances(LimitSettings())
    assert await _admitted(allowances, Caller("a", requests_per_minute=limit), limit + 10) == limit


async def test_a_refusal_says_when_to_come_back():
    allowances, caller = Allowances(LimitSettings()), Caller("a", requests_per_minute=1)
    await allowances.admit(caller)
    with pytest.raises(ApiError, match="'a' has used its 1 requests a minute") as refused:
        await allowances.admit(caller)
    assert refused.value.status == 429
    assert 1 <= refused.value.retry_after_s <= 120


async def test_callers_have_budgets_of_their_own():
    allowances = Allowances(LimitSettings(requests_per_minute=2))
    assert [await _admitted(allowances, Caller(name), 3) for name in "ab"] == [2, 2]


async def test_callers_of_the_past_are_forgotten_and_busy_ones_keep_what_they_have_used(monkeypatch):
    monkeypatch.setattr("irlops_serving.gateway.allowances.MANY_ACCOUNTS", 4)
    allowances, now_s = Allowances(LimitSettings(requests_per_minute=2)), [1000.0]
    monkeypatch.setattr("irlops_serving.gateway.allowances.time.monotonic", lambda: now_s[0])
    for name in "abc":
        await allowances.admit(Caller(name))
    now_s[0] += 121
    assert await _admitted(allowances, Caller("busy"), 3) == 2
    for name in "defgh":
        await allowances.admit(Caller(name))
    assert {name for _, name, _ in allowances._accounts} == {"busy", *"defgh"}
    assert await _admitted(allowances, Caller("busy"), 1) == 0


async def test_a_callers_own_budget_goes_before_the_common_one():
    allowances = Allowances(LimitSettings(requests_per_minute=2))
    assert await _admitted(allowances, Caller("a", requests_per_minute=5), 9) == 5


async def test_spent_tokens_refuse_the_next_request():
    allowances, caller = Allowances(LimitSettings()), Caller("a", tokens_per_minute=1000)
    assert await _admitted(allowances, caller, 1) == 1
    await allowances.charge(caller, 999)
    assert await _admitted(allowances, caller, 1) == 1
    await allowances.charge(caller, 5000)  # beyond the budget: it is known only afterwards
    assert await _admitted(allowances, caller, 1) == 0


async def test_small_charges_add_up():
    allowances, caller = Allowances(LimitSettings()), Caller("a", tokens_per_minute=1000)
    for _ in range(1000):
        await allowances.charge(caller, 1)
    assert await _admitted(allowances, caller, 1) == 0


async def test_what_is_left_is_said_in_openais_headers():
    allowances, caller = Allowances(LimitSettings()), Caller("a", requests_per_minute=1000, tokens_per_minute=500)
    await allowances.charge(caller, 8)
    headers = dict(await allowances.admit(caller))
    assert headers[b"x-ratelimit-remaining-requests"] == b"999"
    assert headers[b"x-ratelimit-remaining-tokens"] == b"492"
    assert headers[b"x-ratelimit-limit-tokens"] == b"500"


async def test_without_budgets_nothing_is_counted():
    allowances = Allowances(LimitSettings())
    assert await allowances.admit(Caller("a")) == []


@pytest.fixture
def redis_url(tmp_path):
    """A real Redis on a free port."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.02)
        yield f"async+redis://127.0.0.1:{port}/0"
        server.terminate()


async def test_two_gateways_share_a_budget_through_redis(redis_url):
    one, other = (Allowances(LimitSettings(storage_url=redis_url, requests_per_minute=3)) for _ in range(2))
    caller = Caller("a")
    await one.admit(caller)
    await other.admit(caller)
    await one.admit(caller)
    with pytest.raises(ApiError, match="used its 3 requests") as refused:
        await other.admit(caller)
    assert refused.value.status == 429


async def test_a_store_that_is_away_refuses_requests_and_keeps_what_is_owed():
    away = Allowances(LimitSettings(storage_url="async+redis://127.0.0.1:9/0", tokens_per_minute=100))
    caller = Caller("a")
    await away.charge(caller, 60)
    with pytest.raises(ApiError, match="does not answer") as refused:
        await away.admit(caller)
    assert (refused.value.status, refused.value.code, refused.value.retry_after_s) == (503, "budgets_unavailable", 1.0)
    (account,) = away._accounts.values()
    assert account.credit == -60


@pytest.mark.parametrize(
    ("url", "why"),
    [("memory://", "would block"), ("nonsense://:secret@host/0", "unknown storage scheme")],
    ids=["not async", "unknown"],
)
def test_a_store_that_cannot_be_used_is_said_at_the_start(url, why):
    with pytest.raises(ConfigError, match=why) as error:
        Allowances(LimitSettings(storage_url=url))
    assert "host" not in str(error.value)  # nor the password before it
