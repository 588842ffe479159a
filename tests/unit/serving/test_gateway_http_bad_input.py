"""Bad input: each kind has its status and its message."""

import asyncio

import pytest

from support.gateway_rig import QUESTION, pass_time, rig

CHAT = "/v1/chat/completions"


def _chat(**fields):
    return {"model": "policy", "messages": QUESTION, **fields}


async def _send(body, path=CHAT, headers=None):
    async with rig() as r, r.http.post(path, data=body, headers=headers) as answer:
        return answer.status, (await answer.json())["error"], r


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"model": "policy", "messages": "\xff"}', "UTF-8"),
        (b"[" * 5_000 + b"]" * 5_000, "depth"),
        (b'{"temperature": NaN}', "not valid JSON"),
        (b'{"temperature": 1e999}', "infinity"),
        (b'{"temperature": -Infinity}', "not valid JSON"),
        (rb'{"model": "\ud800"}', "surrogate"),
        (b"[1, 2]", "must be a JSON object"),
        (b"", "not valid JSON"),
        (b'{"model": "policy"', "not valid JSON"),
    ],
    ids=[
        "not UTF-8",
        "deep",
        "NaN",
        "too large a number",
        "Infinity",
        "half a character",
        "a list",
        "nothing",
        "cut off",
    ],
)
async def test_a_body_that_is_no_json_object_is_refused(body, said):
    status, error, r = await _send(body)
    assert (status, error["type"], error["code"]) == (400, "invalid_request_error", "invalid_json")
    assert said in error["message"]
    assert r.policy.requests == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": -1}, "n"),
        ({"n": 65}, "n"),
        ({"n": "two"}, "n"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"seed": 2**63}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"kv_transfer_params": {}}, "kv_transfer_params"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs.chat_template"),
        ({"vllm_xargs": {"a": 1}}, "vllm_xargs"),
        ({"rerank": {}}, "rerank"),
        ({"rewards": {}}, "rewards"),
    ],
    ids=str,
)
async def test_a_field_the_policy_should_not_see_is_refused_by_name(fields, param):
    async with rig() as r:
        status, body = await r.chat(**fields)
    assert (status, body["error"]["param"]) == (400, param)
    assert r.policy.requests == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"rerank": {"candidates": 0}}, "rerank.candidates"),
        ({"rerank": {"candidates": 65}}, "rerank.candidates"),
        ({"rerank": {"candidates": True}}, "rerank.candidates"),
        ({"rerank": {"selector": "best"}}, "rerank.selector"),
        ({"rerank": {"deadline_ms": -1}}, "rerank.deadline_ms"),
        ({"rerank": {"candidats": 4}}, "rerank.candidats"),
        ({"rerank": []}, "rerank"),
        ({"n": 3, "rerank": {"candidates": 2}}, "n"),
        ({"echo": True}, "echo"),
    ],
    ids=str,
)
async def test_a_wrong_rerank_field_is_refused_by_name(fields, param):
    async with rig() as r:
        status, body = await r.chat("reranked", **fields)
    assert (status, body["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "items"),
        ({"items": []}, "items"),
        ({"items": [{"question": "q", "solution": "s"}] * 257}, "items"),
        ({"items": [{"question": "q"}]}, "items.0.solution"),
        ({"items": [{"question": "q", "solution": ""}]}, "items.0.solution"),
        ({"items": [{"question": "q", "solution": "s"}], "granularity": "word"}, "granularity"),
    ],
    ids=["none", "no items", "too many items", "no solution", "an empty solution", "unknown granularity"],
)
async def test_a_wrong_rewards_request_is_refused_by_name(body, param):
    async with rig() as r:
        status, answer = await r.post("/v1/rewards", body)
    assert (status, answer["error"]["param"]) == (400, param)


async def test_ten_thousand_messages_are_refused():
    async with rig() as r:
        status, body = await r.post(CHAT, _chat(messages=QUESTION * 10_000))
    assert (status, body["error"]["code"]) == (400, "too_many_messages")
    assert "10000 messages are more than the 2048 allowed" in body["error"]["message"]


async def test_a_body_of_fifty_mebibytes_is_refused_by_its_announced_size():
    async with rig() as r, r.http.post(CHAT, data=b" " * (50 * 2**20)) as answer:
        assert answer.status == 413
        assert (await answer.json())["error"]["code"] == "request_too_large"


async def test_a_body_that_grows_too_large_without_announcing_it_is_refused():
    async def endless():
        for _ in range(80):
            yield b" " * 2**16

    async with rig() as r, r.http.post(CHAT, data=endless()) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (413, "request_too_large")


async def test_a_body_that_never_comes_is_refused_in_time():
    async with rig(timeouts={"body_s": 0.05}) as r:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(r.url.rpartition(":")[2]))
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        writer.close()
    assert head.startswith(b"HTTP/1.1 408 ")


async def test_headers_that_never_end_are_refused_in_time():
    async with rig(timeouts={"head_s": 10}) as r:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(r.url.rpartition(":")[2]))
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-a: ")
        await pass_time(10)
        answer = await asyncio.wait_for(reader.read(), 30)
        writer.close()
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b'"code":"request_timeout"' in answer


async def test_a_connection_that_says_nothing_is_closed_without_a_word():
    async with rig(timeouts={"head_s": 0.1}) as r:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(r.url.rpartition(":")[2]))
        assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()


async def test_the_time_for_headers_counts_for_each_request_of_a_connection():
    async with rig(timeouts={"head_s": 10}) as r:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(r.url.rpartition(":")[2]))
        request = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
        for _ in range(2):
            writer.write(request)
            assert b'{"alive":true}' in await asyncio.wait_for(reader.readuntil(b"}"), 30)
            # Longer than the limit: a connection may be idle between two requests.
            await pass_time(15)
        writer.write(request[:-2])
        await pass_time(10)
        answer = await asyncio.wait_for(reader.read(), 30)
        writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("piece", [b"x-a: " + b"a" * 1000, b"x-a: 1\r\n" * 100], ids=["one header", "many headers"])
async def test_headers_without_end_are_refused_before_they_fill_the_memory(piece):
    async with rig() as r:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(r.url.rpartition(":")[2]))
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + piece * 100)
        answer = await asyncio.wait_for(reader.readuntil(b"}"), 30)
        writer.close()
    assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert b'"code":"headers_too_large"' in answer


@pytest.mark.parametrize(
    "headers",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"content-length: 5\r\ncontent-length: 6\r\n",
        b"transfer-encoding: xchunked\r\n",
        b"x-a: 1\r\n : 2\r\n",
    ],
    ids=["two framings", "two lengths", "an unknown encoding", "a header without a name"],
)
async def test_a_smuggled_request_is_refused_and_its_connection_closed(headers):
    async with rig() as r:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(r.url.rpartition(":")[2]))
        smuggled = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + headers + b"\r\n0\r\n\r\n" + smuggled)
        answer = await asyncio.wait_for(reader.read(), 30)
        writer.close()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1


async def test_an_unknown_model_is_not_found():
    status, body = None, None
    async with rig() as r:
        status, body = await r.chat("gpt-4o")
    assert (status, body["error"]["code"], body["error"]["param"]) == (404, "model_not_found", "model")


async def test_an_unknown_route_and_a_wrong_method_say_where_to_look():
    async with rig() as r:
        missing = await r.get("/v2/chat")
        async with r.http.get(CHAT) as wrong:
            allowed = wrong.status, wrong.headers["allow"]
    assert (missing[0], missing[1]["error"]["code"]) == (404, "unknown_url")
    assert allowed == (405, "POST")


async def test_a_forged_request_id_never_reaches_the_logs():
    async with rig() as r, r.http.get("/healthz", headers={"x-request-id": "a b{}"}) as answer:
        assert answer.headers["x-request-id"] != "a b{}"
