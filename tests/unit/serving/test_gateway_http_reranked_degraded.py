"""The model ``reranked`` over HTTP: what is answered when policy or critic fails."""

import pytest
from aiohttp import web

from support.gateway_rig import RIGHT, WRONG, rig, text_of


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
    assert text_of(body) == WRONG
    assert (body["rerank"]["degraded"], body["rerank"]["selector"]) == ("critic_unavailable", "majority")
    assert body["rerank"]["explanation"] == "The critic did not answer. 2 of 3 candidates answer 5."
    assert [candidate["reward"] for candidate in body["rerank"]["candidates"]] == [None] * 3
    assert 'irlops_gateway_degraded_answers_total{reason="critic_unavailable"} 1.0' in metrics


async def test_a_critic_that_dies_during_a_request_loses_no_answer(monkeypatch):
    # The first two go together in one call, however long the second takes.
    monkeypatch.setattr("irlops_serving.gateway.scoring.GATHER_AT_MOST_S", 30.0)
    answers = iter([None])

    def die_later():
        return next(answers, web.Response(status=500))

    solutions = ["4 #### 4", "4 4 #### 4", " ".join(["word"] * 15) + " #### 5"]
    async with rig({"solutions": solutions, "token_delay_s": 0.01}, {"fail": die_later}) as r:
        body = await r.rerank(candidates=3, selector="reward")
    assert (body["rerank"]["degraded"], body["rerank"]["candidates_scored"]) == ("critic_unavailable", 2)
    # Two of three are scored, so rewards still choose: 3 of 4 words beat 2 of 3.
    assert text_of(body) == "4 4 #### 4"


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
    assert text_of(body) == "4 #### 4"
    assert body["rerank"]["degraded"] == "policy_interrupted"


async def test_a_policy_without_token_ids_is_named_as_the_cause():
    async with rig({"with_token_ids": False}) as r:
        status, body = await r.chat("reranked")
    assert (status, body["error"]["code"]) == (502, "policy_bad_response")
    assert "does not return token ids" in body["error"]["message"]
