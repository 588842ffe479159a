"""Hostile clients: what they cannot make the gateway hold, spend or reach."""

import asyncio
import json

import pytest
import yaml

from irlops_serving.gateway.keys import hash_key
from support.gateway_rig import QUESTION, eventually, pass_time, rig

CHAT = "/v1/chat/completions"
CHUNKED = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"


async def connection_to(r):
    return await asyncio.open_connection("127.0.0.1", int(r.url.rpartition(":")[2]))


async def answer_to(reader):
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return head, await asyncio.wait_for(reader.readexactly(length), 30)


async def ends(reader):
    """Whether the gateway closes the connection, without another word."""
    try:
        return await asyncio.wait_for(reader.read(), 30) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


@pytest.mark.parametrize("key", [b"", b"authorization: Bearer k\r\n"], ids=["already refused", "still waited for"])
@pytest.mark.parametrize("piece", [b"x-a: " + b"a" * 1000, b"x-a: 1\r\n" * 100], ids=["one trailer", "many trailers"])
async def test_trailers_without_end_do_not_fill_the_memory(piece, key, tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text(yaml.safe_dump({"keys": [{"name": "a", "sha256": hash_key("k")}]}))
    async with rig(auth={"keys_file": keys}) as r:
        reader, writer = await connection_to(r)
        writer.write(CHUNKED + key + b"\r\n2\r\n{}\r\n0\r\n")
        if not key:
            assert (await answer_to(reader))[0].startswith(b"HTTP/1.1 401 ")
        for _ in range(100):
            writer.write(piece)
            await asyncio.sleep(0)
        assert await ends(reader)
        writer.close()


async def test_trailers_are_not_headers():
    trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    body = json.dumps({"model": "policy", "messages": QUESTION}).encode()
    async with rig() as r:
        reader, writer = await connection_to(r)
        chunk = b"%x\r\n%b\r\n0\r\ntraceparent: %b\r\n\r\n" % (len(body), body, trace)
        writer.write(CHUNKED + b"\r\n" + chunk)
        head, _ = await answer_to(reader)
        writer.close()
    assert head.startswith(b"HTTP/1.1 200 ")
    assert "traceparent" not in r.policy.headers[0]


@pytest.mark.parametrize(
    ("request_", "then"),
    [
        (b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n", b"\r\n"),
        (b"POST /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 99999\r\n\r\n", b"a"),
    ],
    ids=["empty lines", "the rest of a refused body"],
)
async def test_nobody_keeps_a_connection_by_sending_what_no_one_waits_for(request_, then):
    async with rig(timeouts={"head_s": 10}) as r:
        reader, writer = await connection_to(r)
        writer.write(request_)
        await answer_to(reader)
        ended = asyncio.create_task(ends(reader))
        for _ in range(2):  # what comes halfway does not count the time anew
            writer.write(then)
            await pass_time(6)
        while not ended.done():
            writer.write(then)
            await asyncio.sleep(0.05)
        assert await ended
        writer.close()


async def test_one_connection_too_many_is_told_so_and_closed_and_the_others_go_on():
    async with rig(limits={"max_connections": 2}) as r:
        (reader, writer), (_, idle) = [await connection_to(r) for _ in range(2)]
        refused, refused_writer = await connection_to(r)
        head, body = await answer_to(refused)
        assert await ends(refused)
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        served, _ = await answer_to(reader)
        idle.close()
        await eventually(lambda: len(r.server.server_state.connections) < 2)
        again, again_writer = await connection_to(r)
        again_writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        after, _ = await answer_to(again)
        for one in (writer, refused_writer, again_writer):
            one.close()
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nretry-after: 1\r\n" in head
    assert json.loads(body)["error"]["code"] == "overloaded"
    assert (served[:13], after[:13]) == (b"HTTP/1.1 200 ", b"HTTP/1.1 200 ")


async def test_after_an_empty_line_too_many_a_request_still_has_all_its_time():
    async with rig(timeouts={"head_s": 30}) as r:
        reader, writer = await connection_to(r)
        for _ in range(3):
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n\r\n")
            assert (await answer_to(reader))[0].startswith(b"HTTP/1.1 200 ")
            await pass_time(18)
        writer.close()


async def test_a_body_in_small_chunks_is_read_however_many_they_are():
    body = json.dumps({"model": "policy", "messages": [{"role": "user", "content": "a" * 100_000}]}).encode()
    async with rig() as r:
        reader, writer = await connection_to(r)
        writer.write(CHUNKED + b"\r\n")
        for place in range(0, len(body), 8):
            piece = body[place : place + 8]
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        writer.write(b"0\r\n\r\n")
        head, _ = await answer_to(reader)
        writer.close()
    assert head.startswith(b"HTTP/1.1 200 ")


async def test_a_folded_header_is_no_error_of_ours():
    body = json.dumps({"model": "policy", "messages": QUESTION}).encode()
    async with rig() as r:
        reader, writer = await connection_to(r)
        folded = b"traceparent: 00-aa\r\n authorization: x\r\n"
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n%bcontent-length: %d\r\n\r\n"
        writer.write(head % (folded, len(body)) + body)
        answer, _ = await answer_to(reader)
        writer.close()
    assert b" 500 " not in answer.partition(b"\r\n")[0]


async def test_one_request_cannot_ask_for_any_number_of_samples():
    async with rig() as r:
        body = {"model": "policy", "prompt": ["a"] * 33, "n": 32}
        status, answer = await r.post("/v1/completions", body)
        fits, _ = await r.post("/v1/completions", {**body, "n": 31})
    assert (status, answer["error"]["param"], fits) == (400, "prompt", 200)
    assert answer["error"]["message"].startswith("1056 samples are more than the 1024 of one request.")


@pytest.mark.parametrize(
    ("path", "fields", "sent"),
    [
        (CHAT, {"messages": QUESTION}, 50),
        (CHAT, {"messages": QUESTION, "max_completion_tokens": None}, 50),
        (CHAT, {"messages": QUESTION, "max_tokens": 7}, 7),
        ("/v1/completions", {"prompt": "a", "max_tokens": None}, 50),
        ("/v1/completions", {"prompt": "a"}, None),
    ],
    ids=["nothing", "null", "less", "null for a completion", "nothing, so the protocol's 16"],
)
@pytest.mark.parametrize("model", ["policy", "reranked"])
async def test_a_request_that_names_no_length_has_the_operators_limit(model, path, fields, sent):
    async with rig(limits={"max_tokens": 50}) as r:
        status, _ = await r.post(path, {"model": model, **fields})
    assert (status, r.policy.requests[0].get("max_tokens")) == (200, sent)


async def test_rewards_on_a_stream_need_the_right_to_the_critic(tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text(yaml.safe_dump({"keys": [{"name": "a", "sha256": hash_key("k"), "models": ["policy"]}]}))
    async with rig(auth={"keys_file": keys}) as r:
        body = {"model": "policy", "messages": QUESTION, "stream": True}
        headers = {"authorization": "Bearer k"}
        async with r.http.post(CHAT, json=body, headers=headers) as plain:
            await plain.read()
        status, refused = await r.post(CHAT, body | {"rewards": {}}, headers=headers)
    assert (plain.status, status, refused["error"]["code"]) == (200, 403, "model_not_allowed")
    assert "'critic'" in refused["error"]["message"]


async def test_streams_with_rewards_take_the_places_of_those_who_ask_the_critic():
    async with rig({"holds_after_chunks": 0}, limits={"max_concurrent_reranked": 1, "max_queued": 0}) as r:
        first = asyncio.create_task(r.events(model="policy", rewards={}))
        await eventually(lambda: r.policy.running == 1)
        full, _ = await r.chat("reranked")
        r.policy.may_go_on.set()
        events = await first
    assert (full, events[-1]) == (503, "[DONE]")
