"""What a client may ask of the transformers policy server."""

from __future__ import annotations

from typing import Any

import pytest

from irlops_serving.policy.requests import ChatRequest, CompletionRequest, RequestError, Sampling, parse_request

HELLO = {"messages": [{"role": "user", "content": "hello"}]}


def _sampling(body: dict[str, Any]) -> Sampling:
    return parse_request(ChatRequest, HELLO | body).sampling(default_max_tokens=50, context_tokens=100)


def test_what_a_request_leaves_out_is_openais_default():
    assert _sampling({}) == Sampling(num_samples=1, max_tokens=50)


def test_null_means_left_out():
    assert _sampling({"n": None, "temperature": None, "stop": None, "seed": None}) == _sampling({})


def test_max_completion_tokens_wins_over_its_old_name():
    assert _sampling({"max_tokens": 5, "max_completion_tokens": 6}).max_tokens == 6


def test_one_stop_string_is_a_list_of_one():
    assert _sampling({"stop": "\n"}).stop == ("\n",)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 257}, "n"),
        ({"n": 2, "temperature": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 101}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": -1}, "min_p"),
        ({"stop": ["a", ""]}, "stop"),
        ({"seed": 2**63}, "seed"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"n": "many"}, "n"),
        ({"messages": "hello"}, "messages"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
    ids=lambda value: str(value),
)
def test_what_cant_be_answered_is_refused_by_name(body: dict[str, Any], param: str):
    with pytest.raises(RequestError) as caught:
        _sampling(body)
    assert (caught.value.param, caught.value.status) == (param, 400)


@pytest.mark.parametrize(
    "body",
    [{"presence_penalty": 0}, {"tools": []}, {"response_format": {"type": "text"}}, {"user": "me"}, {"rerank": {}}],
    ids=str,
)
def test_what_asks_for_nothing_passes(body: dict[str, Any]):
    assert _sampling(body) == _sampling({})


@pytest.mark.parametrize("prompt", ["a", [1, 2], ["a", "b"], [[1], [2, 3]]], ids=str)
def test_a_prompt_is_text_or_tokens_one_or_many(prompt: Any):
    assert parse_request(CompletionRequest, {"prompt": prompt}).prompt == prompt
