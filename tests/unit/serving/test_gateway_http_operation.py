"""Readiness, metrics, traces, logs, drain and the swap to another pair."""

import asyncio
import json
import signal
import ssl
import time
from contextlib import AsyncExitStack

import aiohttp
import pytest
import yaml
from aiohttp import web
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from irlops_serving.gateway.tracing import traced_with
from support.certificates import self_signed
from support.gateway_rig import QUESTION, RIGHT, eventually, rig, running, settings_for
from support.stub_upstreams import StubCritic, StubPolicy, Vocabulary, served

CHAT = "/v1/chat/completions"
NOT_RELOADED = b'irlops_gateway_reloads_total{outcome="failed",what="pair"} 1.0'


async def _waiting_for(wanted, ask, seconds=30.0):
    """What ``ask`` answers once that is ``wanted``; what it answers after so many seconds when it never is."""
    end_s = time.monotonic() + seconds
    while (got := await ask()) != wanted and time.monotonic() < end_s:  # noqa: ASYNC110 - asked over HTTP
        await asyncio.sleep(0.02)
    return got


async def _ready(r):
    """Status, policy, critic, and whether answers are degraded."""
    status, body = await r.get("/readyz")
    return status, body["policy"], body["critic"], body["degraded"]


async def test_the_gateway_is_ready_only_once_both_servers_have_been():
    async with rig(critic={"healthy": False}) as r:
        assert await _ready(r) == (503, "ready", "unavailable", False)
        r.critic.healthy = True
        both = (200, "ready", "ready", False)
        assert await _waiting_for(both, lambda: _ready(r)) == both


async def test_a_critic_that_goes_away_degrades_but_keeps_the_gateway_ready():
    async with rig() as r:
        r.critic.healthy = False
        degraded = (200, "ready", "unavailable", True)
        assert await _waiting_for(degraded, lambda: _ready(r)) == degraded


async def test_a_policy_that_goes_away_makes_the_gateway_unready_yet_alive():
    async with rig() as r:
        r.policy.healthy = False
        unready = (503, "unavailable", "ready", False)
        assert await _waiting_for(unready, lambda: _ready(r)) == unready
        assert (await r.get("/healthz"))[0] == 200


async def test_metrics_carry_the_gen_ai_names_and_the_best_of_n_series():
    async with rig({"solutions": ["5 #### 5", RIGHT]}) as r:
        await r.rerank(candidates=4, selector="reward")
        await r.events(model="policy")
        metrics = await r.metrics()
    reranked = 'gen_ai_operation_name="chat",gen_ai_request_model="reranked"'
    for line in (
        f'gen_ai_server_request_duration_seconds_count{{{reranked},http_response_status_code="200"}} 1.0',
        # Twice "5 #### 5" (3 words) and twice RIGHT (7 words).
        f'gen_ai_client_token_usage_sum{{{reranked},gen_ai_token_type="output"}} 20.0',
        'gen_ai_server_time_to_first_token_seconds_count{gen_ai_operation_name="chat",gen_ai_request_model="policy"} 1.0',
        'irlops_gateway_candidates_sum{stage="sampled"} 4.0',
        'irlops_gateway_candidates_sum{stage="scored"} 4.0',
        "irlops_gateway_chosen_rank_sum 1.0",
        "irlops_gateway_agreement_sum 0.5",
        'irlops_gateway_pair_info{critic_version="3",policy_version="3"} 1.0',
        'irlops_gateway_breaker_open{upstream="critic"} 0.0',
    ):
        assert line in metrics
    # RIGHT has two fours in seven words: 2 / 7; the other has none.
    assert "irlops_gateway_reward_spread_sum 0.2857" in metrics
    assert "irlops_gateway_critic_seconds_count" in metrics


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_metrics_count_a_request_under_the_status_that_was_answered(stream, monkeypatch):
    # A stream that has waited for so long begins with 200, whatever comes then.
    monkeypatch.setattr("irlops_serving.gateway.reranked.START_STREAM_AFTER_S", 30.0)
    # Not as a server error of the gateway, which would wake somebody up.
    async with rig({"fail": lambda _: web.json_response({"error": {"message": "too long"}}, status=400)}) as r:
        for model in ("policy", "reranked"):
            await r.chat(model, stream=stream)
        metrics = await r.metrics()
    for model in ("policy", "reranked"):
        labels = f'gen_ai_operation_name="chat",gen_ai_request_model="{model}",http_response_status_code="400"'
        assert f"gen_ai_server_request_duration_seconds_count{{{labels}}} 1.0" in metrics
    assert 'http_response_status_code="500"' not in metrics


async def test_the_watchers_outlive_what_nobody_expected(monkeypatch):
    async with rig() as r:
        looked = []

        def fail(at):
            looked.append(at)
            raise ZeroDivisionError

        monkeypatch.setattr(r.gateway, "reload_keys", lambda: fail("files"))
        monkeypatch.setattr(r.gateway.pairs.current, "probe", lambda: fail("servers"))
        await eventually(lambda: looked.count("files") > 1 and looked.count("servers") > 1)
        monkeypatch.undo()
        r.critic.healthy = False
        degraded = (200, "ready", "unavailable", True)
        assert await _waiting_for(degraded, lambda: _ready(r)) == degraded
        assert [task.done() for task in r.gateway._reloader._tasks] == [False, False]


async def test_a_request_to_an_unknown_path_makes_no_series():
    async with rig() as r:
        await r.get("/one")
        before = (await r.metrics()).count("\n")
        await r.get("/two")
        assert (await r.metrics()).count("\n") == before


async def test_one_trace_goes_through_gateway_policy_and_critic():
    exporter = InMemorySpanExporter()
    tracer = traced_with(SimpleSpanProcessor(exporter))
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with rig({"solutions": [RIGHT]}, tracer=tracer) as r:
        headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
        body = {"model": "reranked", "messages": QUESTION, "rerank": {"candidates": 2, "selector": "reward"}}
        await r.post(CHAT, body, headers=headers)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"gateway.reranked", "policy.sample", "critic.score"}
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {trace}
    assert spans["policy.sample"].parent.span_id == spans["gateway.reranked"].context.span_id
    sent = f"00-{trace}-{spans['policy.sample'].context.span_id:016x}-01"
    assert r.policy.headers[0]["traceparent"] == sent
    assert r.critic.headers[0]["traceparent"] == f"00-{trace}-{spans['critic.score'].context.span_id:016x}-01"
    assert r.policy.headers[0]["x-request-id"] == r.critic.headers[0]["x-request-id"]


async def test_a_terminated_gateway_answers_what_runs_and_then_stops():
    async with rig({"solutions": ["a b c d"], "holds_after_chunks": 2}) as r:
        streaming = asyncio.create_task(r.events(model="policy"))
        await eventually(lambda: r.policy.written == 2)
        r.server.handle_exit(signal.SIGTERM, None)

        async def connects():
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", int(r.url.rpartition(":")[2]))
            except ConnectionRefusedError:
                return False
            except ConnectionResetError:  # it stopped listening in this very moment
                return True
            writer.close()
            return True

        assert await _waiting_for(False, connects) is False
        assert not streaming.done()
        r.policy.may_go_on.set()
        events = await streaming
    assert events[-1] == "[DONE]"


async def test_a_signal_handler_logs_nothing_itself(monkeypatch: pytest.MonkeyPatch):
    # It may run while a line is being written, whose lock would never be released.
    said = []
    monkeypatch.setattr("irlops_serving.gateway.server.logger.info", lambda event, **_: said.append(event))
    async with rig({"solutions": [RIGHT]}) as r:
        said.clear()
        r.server.handle_exit(signal.SIGTERM, None)
        assert said == []
        await asyncio.sleep(0)
        assert said == ["draining"]


async def test_a_draining_gateway_is_not_ready_but_still_answers():
    async with rig({"solutions": [RIGHT]}, timeouts={"drain_delay_s": 60}) as r:
        r.server.handle_exit(signal.SIGTERM, None)
        await asyncio.sleep(0.3)  # uvicorn looks ten times a second whether it is to end
        status, body = await r.get("/readyz")
        answered, _ = await r.chat()
    assert (status, body["draining"], answered) == (503, True, 200)


def _write_config(path, policy_url, critic_url, version):
    pair = {
        "policy": {"url": policy_url},
        "critic": {"url": critic_url},
        "policy_version": version,
        "critic_version": version,
    }
    settings = {"pair": pair, "reload_interval_s": 0.05, "probe_interval_s": 0.05, "port": 0}
    path.write_text(yaml.safe_dump(settings))


async def test_another_pair_takes_over_without_a_dropped_request(tmp_path):
    vocabulary = Vocabulary()
    old, new = (StubPolicy(vocabulary, [word], token_delay_s=0.02) for word in ("old", "new"))
    critic = StubCritic(vocabulary)
    config = tmp_path / "gateway.yaml"
    async with served(old.app()) as old_url, served(new.app()) as new_url, served(critic.app()) as critic_url:
        _write_config(config, old_url, critic_url, 3)
        settings = settings_for(old_url, critic_url)
        async with running(settings, config) as (_, _, url), aiohttp.ClientSession(url) as http:
            seen = []

            async def ask_until_the_new_one_answers():
                while True:
                    async with http.post(CHAT, json={"model": "reranked", "messages": QUESTION}) as answer:
                        body = await answer.json()
                    choice, pair = body["choices"][0], body["rerank"]["pair"]
                    seen.append((answer.status, choice["message"]["content"], pair["policy_version"]))
                    if pair["policy_version"] == "4":
                        return

            asking = [asyncio.create_task(ask_until_the_new_one_answers()) for _ in range(20)]
            await eventually(lambda: len(seen) >= 20)
            _write_config(config, new_url, critic_url, 4)
            async with asyncio.timeout(60):
                await asyncio.gather(*asking)
    assert set(seen) == {(200, "old", "3"), (200, "new", "4")}


async def test_a_pair_that_cannot_be_used_leaves_the_old_one_and_the_next_still_takes_over(tmp_path):
    vocabulary = Vocabulary()
    policy, critic = StubPolicy(vocabulary), StubCritic(vocabulary)
    config, broken = tmp_path / "gateway.yaml", tmp_path / "tokenizer.json"
    broken.write_text("{}")
    async with served(policy.app()) as policy_url, served(critic.app()) as critic_url:
        _write_config(config, policy_url, critic_url, 3)
        async with running(settings_for(policy_url, critic_url), config) as (gateway, _, _):
            pair = {"policy": {"url": policy_url, "tokenizer_file": str(broken)}, "critic": {"url": critic_url}}
            config.write_text(yaml.safe_dump({"pair": pair, "port": 0}))
            await eventually(lambda: NOT_RELOADED in gateway.metrics.render())
            assert gateway.pairs.current.versions.policy_version == "3"
            _write_config(config, policy_url, critic_url, 5)

            async def version():
                return gateway.pairs.current.versions.policy_version

            assert await _waiting_for("5", version) == "5"


async def test_a_pair_that_never_becomes_ready_never_takes_over(tmp_path):
    vocabulary = Vocabulary()
    policy, critic = StubPolicy(vocabulary), StubCritic(vocabulary)
    config = tmp_path / "gateway.yaml"
    async with served(policy.app()) as policy_url, served(critic.app()) as critic_url:
        _write_config(config, policy_url, critic_url, 3)
        async with running(settings_for(policy_url, critic_url), config) as (gateway, _, _):
            _write_config(config, "http://127.0.0.1:9", critic_url, 4)
            await eventually(lambda: gateway._reloader._wanted.policy_version == "4")
            await asyncio.sleep(0.2)
            still = gateway.pairs.current.versions.policy_version
            config.write_text("pair: {policy: {url: nonsense}}")
            await eventually(lambda: NOT_RELOADED in gateway.metrics.render())
    assert still == "3"


@pytest.fixture
def certificate_and_key(tmp_path):
    return self_signed(tmp_path)


async def test_the_gateway_speaks_tls_from_files(certificate_and_key):
    certificate, key = certificate_and_key
    async with rig(tls_cert_file=certificate, tls_key_file=key) as r:
        trusting = ssl.create_default_context(cafile=certificate)
        async with r.http.get("/healthz", ssl=trusting) as answer:
            assert answer.status == 200


async def test_a_renewed_certificate_is_shown_without_a_restart_and_a_torn_one_never(tmp_path):
    certificate, key = self_signed(tmp_path)

    async def shown():
        return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))

    async with rig(tls_cert_file=certificate, tls_key_file=key) as r:
        port, first = int(r.url.rpartition(":")[2]), certificate.read_text()
        key.write_text("half of a pair")
        r.gateway.reload_now()
        assert await shown() == first
        self_signed(tmp_path)
        assert certificate.read_text() != first
        renewed = certificate.read_text()
        assert await _waiting_for(renewed, shown) == renewed


async def test_an_error_of_ours_is_answered_without_its_details_and_logged_with_them(capfd):
    async with rig() as r:
        r.gateway._allowances = None  # the nearest thing to a bug of our own
        status, body = await r.chat()
    assert (status, body["error"]["code"]) == (500, "internal_error")
    assert "NoneType" not in json.dumps(body)
    logged = capfd.readouterr()
    assert "NoneType" in logged.out + logged.err


async def test_the_playgrounds_files_come_with_a_strict_policy(tmp_path):
    from irlops_serving.gateway.pages import Pages

    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text("<!doctype html><title>irlops</title>")
    (tmp_path / "assets" / "app.js").write_text("export {}")
    async with rig() as r:
        r.gateway._pages = Pages(tmp_path)
        async with r.http.get("/") as page, r.http.get("/assets/app.js") as script:
            assert (page.status, page.content_type) == (200, "text/html")
            assert (script.status, script.content_type) == (200, "text/javascript")
            rules = page.headers["content-security-policy"]
            etag = page.headers["etag"]
        async with r.http.get("/", headers={"if-none-match": etag}) as again:
            assert again.status == 304
        async with r.http.get("/assets/../../../etc/passwd") as outside:
            assert outside.status == 404
    assert "default-src 'none'" in rules
    assert "script-src 'self'" in rules
    assert "unsafe" not in rules


async def test_the_documentation_page_needs_nothing_from_elsewhere():
    async with rig() as r, r.http.get("/docs") as answer:
        page = await answer.text()
    assert "POST" in page
    assert "/v1/rewards" in page
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page


async def test_an_upstream_that_is_not_json_in_health_checks_is_just_not_ready():
    app = web.Application()
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(served(app))
        _, _, gateway_url = await stack.enter_async_context(running(settings_for(url, url)))
        http = await stack.enter_async_context(aiohttp.ClientSession(gateway_url))
        answer = await stack.enter_async_context(http.get("/readyz"))
        assert (answer.status, (await answer.json())["ready"]) == (503, False)
