"""The model ``reranked`` over HTTP: what the critic is sent, when, and what becomes of its rewards."""

import asyncio

import pytest
from aiohttp import web

from support.gateway_rig import RIGHT, WRONG, eventually, rig, text_of

# The stub critic rewards the word "4" with 1 and every other with 0; both solutions have seven words.
RIGHT_REWARD = pytest.approx(2 / 7)


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


async def test_token_rewards_come_with_exact_places_in_thetext_of():
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
    assert (text_of(body), candidate["reward"], candidate["token_rewards"]) == (RIGHT, 0.0, None)


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


async def test_a_finished_candidate_does_not_wait_long_for_slow_ones(monkeypatch):
    solutions = ["4 #### 4", *[" ".join(["word"] * 30)] * 3]
    async with rig({"solutions": solutions, "token_delay_s": 0.01}) as r:
        asking = asyncio.create_task(r.rerank(candidates=4, selector="reward"))
        await eventually(lambda: len(r.critic.calls) == 1)
        # The slow ones end one after the other and go together, however slow this machine is.
        monkeypatch.setattr("irlops_serving.gateway.scoring.GATHER_AT_MOST_S", 30.0)
        await asking
    # One of four would wait for two; a stream of 4 x 30 tokens takes over a second, and it waits a quarter of one.
    assert [len(call) for call in r.critic.calls] == [1, 1]  # the three slow ones are the same


async def test_majority_does_not_ask_the_critic():
    async with rig({"solutions": [RIGHT]}, {"fail": lambda: web.Response(status=500)}) as r:
        body = await r.rerank(candidates=2, selector="majority")
    assert body["rerank"]["degraded"] is None
    assert r.critic.calls == []
