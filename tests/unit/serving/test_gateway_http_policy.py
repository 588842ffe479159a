"""The model ``policy`` over HTTP: passed through as it came."""

import openai
import pytest

from support.gateway_rig import QUESTION, RIGHT, rig


async def test_a_chat_completion_of_the_policy_comes_back_as_the_policy_wrote_it():
    async with rig({"solutions": [RIGHT]}) as r:
        status, body = await r.chat(temperature=0.7, top_k=5)
    assert status == 200
    assert body["choices"][0]["message"]["content"] == RIGHT
    # RIGHT is seven words.
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10}
    assert r.policy.requests == [{"model": "policy", "messages": QUESTION, "temperature": 0.7, "top_k": 5}]


async def test_a_model_called_otherwise_upstream_is_called_policy_to_clients():
    upstream = {"policy": {"url": "http://127.0.0.1:1", "model": "smollm"}}
    async with rig({"solutions": [RIGHT]}) as r:
        upstream["policy"]["url"] = r.gateway.settings.pair.policy.url
        async with rig(pair=upstream) as renamed:
            _, body = await renamed.chat()
    assert (r.policy.requests[0]["model"], body["model"]) == ("smollm", "policy")


async def test_a_stream_of_the_policy_is_passed_on_as_it_is_produced():
    # Two of five events (role, three words, end): the policy writes the others once these have arrived.
    async with rig({"solutions": ["a b c"], "holds_after_chunks": 2}) as r:
        body = {"model": "policy", "messages": QUESTION, "stream": True}
        async with r.http.post("/v1/chat/completions", json=body) as answer:
            first = b""
            while first.count(b"data: ") < 2:
                first += await answer.content.readany()
            r.policy.may_go_on.set()
            rest = await answer.read()
    assert b'"content": "a"' in first
    assert (rest.count(b"data: "), rest.endswith(b"data: [DONE]\n\n")) == (3, True)


async def test_a_usage_chunk_appears_only_when_the_client_asked_for_it():
    async with rig({"solutions": ["a b c"]}) as r:
        without = await r.events(model="policy")
        included = await r.events(model="policy", stream_options={"include_usage": True})
        metrics = await r.metrics()
    assert [event for event in without if isinstance(event, dict) and event.get("usage")] == []
    assert included[-2]["usage"]["completion_tokens"] == 3
    assert without[-1] == included[-1] == "[DONE]"
    # Both were counted all the same: 3 + 3 tokens.
    assert (
        'token_usage_sum{gen_ai_operation_name="chat",gen_ai_request_model="policy",gen_ai_token_type="output"} 6.0'
        in (metrics)
    )


async def test_completions_are_passed_through_too():
    async with rig({"solutions": [RIGHT]}) as r:
        status, body = await r.post("/v1/completions", {"model": "policy", "prompt": "2 + 2 =", "logprobs": 1})
    assert (status, body["choices"][0]["text"]) == (200, RIGHT)


async def test_a_refusal_of_the_policy_reaches_the_client_as_the_policy_said_it(monkeypatch):
    from aiohttp import web

    # A stream that has waited for so long begins with 200, whatever comes then.
    monkeypatch.setattr("irlops_serving.gateway.reranked.START_STREAM_AFTER_S", 30.0)

    def refuse(_):
        error = {
            "message": "maximum context length is 1024 tokens",
            "type": "BadRequestError",
            "param": "messages",
            "code": 400,
        }
        return web.json_response({"error": error}, status=400)

    async with rig({"fail": refuse}) as r:
        status, body = await r.chat()
        reranked_status, reranked = await r.chat("reranked")
        streamed_status, streamed = await r.chat("reranked", stream=True)
    assert status == reranked_status == streamed_status == 400
    assert body["error"] == reranked["error"] == streamed["error"]
    assert body["error"]["message"] == "maximum context length is 1024 tokens"
    assert body["error"]["param"] == "messages"


async def test_nothing_of_the_client_but_its_trace_and_request_id_goes_upstream():
    headers = {"authorization": "Bearer secret", "cookie": "a=b", "x-forwarded-for": "1.2.3.4", "x-request-id": "req-1"}
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with rig() as r:
        await r.post(
            "/v1/chat/completions", {"model": "policy", "messages": QUESTION}, headers=headers | {"traceparent": trace}
        )
    sent = r.policy.headers[0]
    assert sent["x-request-id"] == "req-1"
    assert sent["traceparent"] == trace
    assert not {"authorization", "cookie", "x-forwarded-for"} & sent.keys()


async def test_the_official_client_works_unchanged():
    async with rig({"solutions": [RIGHT]}) as r, openai.AsyncOpenAI(base_url=f"{r.url}/v1", api_key="x") as client:
        models = [model.id async for model in client.models.list()]
        whole = await client.chat.completions.create(model="policy", messages=QUESTION)
        stream = await client.chat.completions.create(model="policy", messages=QUESTION, stream=True)
        streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert models == ["reranked", "policy", "critic"]
    assert whole.choices[0].message.content == streamed == RIGHT


async def test_the_official_client_reads_reranked_answers_and_streams():
    async with (
        rig({"solutions": ["5 #### 5", RIGHT]}) as r,
        openai.AsyncOpenAI(base_url=f"{r.url}/v1", api_key="x") as client,
    ):
        extra = {"rerank": {"candidates": 4, "selector": "reward", "return_candidates": True}}
        whole = await client.chat.completions.create(model="reranked", messages=QUESTION, extra_body=extra)
        stream = await client.chat.completions.create(
            model="reranked", messages=QUESTION, extra_body=extra, stream=True
        )
        streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert whole.choices[0].message.content == streamed == RIGHT
    assert len(whole.model_extra["rerank"]["candidates"]) == 4


async def test_the_official_client_raises_its_own_errors():
    async with rig() as r, openai.AsyncOpenAI(base_url=f"{r.url}/v1", api_key="x") as client:
        with pytest.raises(openai.NotFoundError, match="gpt-4o"):
            await client.chat.completions.create(model="gpt-4o", messages=QUESTION)
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model="policy", messages=QUESTION, temperature=3)
    assert refused.value.body["param"] == "temperature"
