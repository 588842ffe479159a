"""One writer at a time, by Lease."""

import pytest

from irlops.cluster.api import KubernetesApi
from irlops.operator.__main__ import FencedTransport
from irlops.operator.leader import Leader
from support.kube_api import KubeApi


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def server():
    return KubeApi()


@pytest.fixture
def candidate(clock, server):
    def make(identity):
        api = KubernetesApi(server, "team-a", field_manager="test")
        return Leader(api, name="irlops-operator", identity=identity, duration_s=30, clock=clock)

    return make


async def test_the_first_one_leads_and_the_second_stands_by(candidate):
    first, second = candidate("a"), candidate("b")
    assert await first.try_to_lead()
    assert not await second.try_to_lead()


async def test_a_standby_takes_over_once_nothing_was_renewed_for_the_whole_duration(candidate, clock):
    first, second = candidate("a"), candidate("b")
    await first.try_to_lead()
    await second.try_to_lead()
    clock.now += 30
    assert not await second.try_to_lead()
    clock.now += 1
    assert await second.try_to_lead()


async def test_a_renewal_in_between_keeps_the_standby_away(candidate, clock):
    first, second = candidate("a"), candidate("b")
    for _ in range(4):
        assert await first.try_to_lead()
        assert not await second.try_to_lead()
        clock.now += 15


async def test_a_leader_that_cannot_renew_stops_before_another_may_begin(candidate, clock, server):
    leader = candidate("a")
    await leader.try_to_lead()
    server.refuse = lambda verb, kind, name: 500
    clock.now += 24
    assert await leader.try_to_lead()
    assert leader.next_try_s == 2
    clock.now += 2  # 26 s > 5/6 of 30 s
    assert not await leader.try_to_lead()


async def test_stepping_down_lets_the_next_one_begin_at_once(candidate):
    first, second = candidate("a"), candidate("b")
    await first.try_to_lead()
    await first.step_down()
    assert await second.try_to_lead()


async def test_a_restarted_holder_leads_again_at_once(candidate):
    await candidate("a").try_to_lead()
    assert await candidate("a").try_to_lead()


async def test_a_leader_writes_four_times_a_minute(candidate, clock, server):
    leader = candidate("a")
    for _ in range(4):
        await leader.try_to_lead()
        clock.now += leader.next_try_s
    assert clock.now == 160
    assert len(server.writes()) == 4


async def test_without_the_lease_reads_pass_and_writes_do_not(server):
    fenced = FencedTransport(server, lambda: False)
    assert (await fenced.send("GET", "/api/v1/namespaces/team-a/configmaps/x", {})).status == 404
    with pytest.raises(ConnectionError, match="no longer holds the Lease"):
        await fenced.send("DELETE", "/api/v1/namespaces/team-a/configmaps/x", {})
