"""The model ``reranked`` over HTTP: adaptive sampling, token budgets, deadlines."""

import asyncio

import pytest

from support.gateway_rig import RIGHT, WRONG, eventually, pass_time, rig, text_of

# Only the deadline is to run out.
PATIENT = {"first_token_s": 600, "idle_s": 600, "critic_s": 600}


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
    assert text_of(body) == "two and two"
    assert (body["choices"][0]["finish_reason"], body["rerank"]["degraded"]) == ("length", "token_budget")


async def test_a_deadline_gives_the_best_of_what_is_finished():
    long = " ".join(["word"] * 1000)
    async with rig({"solutions": [WRONG, RIGHT, long], "token_delay_s": 0.01}, timeouts=PATIENT) as r:
        asking = asyncio.create_task(r.rerank(candidates=3, selector="reward", deadline_ms=60_000))
        await eventually(lambda: sum(len(call) for call in r.critic.calls) == 2)
        await pass_time(30)
        await eventually(lambda: r.policy.written > 50)  # the long one goes on
        assert not asking.done()
        await pass_time(30)
        body = await asking
        await eventually(lambda: r.policy.running == 0)
    assert text_of(body) == RIGHT
    assert (body["rerank"]["degraded"], body["rerank"]["candidates_sampled"]) == ("deadline", 2)
    assert r.policy.cancelled == 1


async def test_a_deadline_before_any_candidate_is_finished_gives_the_longest_begun():
    long = " ".join(["word"] * 500)
    async with rig({"solutions": [long], "token_delay_s": 0.01}, timeouts=PATIENT) as r:
        asking = asyncio.create_task(r.rerank(candidates=2, deadline_ms=60_000))
        await eventually(lambda: r.policy.written >= 10)  # two that say the role, and four words of each candidate
        await pass_time(60)
        body = await asking
    assert text_of(body).startswith("word word")
    assert body["choices"][0]["finish_reason"] == "length"


async def test_a_deadline_before_the_first_token_is_a_gateway_timeout():
    async with rig({"delay_s": 5}) as r:
        status, body = await r.chat("reranked", rerank={"deadline_ms": 50})
    assert (status, body["error"]["code"], body["error"]["param"]) == (504, "deadline_exceeded", "rerank.deadline_ms")


async def test_a_critic_slower_than_the_deadline_leaves_the_majority_vote():
    async with rig({"solutions": [RIGHT, WRONG, WRONG]}, {"delay_s": 600}, timeouts=PATIENT) as r:
        asking = asyncio.create_task(r.rerank(candidates=3, selector="reward", deadline_ms=60_000))
        await eventually(lambda: len(r.critic.calls) == 1 and r.policy.running == 0)
        await pass_time(60)
        body = await asking
    assert text_of(body) == WRONG
    assert (body["rerank"]["degraded"], body["rerank"]["selector"]) == ("deadline", "majority")
    assert body["rerank"]["requested_selector"] == "reward"


async def test_a_candidate_count_beyond_the_operators_limit_is_refused():
    async with rig(limits={"max_candidates": 4}) as r:
        status, body = await r.chat("reranked", rerank={"candidates": 5})
        allowed, _ = await r.chat("reranked")
    assert (status, body["error"]["param"], allowed) == (400, "rerank.candidates", 200)
