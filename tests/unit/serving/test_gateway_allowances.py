"""Budgets of callers."""

import pytest

from irlops_serving.gateway.allowances import Allowances
from irlops_serving.gateway.callers import Caller
from irlops_serving.gateway.errors import ApiError
from irlops_serving.gateway.settings import LimitSettings


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
