"""Keys, budgets, queues, timeouts, breakers, cancellation: what keeps the gateway safe to expose."""

import asyncio
import json
import logging
import time
from datetime import UTC, datetime, timedelta

import aiohttp
import jwt
import pytest
import yaml
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa

from irlops_serving.gateway.keys import hash_key
from support.gateway_rig import QUESTION, RIGHT, eventually, rig
from support.stub_upstreams import served

CHAT = "/v1/chat/completions"
in_the_same_minute = pytest.mark.usefixtures("same_minute")


def _keys(tmp_path, **fields):
    path = tmp_path / "keys.yaml"
    path.write_text(yaml.safe_dump({"keys": [{"name": "team-a", "sha256": hash_key("k"), **fields}]}))
    return {"auth": {"keys_file": path}}


def _bearer(key):
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, "No API key was sent"),
        ({"authorization": "Basic abc"}, "not 'Bearer KEY'"),
        ({"authorization": "Bearer "}, "not 'Bearer KEY'"),
        (_bearer("wrong"), "not known here"),
    ],
    ids=["no key", "another scheme", "an empty key", "an unknown key"],
)
async def test_without_a_valid_key_nothing_is_answered(tmp_path, headers, said):
    question = {"model": "policy", "messages": QUESTION}
    async with rig(**_keys(tmp_path)) as r, r.http.post(CHAT, json=question, headers=headers) as answer:
        body = await answer.json()
    assert answer.headers["www-authenticate"] == "Bearer"
    assert (answer.status, body["error"]["code"]) == (401, "invalid_api_key")
    assert said in body["error"]["message"]
    assert r.policy.requests == []


async def test_a_key_opens_only_the_models_it_names(tmp_path):
    async with rig({"solutions": [RIGHT]}, **_keys(tmp_path, models=["policy"])) as r:
        allowed, _ = await r.post(CHAT, {"model": "policy", "messages": QUESTION}, headers=_bearer("k"))
        refused, body = await r.post(CHAT, {"model": "reranked", "messages": QUESTION}, headers=_bearer("k"))
        _, models = await r.get("/v1/models", headers=_bearer("k"))
    assert (allowed, refused, body["error"]["code"]) == (200, 403, "model_not_allowed")
    assert [model["id"] for model in models["data"]] == ["policy"]


async def test_a_new_key_in_the_file_works_without_a_restart(tmp_path):
    async with rig(**_keys(tmp_path)) as r:
        entry = {"name": "team-b", "sha256": hash_key("new")}
        (tmp_path / "keys.yaml").write_text(yaml.safe_dump({"keys": [entry]}))
        end_s = time.monotonic() + 30
        while (await r.get("/v1/models", headers=_bearer("new")))[0] == 401 and time.monotonic() < end_s:  # noqa: ASYNC110 - asked over HTTP
            await asyncio.sleep(0.02)
        new, _ = await r.get("/v1/models", headers=_bearer("new"))
        old, _ = await r.get("/v1/models", headers=_bearer("k"))
    assert (new, old) == (200, 401)


@in_the_same_minute
async def test_requests_beyond_the_budget_are_told_when_to_come_back(tmp_path):
    async with rig(**_keys(tmp_path, requests_per_minute=2)) as r:
        answers = []
        for _ in range(3):
            async with r.http.post(
                CHAT, json={"model": "policy", "messages": QUESTION}, headers=_bearer("k")
            ) as answer:
                answers.append(answer)
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert [answer.headers.get("x-ratelimit-remaining-requests") for answer in answers[:2]] == ["1", "0"]
    assert 1 <= int(answers[2].headers["retry-after"]) <= 120


@in_the_same_minute
async def test_tokens_beyond_the_budget_are_refused_from_the_next_request_on(tmp_path):
    # Every answer costs 3 + 7 tokens; the second begins with 2 left, the third with none.
    async with rig({"solutions": [RIGHT]}, **_keys(tmp_path, tokens_per_minute=12)) as r:
        body = {"model": "policy", "messages": QUESTION}
        statuses = [(await r.post(CHAT, body, headers=_bearer("k")))[0] for _ in range(3)]
    assert statuses == [200, 200, 429]


@in_the_same_minute
@pytest.mark.parametrize("fields", [{"model": "policy"}, {"model": "policy", "rewards": {}}], ids=["plain", "rewards"])
async def test_who_leaves_a_stream_early_has_used_the_tokens_it_was_sent(fields, tmp_path):
    auth = _keys(tmp_path, tokens_per_minute=20)
    async with rig({"solutions": [" ".join(["word"] * 500)], "token_delay_s": 0.005}, **auth) as r:
        body = {"messages": QUESTION, "stream": True, **fields}
        async with r.http.post(CHAT, json=body, headers=_bearer("k")) as answer:
            seen = b""
            while seen.count(b"word") < 40:
                seen += await answer.content.readany()
        await eventually(lambda: r.policy.running == 0)
        await eventually(lambda: r.gateway.metrics.cancelled._value.get() == 1)
        status, refused = await r.post(CHAT, {"model": "policy", "messages": QUESTION}, headers=_bearer("k"))
    # 40 tokens or more against a budget of 20.
    assert (status, refused["error"]["code"]) == (429, "rate_limit_exceeded")


@in_the_same_minute
async def test_one_callers_budget_is_not_anothers(tmp_path):
    path = tmp_path / "keys.yaml"
    keys = [{"name": name, "sha256": hash_key(name), "requests_per_minute": 1} for name in ("a", "b")]
    path.write_text(yaml.safe_dump({"keys": keys}))
    async with rig(auth={"keys_file": path}) as r:
        body = {"model": "policy", "messages": QUESTION}
        statuses = [(await r.post(CHAT, body, headers=_bearer(key)))[0] for key in ("a", "a", "b")]
    assert statuses == [200, 429, 200]


async def test_requests_beyond_places_and_queue_are_refused_at_once():
    limits = {"max_concurrent": 1, "max_queued": 1}
    async with rig({"holds_after_chunks": 0}, limits=limits) as r:
        asking = [asyncio.create_task(r.chat()) for _ in range(4)]
        await eventually(lambda: sum(task.done() for task in asking) == 2)  # while the policy answers nobody
        r.policy.may_go_on.set()
        statuses = await asyncio.gather(*asking)
        metrics = await r.metrics()
    codes = sorted(status for status, _ in statuses)
    assert codes == [200, 200, 503, 503]
    assert {body["error"]["code"] for status, body in statuses if status == 503} == {"overloaded"}
    assert 'irlops_gateway_refused_total{reason="queue_full"} 2.0' in metrics


@pytest.mark.parametrize("stream", [False, True], ids=["waiting", "reading a stream"])
@pytest.mark.parametrize("model", ["policy", "reranked"])
async def test_a_client_that_leaves_stops_the_policy(model, stream):
    solution = " ".join(["word"] * 500)
    async with rig({"solutions": [solution], "token_delay_s": 0.02}) as r:
        body = {"model": model, "messages": QUESTION, "stream": stream}
        asking = asyncio.create_task(r.http.post(CHAT, json=body))
        await eventually(lambda: r.policy.running == 1)
        await asyncio.sleep(0.1)
        asking.cancel()
        if asking.done() and not asking.cancelled():
            asking.result().close()
        await eventually(lambda: r.policy.running == 0)
        await eventually(lambda: r.gateway.metrics.cancelled._value.get() == 1)
    assert r.policy.cancelled == 1


async def test_a_client_that_reads_nothing_of_its_stream_is_left_and_the_policy_stopped():
    # 25 MiB: more than the sockets between them hold.
    async with rig({"solutions": [" ".join(["w" * 2**16] * 400)]}, timeouts={"send_s": 0.2}) as r:
        _, writer = await asyncio.open_connection("127.0.0.1", int(r.url.rpartition(":")[2]), limit=1024)
        body = json.dumps({"model": "policy", "messages": QUESTION, "stream": True}).encode()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await eventually(lambda: r.policy.running == 1)
        await eventually(lambda: r.policy.running == 0)
        await eventually(lambda: r.gateway.metrics.cancelled._value.get() == 1)
        writer.close()
    assert r.policy.cancelled == 1


async def test_a_policy_that_is_away_is_named_and_retried_later():
    async with rig() as r:
        dead = {"policy": {"url": "http://127.0.0.1:9"}}
        async with (
            rig(pair=dead) as gateway,
            gateway.http.post(CHAT, json={"model": "reranked", "messages": QUESTION}) as answer,
        ):
            body = await answer.json()
    assert (answer.status, body["error"]["code"], answer.headers["retry-after"]) == (503, "policy_unavailable", "1")
    assert "The policy server does not answer" in body["error"]["message"]
    assert "127.0.0.1" not in body["error"]["message"]
    assert r.policy.requests == []


async def test_after_failures_in_a_row_the_policy_is_left_alone_for_a_while(monkeypatch):
    async with rig({"fail": lambda _: web.Response(status=502)}, breaker={"failures": 2, "open_s": 60}) as r:
        now_s = [0.0]
        monkeypatch.setattr(r.gateway.pairs.current.policy.upstream.breaker, "_clock", lambda: now_s[0])
        statuses = [(await r.chat())[0] for _ in range(4)]
        asked = len(r.policy.requests)
        r.policy.fail = lambda _: None
        now_s[0] = 61.0
        recovered, _ = await r.chat()
    assert statuses == [502, 502, 503, 503]
    assert asked == 2
    assert recovered == 200


async def test_requests_that_the_policy_fails_on_close_it_to_nobody_else():
    def fails_on_one(body):
        return web.Response(status=500) if body.get("user") == "poison" else None

    async with rig({"fail": fails_on_one}, breaker={"failures": 2, "open_s": 60}) as r:
        failed = [(await r.chat(user="poison"))[0] for _ in range(5)]
        after, _ = await r.chat()
    assert failed == [502] * 5
    assert after == 200


async def test_refusals_of_the_policy_do_not_open_its_circuit():
    async with rig({"fail": lambda _: web.json_response({"error": {"message": "no"}}, status=400)}) as r:
        statuses = {(await r.chat())[0] for _ in range(8)}
    assert statuses == {400}
    assert len(r.policy.requests) == 8


@pytest.mark.parametrize(
    ("fail", "status", "said"),
    [
        (lambda _: web.Response(text="<html>oops</html>"), 502, "not JSON"),
        (lambda _: web.Response(status=500, text="Traceback (most recent call last)"), 502, "status 500"),
        (lambda _: web.Response(status=503, headers={"retry-after": "7"}), 503, "Try again in 7 s"),
        (lambda _: web.Response(status=401), 502, "refused the gateway's credentials"),
        (lambda _: web.Response(status=302, headers={"location": "http://elsewhere"}), 502, "status 302"),
        (lambda _: web.json_response([1]), 502, "not an object"),
    ],
    ids=["not JSON", "a crash", "busy", "refuses our key", "redirects", "another JSON"],
)
async def test_a_policy_that_answers_wrongly_is_told_apart_from_a_bad_request(fail, status, said):
    async with rig({"fail": fail}) as r:
        got, body = await r.chat()
        reranked, _ = await r.chat("reranked")
    assert (got, reranked) == (status, status)
    assert said in body["error"]["message"]
    assert "Traceback" not in json.dumps(body)


async def test_a_stream_that_stops_halfway_ends_with_an_error_and_no_done():
    async with rig({"solutions": ["a b c d"], "cut_after_chunks": 2}) as r:
        events = await r.events(model="policy")
    assert events[-1]["error"]["code"] == "policy_bad_response"
    assert "[DONE]" not in events


@pytest.mark.parametrize(
    ("policy", "timeouts", "stream"),
    [
        ({"delay_s": 5}, {"policy_s": 0.1}, False),
        ({"delay_s": 5}, {"first_token_s": 0.1, "idle_s": 0.1}, True),
    ],
    ids=["a whole answer", "a first token"],
)
async def test_a_policy_that_is_too_slow_gives_a_gateway_timeout(policy, timeouts, stream):
    async with rig(policy, timeouts=timeouts) as r:
        status, body = await r.chat(stream=stream)
    assert (status, body["error"]["code"]) == (504, "policy_timeout")


async def test_a_stream_that_falls_silent_is_ended():
    async with rig({"solutions": ["a b c"], "token_delay_s": 5}, timeouts={"idle_s": 0.1}) as r:
        events = await r.events(model="policy")
    assert events[-1]["error"]["code"] == "policy_timeout"


async def test_a_token_of_the_identity_provider_opens_the_gateway():
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())) | {
        "kid": "1",
        "alg": "RS256",
        "use": "sig",
    }
    provider = web.Application()
    provider.router.add_get("/jwks", lambda _: web.json_response({"keys": [public]}))

    def token(**claims):
        now = datetime.now(UTC)
        content = {"iss": "https://id", "aud": "irlops", "sub": "ana", "exp": now + timedelta(minutes=5), **claims}
        return jwt.encode(content, key, algorithm="RS256", headers={"kid": "1"})

    async with served(provider) as url:
        oidc = {"issuer": "https://id", "audience": "irlops", "jwks_url": f"{url}/jwks"}
        async with rig(auth={"oidc": oidc}) as r:
            good, _ = await r.get("/v1/models", headers=_bearer(token()))
            again, _ = await r.get("/v1/models", headers=_bearer(token()))
            expired, body = await r.get("/v1/models", headers=_bearer(token(exp=datetime(2020, 1, 1, tzinfo=UTC))))
            other, _ = await r.get("/v1/models", headers=_bearer(token(aud="another")))
            forged = jwt.encode({"sub": "ana"}, "k" * 32, algorithm="HS256", headers={"kid": "1"})
            unsigned, _ = await r.get("/v1/models", headers=_bearer(forged))
    assert (good, again, expired, other, unsigned) == (200, 200, 401, 401, 401)
    assert "expired" in body["error"]["message"]


async def test_an_identity_provider_that_is_away_is_named():
    oidc = {"issuer": "https://id", "audience": "irlops", "jwks_url": "http://127.0.0.1:9/jwks"}
    token = jwt.encode({"sub": "a"}, "k" * 32, algorithm="HS256", headers={"kid": "1"})
    async with rig(auth={"oidc": oidc}) as r:
        status, body = await r.get("/v1/models", headers=_bearer(token))
    assert (status, body["error"]["code"]) == (503, "identity_provider_unavailable")


async def test_no_key_and_no_prompt_reaches_a_log(tmp_path, capfdbinary):
    from irlops_serving.gateway.logs import configure_logs, logger

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure_logs("debug")
    try:
        async with rig({"solutions": ["the secret answer"]}, **_keys(tmp_path)) as r:
            body = {"model": "policy", "messages": [{"role": "user", "content": "the secret question"}]}
            await r.post(CHAT, body, headers=_bearer("k"))
            await r.post(CHAT, body, headers=_bearer("irl-wrong-key"))
        logger.info("carelessly", authorization="Bearer irl-other", api_key="irl-other")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    logged = capfdbinary.readouterr().err
    lines = [json.loads(line) for line in logged.splitlines()]
    assert [line["status"] for line in lines if line["event"] == "request"] == [200, 401]
    for secret in (b"secret question", b"secret answer", b"irl-wrong-key", b"irl-other", hash_key("k").encode()):
        assert secret not in logged


async def test_pages_of_other_origins_may_not_call_unless_they_are_named():
    preflight = {"origin": "https://app.example", "access-control-request-method": "POST"}
    async with rig() as closed, closed.http.options(CHAT, headers=preflight) as answer:
        assert answer.status == 405
        assert "access-control-allow-origin" not in answer.headers
    async with rig(cors_allow_origins=["https://app.example"]) as named:
        async with named.http.options(CHAT, headers=preflight) as answer:
            assert answer.headers["access-control-allow-origin"] == "https://app.example"
            assert "access-control-allow-credentials" not in answer.headers
        async with named.http.options(CHAT, headers=preflight | {"origin": "https://evil.example"}) as answer:
            assert "access-control-allow-origin" not in answer.headers


async def test_the_critics_key_is_sent_to_the_critic_only():
    async with rig({"solutions": [RIGHT]}) as r:
        pair = r.gateway.settings.pair
        secured = {
            "policy": {"url": pair.policy.url},
            "critic": {"url": pair.critic.url, "api_key": "critic-key"},
        }
        async with rig(pair=secured) as gateway:
            await gateway.rerank(candidates=2, selector="reward")
            assert "critic-key" not in repr(gateway.gateway.settings)
    assert r.critic.headers[0]["authorization"] == "Bearer critic-key"
    assert "authorization" not in r.policy.headers[0]


async def test_upgrades_are_not_spoken():
    async with rig() as r:
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await r.http.ws_connect("/v1/chat/completions")
