"""The model ``reranked`` over HTTP: what is asked of the policy, and which candidate is the answer."""

import pytest
from aiohttp import web

from support.gateway_rig import QUESTION, RIGHT, WRONG, rig, text_of

# The stub critic rewards the word "4" with 1 and every other with 0; both solutions have seven words.
RIGHT_REWARD = pytest.approx(2 / 7)


async def test_the_answer_is_the_candidate_that_the_critic_rewards_most():
    async with rig({"solutions": [WRONG, WRONG, RIGHT]}) as r:
        body = await r.rerank(candidates=3, selector="reward", return_candidates=True)
    assert text_of(body) == RIGHT
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
    assert text_of(body) == chosen
    assert body["rerank"]["selector"] == selector


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
    async with rig({"solutions": [WRONG, RIGHT, "no idea"]}) as r:
        bodies = [await r.rerank({"seed": 1}, candidates=2, selector="first") for _ in range(3)]
    assert [text_of(body) for body in bodies] == [RIGHT] * 3


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


async def test_a_question_is_passed_as_it_came():
    async with rig({"solutions": [RIGHT]}) as r:
        await r.rerank(candidates=1)
    assert r.policy.requests[0]["messages"] == QUESTION
