"""The model ``reranked`` over HTTP, streamed: progress, then the winner."""

import pytest

from support.gateway_rig import QUESTION, RIGHT, WRONG, events_in, rig

# The stub critic rewards the word "4" with 1 and every other with 0; both solutions have seven words.
RIGHT_REWARD = pytest.approx(2 / 7)


async def test_only_streams_that_nobody_reads_come_in_large_chunks():
    async with rig({"solutions": [RIGHT]}) as r:
        await r.rerank(candidates=2)
        await r.rerank(candidates=2, deadline_ms=60_000)
        await r.rerank(candidates=2, max_total_tokens=1000)
        await r.events(model="policy")
        await r.events(model="policy", rewards={})
    assert [request.get("stream_interval") for request in r.policy.requests] == [64, 8, None, None, None]


async def test_a_stream_tells_progress_and_then_the_winner_with_the_reasons():
    async with rig({"solutions": [WRONG, RIGHT]}) as r:
        events = await r.events(
            model="reranked", rerank={"candidates": 2, "selector": "reward", "return_candidates": True}
        )
    assert events[-1] == "[DONE]"
    chunks = events[:-1]
    progress = [chunk["rerank_progress"] for chunk in chunks if "rerank_progress" in chunk]
    assert [step["candidates_sampled"] for step in progress if step["stage"] == "sampling"] == [1, 2]
    assert {(step["aggregation"], step["even_chance_reward"]) for step in progress} == {("mean", 0.0)}
    scored = [step["candidate"] for step in progress if step["candidate"]]
    assert {candidate["text"]: candidate["reward"] for candidate in scored} == {WRONG: 0.0, RIGHT: RIGHT_REWARD}
    # Every client can read every chunk: there is always a first choice with a delta.
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == RIGHT
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["rerank"]["chosen_index"] == 1


async def test_a_slow_stream_is_kept_alive_with_comments():
    async with rig({"holds_after_chunks": 0}, timeouts={"keep_alive_s": 0.05}) as r:
        body = {"model": "reranked", "messages": QUESTION, "stream": True}
        body["rerank"] = {"candidates": 2, "progress": False}
        async with r.http.post("/v1/chat/completions", json=body) as answer:
            stream = b""
            while stream.count(b": keep-alive\n\n") < 3:
                stream += await answer.content.readany()
            r.policy.may_go_on.set()
            events = events_in(stream + await answer.read())
    assert events[-1] == "[DONE]"
    assert not [event for event in events if isinstance(event, dict) and "rerank_progress" in event]


async def test_a_stream_carries_usage_when_asked():
    async with rig({"solutions": [RIGHT]}) as r:
        events = await r.events(model="reranked", rerank={"candidates": 2}, stream_options={"include_usage": True})
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["completion_tokens"] == 14
