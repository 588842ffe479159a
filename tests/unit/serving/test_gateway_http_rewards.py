"""Dense rewards over HTTP: /v1/rewards, and rewards on a stream."""

import pytest
from aiohttp import web

from support.gateway_rig import RIGHT, eventually, rig

# The stub critic rewards "4" with 1; these tests also punish "wrong" with -2.
CRITIC = {"reward": lambda word: {"4": 1.0, "wrong": -2.0}.get(word.strip(), 0.0)}
QUESTION = "What is 2 + 2?"


def _items(*solutions):
    return {"items": [{"question": QUESTION, "solution": solution} for solution in solutions]}


async def test_every_token_has_its_place_its_reward_and_its_return():
    async with rig(critic=CRITIC) as r:
        status, body = await r.post("/v1/rewards", _items("is 4\nok"))
    (item,) = body["items"]
    # Returns with gamma .5: 0, then 1 + 0, then 0 + .5 * 1.
    assert (status, item["tokens"]) == (
        200,
        [
            {"text": "is", "start": 0, "end": 2, "reward": 0.0, "discounted_return": 0.5},
            {"text": " 4", "start": 2, "end": 4, "reward": 1.0, "discounted_return": 1.0},
            {"text": "\nok", "start": 4, "end": 7, "reward": 0.0, "discounted_return": 0.0},
        ],
    )
    assert item["reward"] == pytest.approx(1 / 3)
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert body["pair"] == {"policy_version": "3", "critic_version": "3"}


async def test_steps_are_rewarded_and_the_first_that_looks_wrong_is_named():
    solution = "2 + 2 is 4\nwrong it is 5\nalso wrong\n#### 5"
    async with rig(critic=CRITIC) as r:
        _, body = await r.post("/v1/rewards", {**_items(solution), "granularity": "step"})
    (item,) = body["items"]
    # Words of the steps: 2 + 2 is 4 -> 1/5; wrong it is 5 -> -2/4; also wrong -> -2/2; #### 5 -> 0.
    assert [step["reward"] for step in item["steps"]] == [0.2, -0.5, -1.0, 0.0]
    assert item["suspected_first_error"] == {"step": 1, "start": 11, "end": 25, "reward": -0.5}
    assert (item["tokens"], item["answer"]) == (None, "5")


async def test_a_solution_without_a_doubtful_step_has_no_suspect():
    async with rig(critic=CRITIC) as r:
        _, body = await r.post("/v1/rewards", _items(RIGHT))
    assert body["items"][0]["suspected_first_error"] is None


async def test_the_question_is_tokenized_by_the_policys_own_chat_template_once():
    async with rig(critic=CRITIC) as r:
        await r.post("/v1/rewards", _items(RIGHT, "4 4"))
    prompts = [body for body in r.policy.tokenized if "messages" in body]
    assert [(body["messages"], body["add_generation_prompt"]) for body in prompts] == [
        ([{"role": "user", "content": QUESTION}], True)
    ]
    assert [body["add_special_tokens"] for body in r.policy.tokenized if "prompt" in body] == [False, False]


async def test_a_batch_of_256_is_scored_in_calls_that_fit_the_critic():
    solutions = [f"{number} 4" for number in range(256)]
    async with rig(critic=CRITIC) as r:
        status, body = await r.post("/v1/rewards", {**_items(*solutions), "granularity": "step"})
    assert status == 200
    assert [item["index"] for item in body["items"]] == list(range(256))
    assert [len(call) for call in r.critic.calls] == [32] * 8


async def test_offsets_count_characters_not_bytes():
    async with rig(critic=CRITIC) as r:
        _, body = await r.post("/v1/rewards", _items("5 € makes 4 🥚"))
    places = [(token["start"], token["end"]) for token in body["items"][0]["tokens"]]
    assert places == [(0, 1), (1, 3), (3, 9), (9, 11), (11, 13)]


async def test_without_a_critic_rewards_are_unavailable_not_invented():
    async with rig(critic={"fail": lambda: web.Response(status=503)}) as r:
        status, body = await r.post("/v1/rewards", _items(RIGHT))
    assert (status, body["error"]["code"]) == (503, "critic_unavailable")


async def test_a_question_past_the_context_is_refused_in_the_critics_words():
    error = {"error": "sequence 0 has 5000 tokens, the model reads 4096"}
    async with rig(critic={"fail": lambda: web.json_response(error, status=400)}) as r:
        status, body = await r.post("/v1/rewards", _items(RIGHT))
    assert (status, body["error"]["message"]) == (400, "sequence 0 has 5000 tokens, the model reads 4096")


async def test_token_strings_that_cannot_be_placed_are_never_guessed():
    async with rig(critic=CRITIC) as r:
        r.policy.vocabulary.word = lambda _: "<unk>"
        status, body = await r.post("/v1/rewards", _items(RIGHT))
    assert status == 502
    assert "set pair.policy.tokenizer_file" in body["error"]["message"]


async def test_a_tokenizer_file_places_tokens_without_asking_the_policy(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<unk>": 0, "is": 1, "4": 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    async with rig() as r:
        urls = r.gateway.settings.pair
        policy = {"url": urls.policy.url, "tokenizer_file": tmp_path / "tokenizer.json"}
        async with rig(pair={"policy": policy, "critic": {"url": urls.critic.url}}) as local:
            _, body = await local.post("/v1/rewards", _items("is € 4"))
    assert r.critic.calls == [[[1, 2, 3, 1, 0, 2]]]
    assert [token["text"] for token in body["items"][0]["tokens"]] == ["is", " €", " 4"]
    assert [body for body in r.policy.tokenized if "prompt" in body] == []


# --- rewards on a stream --------------------------------------------------------------------------------------------


async def test_each_step_is_rewarded_while_the_policy_goes_on_writing():
    solution = "2 + 2 is 4\nwrong it is 5\n#### 5"
    async with rig({"solutions": [solution], "token_delay_s": 0.02}, CRITIC) as r:
        events = await r.events(model="policy", rewards={"granularity": "step"})
    told = [event["rewards"]["step"] for event in events if isinstance(event, dict) and "rewards" in event]
    assert [(step["text"], step["reward"]) for step in told] == [
        ("2 + 2 is 4\n", 0.2), ("wrong it is 5\n", -0.5), ("#### 5", 0.0),
    ]  # fmt: skip
    first = next(place for place, event in enumerate(events) if isinstance(event, dict) and "rewards" in event)
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events[:first]) != solution
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1]) == solution
    assert events[-1] == "[DONE]"


async def test_tokens_of_a_step_are_told_once_each():
    async with rig({"solutions": ["is 4\nok 4"], "token_delay_s": 0.02}, CRITIC) as r:
        events = await r.events(model="policy", rewards={"granularity": "token"})
    tokens = [t for event in events[:-1] if "rewards" in event for t in event["rewards"]["tokens"]]
    assert [(token["text"], token["reward"]) for token in tokens] == [
        ("is", 0.0), (" 4", 1.0), ("\nok", 0.0), (" 4", 1.0),
    ]  # fmt: skip


async def test_what_only_the_gateway_asked_for_is_not_shown():
    async with rig({"solutions": ["is 4"]}, CRITIC) as r:
        events = await r.events(model="policy", rewards={"granularity": "step"})
    for event in events[:-1]:
        assert "prompt_token_ids" not in event
        assert "token_ids" not in event["choices"][0]
        assert event["choices"][0].get("logprobs") is None


async def test_a_critic_that_fails_ends_the_rewards_but_not_the_text():
    async with rig({"solutions": ["is 4\nok"]}, {"fail": lambda: web.Response(status=500)}) as r:
        events = await r.events(model="policy", rewards={"granularity": "step"})
    errors = [event["rewards"]["error"]["code"] for event in events[:-1] if "rewards" in event]
    assert errors == ["critic_bad_response"]
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1]) == "is 4\nok"
    assert events[-1] == "[DONE]"


async def test_a_policy_that_stops_halfway_ends_the_stream_with_an_error():
    async with rig({"solutions": ["a b c d"], "cut_after_chunks": 2}, CRITIC) as r:
        events = await r.events(model="policy", rewards={"granularity": "step"})
    assert events[-1]["error"]["code"] == "policy_bad_response"


async def test_a_client_that_leaves_stops_the_policy_and_the_scoring():
    solution = "\n".join(["4"] * 300)
    async with rig({"solutions": [solution], "token_delay_s": 0.02}, CRITIC) as r:
        body = {"model": "policy", "messages": [{"role": "user", "content": "q"}], "stream": True}
        async with r.http.post("/v1/chat/completions", json=body | {"rewards": {}}) as answer:
            await answer.content.readany()
        await eventually(lambda: r.policy.running == 0)
    assert r.policy.cancelled == 1
