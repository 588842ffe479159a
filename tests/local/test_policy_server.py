"""Stock vLLM and the transformers server answer the same requests with the same keys, types and, where fixed, numbers."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn

from irlops.local.processes import claim_port
from irlops_serving.policy.app import PolicyRoutes
from irlops_serving.policy.checkpoint import load_policy
from irlops_serving.policy.engine import Engine
from irlops_serving.vllm_server import is_installed
from support.servers import running_server
from support.tiny_models import save_tiny_policy
from support.trace_collector import Received, trace_collector

pytestmark = pytest.mark.slow

needs_vllm = pytest.mark.skipif(not is_installed(), reason="vLLM is not installed")
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hi 2+2"}]
GREEDY = {"temperature": 0, "max_tokens": 20}


@pytest.fixture(scope="module")
def policy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def collected() -> Iterator[Received]:
    """vLLM's spans."""
    with trace_collector() as (url, received), pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        yield received


@pytest.fixture(scope="module")
def vllm(policy_dir: Path, collected: Received) -> Iterator[httpx.Client]:
    command = [sys.executable, "-m", "irlops_serving.policy", "--backend", "vllm", "--model-dir", str(policy_dir)]
    with (
        running_server([*command, "--threads", "1"], policy_dir / "vllm.log", ready_path="/health") as (url, _),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def engine(policy_dir: Path) -> Iterator[Engine]:
    torch.set_num_threads(1)  # two would wait for each other on a busy machine
    engine = Engine(load_policy(policy_dir))
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def ours(engine: Engine) -> Iterator[httpx.Client]:
    port = claim_port(None)
    server = uvicorn.Server(uvicorn.Config(PolicyRoutes(engine, "policy").app(), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=200) as client:
        while not server.started:
            time.sleep(0.01)
        yield client
    server.should_exit = True
    thread.join()


def _shape(value: Any) -> Any:
    """Keys and types: what a client's code sees. Lists show each kind of element once; plain ones may be empty."""
    if isinstance(value, dict):
        if value and all(isinstance(entry, float) for entry in value.values()):
            return "text -> float"  # plain completions key log-probabilities by token text
        return {key: _shape(entry) for key, entry in value.items()}
    if isinstance(value, list) and not any(isinstance(entry, dict) for entry in value):
        return "list"
    if isinstance(value, list):
        return sorted({json.dumps(_shape(entry), sort_keys=True) for entry in value})
    return type(value).__name__


def _types(chunks: list[dict[str, Any]]) -> dict[str, set[str]]:
    """The types that each field takes in a stream, by its path (``choices.delta.content``)."""
    types: dict[str, set[str]] = defaultdict(set)

    def visit(path: str, value: Any) -> None:
        if isinstance(value, dict) and not all(isinstance(entry, float) for entry in value.values()):
            for key, entry in value.items():
                visit(f"{path}.{key}", entry)
        elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
            for entry in value:
                visit(path, entry)
        else:
            types[path.removeprefix(".")].add(type(value).__name__)

    for chunk in chunks:
        visit("", chunk)
    return types


def _post(client: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    answer = client.post(path, json={"model": "policy", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def _stream(client: httpx.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with client.stream("POST", path, json={"model": "policy", "stream": True, **body}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        data = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert data[-1] == "[DONE]"
    return [json.loads(event) for event in data[:-1]]


@needs_vllm
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": HELLO, **GREEDY}),
        (CHAT, {"messages": HELLO, "n": 3, "seed": 1, "max_tokens": 5, "return_token_ids": True, "logprobs": True}),
        (CHAT, {"messages": HELLO, "logprobs": True, "top_logprobs": 3, **GREEDY}),
        (COMPLETIONS, {"prompt": "2+2", **GREEDY}),
        (COMPLETIONS, {"prompt": [1, 3, 50], "n": 2, "seed": 1, "max_tokens": 3, "return_token_ids": True}),
        (COMPLETIONS, {"prompt": ["a", "bc"], **GREEDY, "return_token_ids": True}),
        ("/tokenize", {"messages": HELLO, "add_generation_prompt": True}),
        ("/tokenize", {"prompt": "hi é", "add_special_tokens": False, "return_token_strs": True}),
    ],
    ids=[
        "a chat",
        "three samples with tokens and logprobs",
        "top logprobs",
        "a completion",
        "a completion of tokens",
        "two prompts at once",
        "tokens of a conversation",
        "tokens of a text",
    ],
)
def test_both_servers_answer_in_one_shape(vllm: httpx.Client, ours: httpx.Client, path: str, body: dict[str, Any]):
    assert _shape(_post(ours, path, body)) == _shape(_post(vllm, path, body))


@needs_vllm
def test_both_servers_decode_the_same_tokens_with_the_same_logprobs(vllm: httpx.Client, ours: httpx.Client):
    body = {"messages": HELLO, "return_token_ids": True, "logprobs": True, "ignore_eos": True, **GREEDY}
    theirs, own = (_post(client, CHAT, body) for client in (vllm, ours))
    assert own["prompt_token_ids"] == theirs["prompt_token_ids"]
    assert own["choices"][0]["token_ids"] == theirs["choices"][0]["token_ids"]
    assert own["choices"][0]["message"] == theirs["choices"][0]["message"]
    for one, other in zip(
        own["choices"][0]["logprobs"]["content"], theirs["choices"][0]["logprobs"]["content"], strict=True
    ):
        assert one["token"] == other["token"]
        assert one["logprob"] == pytest.approx(other["logprob"], abs=1e-4)


@needs_vllm
def test_vllm_reports_its_part_of_the_callers_trace(vllm: httpx.Client, collected: Received):
    trace = "0af7651916cd43dd8448eb211c80319c"
    body = {"model": "policy", "messages": HELLO, **GREEDY}
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    assert vllm.post(CHAT, json=body, headers=headers).status_code == 200
    deadline = time.monotonic() + 20
    while ("irlops-policy", "llm_request", trace) not in collected:
        assert time.monotonic() < deadline, collected
        time.sleep(0.1)


@needs_vllm
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS], ids=["chat", "completion"])
def test_both_servers_stream_in_one_shape(vllm: httpx.Client, ours: httpx.Client, path: str):
    # Top-k 1 draws the same tokens on both. A server is free to send several tokens in one chunk when its reader is slow,
    # so what must agree is which types each field takes, not which chunks they meet in.
    body = {"n": 2, "top_k": 1, "max_tokens": 16, "ignore_eos": True, "return_token_ids": True, "logprobs": 1}
    body |= {"messages": HELLO, "logprobs": True} if path == CHAT else {"prompt": "2+2"}
    body |= {"stream_options": {"include_usage": True}}
    assert _types(_stream(ours, path, body)) == _types(_stream(vllm, path, body))


@needs_vllm
def test_both_servers_stop_at_the_same_place(vllm: httpx.Client, ours: httpx.Client):
    whole = _post(ours, CHAT, {"messages": HELLO, "ignore_eos": True, **GREEDY})["choices"][0]["message"]["content"]
    stop = whole[3:5]
    answers = [
        _post(client, CHAT, {"messages": HELLO, "stop": stop, "ignore_eos": True, "return_token_ids": True, **GREEDY})
        for client in (vllm, ours)
    ]
    first, second = (answer["choices"][0] for answer in answers)
    assert first == second
    assert (second["stop_reason"], second["finish_reason"]) == (stop, "stop")


@needs_vllm
@pytest.mark.parametrize(
    "body",
    [
        {"messages": HELLO, "model": "other"},
        {"messages": []},
        {"messages": "text"},
        {"messages": HELLO, "n": 0},
        {"messages": HELLO, "max_tokens": 0},
        {"messages": HELLO, "max_tokens": 1000},
        {"messages": HELLO, "temperature": -1},
        {"messages": HELLO, "temperature": 0, "n": 2},
        {"messages": HELLO, "top_p": 2},
        {"messages": HELLO, "stop": [""]},
        {"messages": [{"role": "user", "content": "a" * 300}]},
        {"messages": HELLO, "top_logprobs": 2},
    ],
    ids=lambda body: str({key: value for key, value in body.items() if value != HELLO})[:40],
)
def test_both_servers_refuse_the_same_requests(vllm: httpx.Client, ours: httpx.Client, body: dict[str, Any]):
    theirs, own = (client.post(CHAT, json={"model": "policy", **body}) for client in (vllm, ours))
    assert own.status_code == theirs.status_code
    assert set(own.json()["error"]) == set(theirs.json()["error"])
    assert own.json()["error"]["message"]


@needs_vllm
def test_both_servers_fill_what_the_context_leaves(vllm: httpx.Client, ours: httpx.Client):
    body = {"messages": HELLO, "max_tokens": 256, "temperature": 0, "ignore_eos": True}
    used = [_post(client, CHAT, body)["usage"]["completion_tokens"] for client in (vllm, ours)]
    assert used == [256 - 9, 256 - 9]  # the prompt takes 9 tokens


@needs_vllm
def test_models_and_health_look_alike(vllm: httpx.Client, ours: httpx.Client):
    theirs, own = (client.get("/v1/models").json()["data"][0] for client in (vllm, ours))
    assert set(own) == set(theirs)
    assert (own["id"], own["max_model_len"]) == (theirs["id"], theirs["max_model_len"])
    assert ours.get("/health").status_code == vllm.get("/health").status_code == 200


def test_samples_of_a_stream_add_up_to_the_whole_answer(ours: httpx.Client):
    body = {"messages": HELLO, "n": 3, "seed": 4, "max_tokens": 12, "return_token_ids": True}
    whole = _post(ours, CHAT, body)["choices"]
    text, ids = dict.fromkeys(range(3), ""), {index: [] for index in range(3)}
    for chunk in _stream(ours, CHAT, body):
        for choice in chunk["choices"]:
            text[choice["index"]] += choice["delta"]["content"]
            ids[choice["index"]] += choice.get("token_ids") or []
    assert [choice["message"]["content"] for choice in whole] == list(text.values())
    assert [choice["token_ids"] for choice in whole] == list(ids.values())


@pytest.mark.parametrize("streamed", [True, False], ids=["while streaming", "while waiting for the whole answer"])
def test_a_client_that_leaves_stops_its_generation(
    ours: httpx.Client, engine: Engine, streamed: bool, monkeypatch: pytest.MonkeyPatch
):
    num_steps, advance = 0, engine._advance

    def advance_slowly(generation):  # all 240 steps would take 12 s
        nonlocal num_steps
        num_steps += 1
        time.sleep(0.05)
        return advance(generation)

    monkeypatch.setattr(engine, "_advance", advance_slowly)
    body = {"messages": HELLO, "n": 64, "max_tokens": 240, "ignore_eos": True, "stream": streamed}
    with httpx.Client(base_url=ours.base_url, timeout=httpx.Timeout(30, read=30 if streamed else 1)) as impatient:
        if streamed:
            with impatient.stream("POST", CHAT, json=body) as answer:
                next(answer.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                impatient.post(CHAT, json=body)
    deadline = time.monotonic() + 30
    while engine.num_requests and time.monotonic() < deadline:
        time.sleep(0.02)
    assert engine.num_requests == 0
    assert num_steps < 240


def test_a_short_answer_overtakes_a_long_one(ours: httpx.Client, engine: Engine, monkeypatch: pytest.MonkeyPatch):
    long_ended, short_ended, advance = threading.Event(), threading.Event(), engine._advance

    def advance_slowly(generation):  # until the short one is there, all steps of the long one would take 12 s
        time.sleep(0 if short_ended.is_set() else 0.05)
        return advance(generation)

    monkeypatch.setattr(engine, "_advance", advance_slowly)
    body = {"messages": HELLO, "n": 16, "max_tokens": 240, "ignore_eos": True}
    long = threading.Thread(target=lambda: (_post(ours, CHAT, body), long_ended.set()))
    long.start()
    while not engine.num_requests:
        time.sleep(0.01)
    _post(ours, CHAT, {"messages": HELLO, "max_tokens": 2})
    assert not long_ended.is_set()
    short_ended.set()
    long.join()


def test_what_the_backend_lacks_is_refused_not_ignored(ours: httpx.Client):
    answer = ours.post(CHAT, json={"messages": HELLO, "tools": [{"type": "function"}]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")


@pytest.mark.parametrize("body", [b'{"messages"', b"[]", b"\xff"], ids=["cut short", "a list", "no text"])
def test_a_broken_body_is_refused_with_one_error_object(ours: httpx.Client, body: bytes):
    answer = ours.post(CHAT, content=body)
    assert (answer.status_code, set(answer.json()["error"])) == (400, {"message", "type", "param", "code"})
