"""The model ``reranked`` over HTTP: a client that leaves before its answer is there takes its work with it, and pays for it."""

import asyncio
import json
import logging
from contextlib import asynccontextmanager

import pytest
import yaml

from irlops_serving.gateway.keys import hash_key
from irlops_serving.gateway.logs import configure_logs
from support.gateway_rig import QUESTION, RIGHT, eventually, rig

LONG = " ".join(["word"] * 2000)
SLOW = {"token_delay_s": 0.01}
RERANKED = 'gen_ai_operation_name="chat",gen_ai_request_model="reranked"'
ways_to_ask = pytest.mark.parametrize("stream", [False, True], ids=["waiting for the whole", "reading a stream"])


@pytest.fixture
def budget(tmp_path, same_minute):
    """A key ``k`` with a budget of 10 tokens a minute."""
    path = tmp_path / "keys.yaml"
    path.write_text(yaml.safe_dump({"keys": [{"name": "a", "sha256": hash_key("k"), "tokens_per_minute": 10}]}))
    return {"auth": {"keys_file": path}}


@asynccontextmanager
async def client(r, stream, **rerank):
    """A client that has asked; it closes its connection at the end of the block."""
    _, writer = await asyncio.open_connection("127.0.0.1", int(r.url.rpartition(":")[2]))
    body = {"model": "reranked", "messages": QUESTION, "stream": stream, "rerank": {"selector": "reward", **rerank}}
    payload = json.dumps(body).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\ncontent-length: %d\r\n\r\n"
    writer.write(head % len(payload) + payload)
    yield
    writer.close()
    await writer.wait_closed()


async def noticed(r, times=1):
    await eventually(lambda: r.gateway.metrics.cancelled._value.get() == times)


async def asked_again(r):
    """The status of another request with the same key."""
    headers = {"authorization": "Bearer k"}
    return (await r.post("/v1/chat/completions", {"model": "policy", "messages": QUESTION}, headers=headers))[0]


def in_flight(r):
    return r.gateway.metrics.in_flight.labels("reranked")._value.get()


@ways_to_ask
async def test_leaving_while_candidates_are_written_stops_the_policy(stream):
    async with rig({"solutions": [LONG], **SLOW}) as r:
        async with client(r, stream, candidates=4):
            await eventually(lambda: r.policy.running == 1)
        await eventually(lambda: r.policy.running == 0)
        await noticed(r)
    assert (r.policy.cancelled, r.critic.calls) == (1, [])


@ways_to_ask
async def test_leaving_stops_the_policy_also_when_candidates_come_in_whole_answers(stream):
    async with rig({"solutions": [LONG], **SLOW}, rerank={"overlap": False}) as r:
        async with client(r, stream, candidates=4):
            await eventually(lambda: r.policy.running == 1)
        await noticed(r)
        await eventually(lambda: r.policy.running == 0)
    assert r.policy.cancelled == 1


@ways_to_ask
async def test_leaving_while_candidates_are_scored_stops_the_critic(stream):
    async with rig({"solutions": [RIGHT]}, {"delay_s": 60}) as r:
        async with client(r, stream, candidates=4):
            await eventually(lambda: len(r.critic.calls) == 1)
        await noticed(r)
        await eventually(lambda: r.critic.cancelled == 1)
    assert (r.policy.cancelled, len(r.critic.calls)) == (0, 1)


@ways_to_ask
async def test_leaving_while_one_candidate_is_scored_and_another_written_stops_both(stream):
    async with rig({"solutions": [RIGHT, LONG], **SLOW}, {"delay_s": 60}) as r:
        async with client(r, stream, candidates=2):
            await eventually(lambda: len(r.critic.calls) == 1)
        await noticed(r)
        await eventually(lambda: r.policy.running == 0 and r.critic.cancelled == 1)
    assert (r.policy.cancelled, r.critic.cancelled) == (1, 1)


async def test_leaving_between_waves_asks_for_no_further_wave():
    async with rig({"solutions": ["1", "2", "3", "5", "6", "7", "8", "9"]}, {"delay_s": 60}) as r:
        async with client(r, stream=False, candidates=8, adaptive=True):
            await eventually(lambda: len(r.critic.calls) == 1)
        await eventually(lambda: r.critic.cancelled == 1)
        await noticed(r)
    assert [request["n"] for request in r.policy.requests] == [4]


@ways_to_ask
async def test_what_was_sampled_is_charged_to_the_key(stream, budget):
    async with rig({"solutions": [RIGHT]}, {"delay_s": 60}, **budget) as r:
        async with client(r, stream, candidates=4):
            await eventually(lambda: len(r.critic.calls) == 1)
        await noticed(r)
        again, metrics = await asked_again(r), await r.metrics()
    # Four candidates of seven words and a prompt of three, against a budget of ten.
    assert again == 429
    assert f'gen_ai_client_token_usage_sum{{{RERANKED},gen_ai_token_type="output"}} 28.0' in metrics
    assert f'gen_ai_client_token_usage_sum{{{RERANKED},gen_ai_token_type="input"}} 3.0' in metrics


async def test_candidates_that_were_not_finished_are_charged_as_far_as_they_came(budget):
    async with rig({"solutions": [LONG], **SLOW}, **budget) as r:
        async with client(r, stream=False, candidates=4):
            await eventually(lambda: r.policy.written > 20)  # four say the role, each other is a word
        await noticed(r)
        sampled = r.gateway.metrics.token_usage.labels("chat", "reranked", "output")._sum.get()
        again = await asked_again(r)
    assert 10 < sampled < 4 * 2000
    assert again == 429


@ways_to_ask
async def test_the_place_is_free_for_the_next(stream):
    async with rig(
        {"solutions": [RIGHT]}, {"delay_s": 60}, limits={"max_concurrent_reranked": 1, "max_queued": 0}
    ) as r:
        async with client(r, stream, candidates=2):
            await eventually(lambda: in_flight(r) == 1)
            full, _ = await r.chat("reranked")
        await eventually(lambda: in_flight(r) == 0)
        r.critic.delay_s = 0
        free, _ = await r.chat("reranked")
    assert (full, free) == (503, 200)


async def test_who_leaves_while_waiting_for_a_place_is_never_sent_to_the_policy():
    async with rig({"solutions": [RIGHT]}, {"delay_s": 60}, limits={"max_concurrent_reranked": 1}) as r:
        queued = r.gateway.metrics.queued.labels("reranked")._value
        async with client(r, stream=False):
            await eventually(lambda: in_flight(r) == 1)
            async with client(r, stream=False):
                await eventually(lambda: queued.get() == 1)
            await eventually(lambda: queued.get() == 0)
            await noticed(r)
        await noticed(r, times=2)
        assert (len(r.policy.requests), in_flight(r)) == (1, 0)


@pytest.mark.parametrize(
    ("stream", "status"), [(False, 499), (True, 200)], ids=["nothing was answered", "a stream had begun"]
)
async def test_metrics_and_the_access_log_tell_that_the_client_left(stream, status, budget, log_lines):
    async with rig({"solutions": [RIGHT], "delay_s": 0.5}, {"delay_s": 60}, **budget) as r:
        async with client(r, stream, candidates=2):
            await eventually(lambda: len(r.critic.calls) == 1)
        await noticed(r)
        metrics = await r.metrics()
    (line,) = [line for line in log_lines() if line["event"] == "request" and line["path"] == "/v1/chat/completions"]
    told = {name: line.get(name) for name in ("status", "client_gone", "model", "caller", "tokens")}
    assert told == {"status": status, "client_gone": True, "model": "reranked", "caller": "a", "tokens": 17}
    labels = f'{{{RERANKED},http_response_status_code="{status}"}}'
    assert f"gen_ai_server_request_duration_seconds_count{labels} 1.0" in metrics
    assert "irlops_gateway_cancelled_total 1.0" in metrics


@ways_to_ask
async def test_no_task_is_left_behind(stream):
    async with rig({"solutions": [RIGHT, LONG], **SLOW}, {"delay_s": 60}) as r:
        gauge = r.gateway.metrics.tasks._value
        await eventually(lambda: gauge.get() > 0)
        before = gauge.get()
        for _ in range(3):
            async with client(r, stream, candidates=2):
                await eventually(lambda: r.policy.running == 1 and gauge.get() > before)
            await eventually(lambda: gauge.get() == before)
        assert r.policy.cancelled == 3


@pytest.fixture
def log_lines(capfdbinary):
    """Reads the lines logged since the test began."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure_logs("info")
    yield lambda: [json.loads(line) for line in capfdbinary.readouterr().err.splitlines()]
    root.handlers[:] = handlers
    root.setLevel(level)
