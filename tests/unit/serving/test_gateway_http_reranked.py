"""The model ``reranked`` over HTTP: best of N."""

import asyncio
import time

import pytest
from aiohttp import web

from support.gateway_rig import QUESTION, RIGHT, WRONG, rig

# The stub critic rewards the word "4" with 1 and every other with 0; both solutions have seven words.
RIGHT_REWARD = pytest.approx(2 / 7)
UNSURE = "no idea"


def _text(body):
    return body["choices"][0]["message"]["content"]


async def test_the_answer_is_the_candidate_that_the_critic_rewards_most():
    async with rig({"solutions": [WRONG, WRONG, RIGHT]}) as r:
        body = await r.rerank(candidates=3, selector="reward", return_candidates=True)
    assert _text(body) == RIGHT
    assert body["rerank"]["chosen_index"] == 2
    assert [candidate["reward"] for candidate in body["rerank"]["candidates"]] == [0.0, 0.0, RIGHT_REWARD]
    assert [candidate["answer"] for candidate in body["rerank"]["candidates"]] == ["5", "5", "4"]


async def test_all_candidates_come_from_one_request_that_shares_the_prefill():
    async with rig({"solutions": [RIGHT]}) as r:
        await r.rerank({"temperature": 0.8}, candidates=16)
    (sent,) = r.policy.requests
    assert (sent["n"], sent["return_token_ids"], sent["temperature"]) == (16, True, 0.8)
    assert "rerank" not in sent


@pytest.mark.parametrize(
    ("selector", "chosen"),
    [("first", "5 #### 5"), ("majority", "6 #### 6"), ("reward", "is 4 #### 4"), ("weighted_majority", "6 #### 6")],
)
async def test_each_selector_chooses_by_its_own_rule(selector, chosen):
    # Rewards: 0 for 5 and 6; (0 + 1 + 0 + 1) / 4 = 0.5 for 4. Odds: 1 each for 6 (sum 2), exp(0.5) = 1.65 for 4.
    solutions = ["5 #### 5", "6 #### 6", "6 #### 6", "is 4 #### 4"]
    async with rig({"solutions": solutions}) as r:
        body = await r.rerank(candidates=4, selector=selector)
    assert _text(body) == chosen
    assert body["rerank"]["selector"] == selector


@pytest.mark.parametrize(
    ("aggregation", "reward"),
    # Word rewards 0 1 0 1; product .5 * .7311 * .5 * .7311 = .1336, its odds .1542;
    # discounted by .5 from the end: (0*.125 + 1*.25 + 0*.5 + 1*1) / 1.875
    [("mean", 0.5), ("min", 0.0), ("product", -1.8693), ("last", 1.0), ("discounted", 1.25 / 1.875)],
)
async def test_each_aggregation_makes_one_number_of_the_token_rewards(aggregation, reward):
    async with rig({"solutions": ["is 4 #### 4"]}) as r:
        body = await r.rerank(candidates=1, selector="reward", aggregation=aggregation, return_candidates=True)
    assert body["rerank"]["candidates"][0]["reward"] == pytest.approx(reward, abs=1e-4)


async def test_the_choice_is_explained():
    async with rig({"solutions": [RIGHT, RIGHT, WRONG]}) as r:
        rerank = (await r.rerank(candidates=3, selector="majority"))["rerank"]
    assert rerank["explanation"] == "2 of 3 candidates answer 4."
    assert [(votes["answer"], votes["votes"]) for votes in rerank["answers"]] == [("4", 2), ("5", 1)]
    assert rerank["pair"] == {"policy_version": "3", "critic_version": "3"}


async def test_usage_counts_every_sampled_token_and_the_prompt_once():
    async with rig({"solutions": [RIGHT]}) as r:
        body = await r.rerank(candidates=5)
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 35, "total_tokens": 38}


async def test_n_answers_are_the_best_n():
    async with rig({"solutions": [WRONG, "4 #### 4", RIGHT]}) as r:
        body = await r.rerank({"n": 2}, candidates=3, selector="reward")
    assert [choice["message"]["content"] for choice in body["choices"]] == ["4 #### 4", RIGHT]


async def test_logprobs_of_the_chosen_candidate_are_the_policys():
    async with rig({"solutions": [WRONG, RIGHT]}) as r:
        body = await r.rerank({"logprobs": True, "top_logprobs": 2}, candidates=2, selector="reward")
    tokens = [item["token"] for item in body["choices"][0]["logprobs"]["content"]]
    assert "".join(tokens) == RIGHT
    assert r.policy.requests[0]["top_logprobs"] == 2


async def test_the_same_seed_gives_the_same_answer():
    async with rig({"solutions": [WRONG, RIGHT, UNSURE]}) as r:
        bodies = [await r.rerank({"seed": 1}, candidates=2, selector="first") for _ in range(3)]
    assert [_text(body) for body in bodies] == [RIGHT] * 3


async def test_token_rewards_come_with_exact_places_in_the_text():
    async with rig({"solutions": ["is 4"]}) as r:
        body = await r.rerank(candidates=1, return_token_rewards=True)
    # Returns with gamma .5: 0 + .5 * 1 = .5, then 1.
    assert body["rerank"]["candidates"][0]["token_rewards"] == [
        {"text": "is", "start": 0, "end": 2, "reward": 0.0, "discounted_return": 0.5},
        {"text": " 4", "start": 2, "end": 4, "reward": 1.0, "discounted_return": 1.0},
    ]


async def test_a_candidate_whose_tokens_cannot_be_placed_is_chosen_without_token_rewards():
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": RIGHT},
        "finish_reason": "stop",
        "token_ids": [10, 11],
        "logprobs": {"content": [{"token": token, "logprob": -1.0} for token in ("something", "else")]},
    }
    answer = {"choices": [choice], "prompt_token_ids": [1], "usage": {}}
    async with rig({"fail": lambda _: web.json_response(answer)}, rerank={"overlap": False}) as r:
        body = await r.rerank(candidates=1, return_token_rewards=True)
    (candidate,) = body["rerank"]["candidates"]
    assert (_text(body), candidate["reward"], candidate["token_rewards"]) == (RIGHT, 0.0, None)


async def test_the_critic_gets_the_token_ids_that_the_policy_sampled():
    async with rig({"solutions": [RIGHT]}) as r:
        await r.rerank(candidates=1, selector="reward")
    assert r.critic.calls == [[[1, 2, 3, *r.policy.vocabulary.encode(RIGHT)]]]
    assert r.policy.tokenized == []


async def test_equal_candidates_are_scored_once():
    async with rig({"solutions": [RIGHT]}, rerank={"overlap": False}) as r:
        body = await r.rerank(candidates=8, selector="reward")
    assert sum(len(call) for call in r.critic.calls) == 1
    assert body["rerank"]["candidates_scored"] == 8


async def test_a_vllm_pooling_critic_gives_the_same_rewards():
    async with rig({"solutions": [WRONG, RIGHT]}) as r:
        urls = r.gateway.settings.pair
        pair = {"policy": {"url": urls.policy.url}, "critic": {"url": urls.critic.url, "protocol": "vllm"}}
        async with rig(pair=pair) as pooled:
            body = await pooled.rerank(candidates=2, selector="reward", return_candidates=True)
    assert [candidate["reward"] for candidate in body["rerank"]["candidates"]] == [0.0, RIGHT_REWARD]


async def test_finished_candidates_are_scored_while_others_are_still_written():
    short, long = "4 #### 4", " ".join(["word"] * 20)
    async with rig({"solutions": [short, long], "token_delay_s": 0.02}) as r:
        asking = asyncio.create_task(r.rerank(candidates=2, selector="reward"))
        while not r.critic.calls:  # noqa: ASYNC110 - the stub is polled like any server
            await asyncio.sleep(0.01)
        assert r.policy.running == 1
        await asking
    assert [len(call) for call in r.critic.calls] == [1, 1]


async def test_candidates_are_scored_in_few_calls_each_of_half_of_those_that_are_left(monkeypatch):
    monkeypatch.setattr("irlops_serving.gateway.scoring.GATHER_AT_MOST_S", 30.0)  # however slow this machine is
    solutions = [" ".join(["word"] * length) + " #### 4" for length in range(1, 9)]
    async with rig({"solutions": solutions, "token_delay_s": 0.005}) as r:
        await r.rerank(candidates=8, selector="reward")
    sizes = [len(call) for call in r.critic.calls]
    # Half of those that are left each time: 4 + 2 + 1 + 1. A call that takes longer leaves more to the next.
    assert (sizes[0] >= 4, sum(sizes), len(sizes) <= 4) == (True, 8, True)


async def test_a_finished_candidate_does_not_wait_long_for_slow_ones():
    solutions = ["4 #### 4", *[" ".join(["word"] * 30)] * 3]
    async with rig({"solutions": solutions, "token_delay_s": 0.01}) as r:
        await r.rerank(candidates=4, selector="reward")
    # One of four would wait for two; a stream of 4 x 30 tokens takes over a second, and it waits a quarter of one.
    assert [len(call) for call in r.critic.calls] == [1, 1]  # the three slow ones are the same


async def test_only_streams_that_nobody_reads_come_in_large_chunks():
    async with rig({"solutions": [RIGHT]}) as r:
        await r.rerank(candidates=2)
        await r.rerank(candidates=2, deadline_ms=60_000)
        await r.rerank(candidates=2, max_total_tokens=1000)
        await r.events(model="policy")
        await r.events(model="policy", rewards={})
    assert [request.get("stream_interval") for request in r.policy.requests] == [64, 8, None, None, None]


async def test_completions_are_reranked_too():
    async with rig({"solutions": [WRONG, RIGHT]}) as r:
        body = {"model": "reranked", "prompt": "2 + 2 =", "rerank": {"candidates": 2, "selector": "reward"}}
        status, answer = await r.post("/v1/completions", body)
    assert (status, answer["object"], answer["choices"][0]["text"]) == (200, "text_completion", RIGHT)


async def test_tools_go_to_the_policy_and_the_chosen_call_comes_back():
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls", "token_ids": [10]}
    answer = {"choices": [choice], "prompt_token_ids": [1], "usage": {}}
    tools = [{"type": "function", "function": {"name": "add"}}]
    async with rig({"fail": lambda _: web.json_response(answer)}) as r:
        body = await r.rerank({"tools": tools}, candidates=1, selector="first")
        events = await r.events(model="reranked", tools=tools, rerank={"candidates": 1, "selector": "first"})
    assert r.policy.requests[0]["tools"] == tools
    assert body["choices"][0]["message"] == message
    assert body["choices"][0]["finish_reason"] == "tool_calls"
    deltas = [event["choices"][0]["delta"] for event in events if isinstance(event, dict)]
    assert [delta["tool_calls"] for delta in deltas if "tool_calls" in delta] == [[{"index": 0, **call}]]


async def test_at_temperature_zero_one_greedy_candidate_is_sampled_because_all_would_be_equal():
    async with rig({"solutions": [RIGHT]}) as r:
        rerank = (await r.rerank({"temperature": 0}, candidates=8))["rerank"]
        refused, body = await r.chat("reranked", temperature=0, n=2)
    assert [(request["n"], request["temperature"]) for request in r.policy.requests] == [(1, 0)]
    assert (rerank["candidates_requested"], rerank["candidates_sampled"], rerank["degraded"]) == (1, 1, None)
    assert rerank["explanation"].startswith("At temperature 0 every candidate would be the same")
    assert (refused, body["error"]["param"]) == (400, "n")


async def test_an_operator_may_have_candidates_sampled_where_clients_say_temperature_zero():
    async with rig({"solutions": [RIGHT]}, rerank={"temperature_for_zero": 0.8}) as r:
        await r.rerank({"temperature": 0}, candidates=8)
        await r.rerank({"temperature": 0.3}, candidates=8)
        await r.rerank(candidates=8)
    assert [(request["n"], request.get("temperature")) for request in r.policy.requests] == [
        (8, 0.8),
        (8, 0.3),
        (8, None),
    ]


# --- streams --------------------------------------------------------------------------------------------------------


async def test_a_stream_tells_progress_and_then_the_winner_with_the_reasons():
    async with rig({"solutions": [WRONG, RIGHT]}) as r:
        events = await r.events(
            model="reranked", rerank={"candidates": 2, "selector": "reward", "return_candidates": True}
        )
    assert events[-1] == "[DONE]"
    chunks = events[:-1]
    progress = [chunk["rerank_progress"] for chunk in chunks if "rerank_progress" in chunk]
    assert [step["candidates_sampled"] for step in progress if step["stage"] == "sampling"] == [1, 2]
    scored = [step["candidate"] for step in progress if step["candidate"]]
    assert {candidate["text"]: candidate["reward"] for candidate in scored} == {WRONG: 0.0, RIGHT: RIGHT_REWARD}
    # Every client can read every chunk: there is always a first choice with a delta.
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == RIGHT
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["rerank"]["chosen_index"] == 1


async def test_a_slow_stream_is_kept_alive_with_comments():
    async with rig({"delay_s": 0.5}, timeouts={"keep_alive_s": 0.05}) as r:
        events = await r.events(model="reranked", rerank={"candidates": 2, "progress": False})
    assert events.count(": keep-alive") >= 3
    assert not [event for event in events if isinstance(event, dict) and "rerank_progress" in event]


async def test_a_stream_carries_usage_when_asked():
    async with rig({"solutions": [RIGHT]}) as r:
        events = await r.events(model="reranked", rerank={"candidates": 2}, stream_options={"include_usage": True})
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["completion_tokens"] == 14


# --- adaptive sampling, budgets, deadlines --------------------------------------------------------------------------


async def test_adaptive_sampling_stops_when_the_answer_is_settled():
    async with rig({"solutions": ["4 4 4 #### 4"]}) as r:
        body = await r.rerank(candidates=16, adaptive=True)
    # Four agree, each with reward 4 / 5 and so a chance of .69: one wave of four settles it.
    assert (body["rerank"]["candidates_sampled"], body["rerank"]["stopped_early"]) == (4, True)
    assert body["usage"]["completion_tokens"] == 20
    assert body["rerank"]["degraded"] is None


async def test_adaptive_sampling_goes_on_while_the_candidates_disagree():
    async with rig({"solutions": ["1", "2", "3", "5", "6", "7", "8", "9"]}) as r:
        body = await r.rerank(candidates=8, adaptive=True)
    assert [request["n"] for request in r.policy.requests] == [4, 4]
    assert (body["rerank"]["candidates_sampled"], body["rerank"]["stopped_early"]) == (8, False)


async def test_a_seed_means_the_same_candidates_in_waves_as_at_once():
    solutions = [f"{number} #### {number}" for number in (1, 2, 3, 5, 6, 7)]
    async with rig({"solutions": solutions}) as r:
        at_once = await r.rerank({"seed": 0}, candidates=6, return_candidates=True)
        in_waves = await r.rerank({"seed": 0}, candidates=6, adaptive=True, return_candidates=True)
    assert [request["seed"] for request in r.policy.requests] == [0, 0, 4]
    texts = [[candidate["text"] for candidate in body["rerank"]["candidates"]] for body in (at_once, in_waves)]
    assert texts[0] == texts[1] == solutions


@pytest.mark.parametrize("overlap", [True, False], ids=["streamed", "in whole answers"])
async def test_a_token_budget_ends_sampling_and_says_so(overlap):
    # Seven words each; the first wave of four spends 28 of 40, one more fits (35), a second would not.
    async with rig({"solutions": [RIGHT]}, rerank={"overlap": overlap}) as r:
        body = await r.rerank(candidates=16, max_total_tokens=40)
    assert body["rerank"]["degraded"] == "token_budget"
    assert body["rerank"]["candidates_sampled"] == 5
    assert body["usage"]["completion_tokens"] == 35


async def test_a_budget_smaller_than_one_solution_gives_what_was_written():
    async with rig({"solutions": [RIGHT], "token_delay_s": 0.01}) as r:
        body = await r.rerank(candidates=1, max_total_tokens=3)
    assert _text(body) == "two and two"
    assert (body["choices"][0]["finish_reason"], body["rerank"]["degraded"]) == ("length", "token_budget")


async def test_a_deadline_gives_the_best_of_what_is_finished():
    long = " ".join(["word"] * 1000)
    async with rig({"solutions": [WRONG, RIGHT, long], "token_delay_s": 0.01}) as r:
        started_s = time.monotonic()
        body = await r.rerank(candidates=3, selector="reward", deadline_ms=1500)
        took_s = time.monotonic() - started_s
        await asyncio.sleep(0.1)
    assert _text(body) == RIGHT
    assert (body["rerank"]["degraded"], body["rerank"]["candidates_sampled"]) == ("deadline", 2)
    assert 1.4 < took_s < 8  # the long one takes at least ten seconds
    assert r.policy.cancelled == 1


async def test_a_deadline_before_any_candidate_is_finished_gives_the_longest_begun():
    long = " ".join(["word"] * 500)
    async with rig({"solutions": [long], "token_delay_s": 0.01}) as r:
        body = await r.rerank(candidates=2, deadline_ms=300)
    assert _text(body).startswith("word word")
    assert body["choices"][0]["finish_reason"] == "length"


async def test_a_deadline_before_the_first_token_is_a_gateway_timeout():
    async with rig({"delay_s": 5}) as r:
        status, body = await r.chat("reranked", rerank={"deadline_ms": 50})
    assert (status, body["error"]["code"], body["error"]["param"]) == (504, "deadline_exceeded", "rerank.deadline_ms")


async def test_a_critic_slower_than_the_deadline_leaves_the_majority_vote():
    async with rig({"solutions": [RIGHT, WRONG, WRONG]}, {"delay_s": 5}) as r:
        body = await r.rerank(candidates=3, selector="reward", deadline_ms=1000)
    assert _text(body) == WRONG
    assert (body["rerank"]["degraded"], body["rerank"]["selector"]) == ("deadline", "majority")
    assert body["rerank"]["requested_selector"] == "reward"


# --- degradation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fail",
    [
        lambda: web.Response(status=500),
        lambda: web.Response(text="not json"),
        lambda: web.json_response({"outputs": []}),
        lambda: web.json_response({"outputs": [{"name": "rewards", "data": [1.0]}]}),
        lambda: web.Response(text='{"outputs": [{"name": "rewards", "data": [NaN, 1, 1, 1, 1, 1, 1, 1, 1, 1]}]}'),
    ],
    ids=["crashes", "no JSON", "no rewards", "too few rewards", "rewards that are not numbers"],
)
async def test_without_a_working_critic_the_majority_vote_answers_and_says_so(fail):
    async with rig({"solutions": [RIGHT, WRONG, WRONG]}, {"fail": fail}) as r:
        body = await r.rerank(candidates=3, selector="reward", return_candidates=True)
        metrics = await r.metrics()
    assert _text(body) == WRONG
    assert (body["rerank"]["degraded"], body["rerank"]["selector"]) == ("critic_unavailable", "majority")
    assert body["rerank"]["explanation"] == "The critic did not answer. 2 of 3 candidates answer 5."
    assert [candidate["reward"] for candidate in body["rerank"]["candidates"]] == [None] * 3
    assert 'irlops_gateway_degraded_answers_total{reason="critic_unavailable"} 1.0' in metrics


async def test_a_critic_that_dies_during_a_request_loses_no_answer():
    answers = iter([None])

    def die_later():
        return next(answers, web.Response(status=500))

    solutions = ["4 #### 4", "4 4 #### 4", " ".join(["word"] * 15) + " #### 5"]
    async with rig({"solutions": solutions, "token_delay_s": 0.01}, {"fail": die_later}) as r:
        body = await r.rerank(candidates=3, selector="reward")
    assert (body["rerank"]["degraded"], body["rerank"]["candidates_scored"]) == ("critic_unavailable", 2)
    # Two of three are scored, so rewards still choose: 3 of 4 words beat 2 of 3.
    assert _text(body) == "4 4 #### 4"


async def test_a_lost_connection_to_the_critic_is_tried_once_more():
    async with rig({"solutions": [RIGHT]}, {"cut_calls": 1}) as r:
        body = await r.rerank(candidates=1, selector="reward")
        metrics = await r.metrics()
    assert (body["rerank"]["degraded"], len(r.critic.calls)) == (None, 2)
    assert 'irlops_gateway_upstream_retries_total{upstream="critic"} 1.0' in metrics


async def test_a_generation_is_never_sent_twice_once_it_was_received():
    async with rig({"solutions": [RIGHT], "cut_after_chunks": 3}) as r:
        status, body = await r.chat("reranked", rerank={"candidates": 2})
    assert (status, body["error"]["code"]) == (502, "policy_bad_response")
    assert len(r.policy.requests) == 1


async def test_a_policy_that_stops_halfway_leaves_the_candidates_it_finished():
    # Two role chunks, then "4 #### 4" ends with the sixth word chunk of the two interleaved candidates.
    solutions = ["4 #### 4", "a b c d e f g"]
    async with rig({"solutions": solutions, "cut_after_chunks": 8}) as r:
        body = await r.rerank(candidates=2, selector="reward")
    assert _text(body) == "4 #### 4"
    assert body["rerank"]["degraded"] == "policy_interrupted"


async def test_a_policy_without_token_ids_is_named_as_the_cause():
    async with rig({"with_token_ids": False}) as r:
        status, body = await r.chat("reranked")
    assert (status, body["error"]["code"]) == (502, "policy_bad_response")
    assert "does not return token ids" in body["error"]["message"]


async def test_majority_does_not_ask_the_critic():
    async with rig({"solutions": [RIGHT]}, {"fail": lambda: web.Response(status=500)}) as r:
        body = await r.rerank(candidates=2, selector="majority")
    assert body["rerank"]["degraded"] is None
    assert r.critic.calls == []


async def test_a_candidate_count_beyond_the_operators_limit_is_refused():
    async with rig(limits={"max_candidates": 4}) as r:
        status, body = await r.chat("reranked", rerank={"candidates": 5})
        allowed, _ = await r.chat("reranked")
    assert (status, body["error"]["param"], allowed) == (400, "rerank.candidates", 200)


async def test_a_question_is_passed_as_it_came():
    async with rig({"solutions": [RIGHT]}) as r:
        await r.rerank(candidates=1)
    assert r.policy.requests[0]["messages"] == QUESTION
