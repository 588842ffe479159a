"""The transformers engine gives what the model says, whatever else runs beside it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from irlops_serving.policy.checkpoint import LoadedPolicy, load_policy
from irlops_serving.policy.engine import Engine, Piece
from irlops_serving.policy.growing_cache import growing_cache
from irlops_serving.policy.requests import Sampling
from support.gateway_rig import eventually
from support.tiny_models import EOS, save_tiny_policy

PROMPT = [1, 3, 50, 60, 70, 4]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> LoadedPolicy:
    return load_policy(save_tiny_policy(tmp_path_factory.mktemp("policy")))


@pytest.fixture(scope="module")
def engine(policy: LoadedPolicy) -> Iterator[Engine]:
    torch.set_num_threads(1)  # two would wait for each other on a busy machine
    engine = Engine(policy)
    yield engine
    engine.stop()


async def _samples(engine: Engine, sampling: Sampling) -> dict[int, list[Piece]]:
    samples: dict[int, list[Piece]] = {}
    async for step in engine.generate(PROMPT, sampling):
        for piece in step:
            samples.setdefault(piece.index, []).append(piece)
    return samples


def _ids(pieces: list[Piece]) -> list[int]:
    return [piece.token_id for piece in pieces]


@torch.inference_mode()
def _greedy_without_cache(policy: LoadedPolicy, count: int) -> list[int]:
    ids = list(PROMPT)
    for _ in range(count):
        ids.append(int(policy.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(PROMPT) :]


async def test_greedy_decoding_equals_running_the_model_anew_for_every_token(engine: Engine, policy: LoadedPolicy):
    # 100 tokens outgrow the cache's first room of 64 positions.
    samples = await _samples(engine, Sampling(num_samples=1, max_tokens=100, temperature=0.0, ignore_eos=True))
    assert _ids(samples[0]) == _greedy_without_cache(policy, 100)


async def test_samples_of_one_request_equal_the_same_seeds_asked_alone(engine: Engine):
    asked = Sampling(num_samples=3, max_tokens=20, seed=5)
    together = await _samples(engine, asked)
    for index in range(3):
        alone = await _samples(engine, replace(asked, num_samples=1, seed=5 + index))
        assert _ids(together[index]) == _ids(alone[0])


async def test_requests_beside_each_other_do_not_change_each_other(engine: Engine):
    asked = [Sampling(num_samples=2, max_tokens=15 + seed, seed=seed) for seed in range(4)]
    beside = await asyncio.gather(*(_samples(engine, sampling) for sampling in asked))
    for sampling, samples in zip(asked, beside, strict=True):
        alone = await _samples(engine, sampling)
        assert {index: _ids(pieces) for index, pieces in samples.items()} == {i: _ids(p) for i, p in alone.items()}


async def test_samples_that_end_early_leave_the_others_as_they_were(engine: Engine):
    asked = Sampling(num_samples=6, max_tokens=30, seed=0, ignore_eos=True)
    undisturbed = await _samples(engine, asked)
    # The fifth token of the first sample ends whoever draws it.
    ender = undisturbed[0][4].token_id
    stopped = await _samples(engine, replace(asked, stop_token_ids=frozenset({ender})))
    for index, pieces in undisturbed.items():
        ids = _ids(pieces)
        expected = ids[: ids.index(ender) + 1] if ender in ids else ids
        assert _ids(stopped[index]) == expected
    assert (stopped[0][-1].finish_reason, stopped[0][-1].stop_reason) == ("stop", ender)


async def test_the_end_of_text_token_ends_a_sample_and_is_no_text(engine: Engine, policy: LoadedPolicy):
    assert policy.end_ids == (policy.tokenizer.convert_tokens_to_ids(EOS),)
    with torch.inference_mode():
        bias = torch.nn.Parameter(torch.full((policy.vocabulary_size,), -1e4), requires_grad=False)
        bias[policy.end_ids[0]] = 1e4
        policy.model.lm_head.bias = bias
    try:
        samples = await _samples(engine, Sampling(num_samples=2, max_tokens=9, seed=0))
    finally:
        policy.model.lm_head.bias = None
    assert [(piece.text, piece.finish_reason, piece.stop_reason) for piece in samples[1]] == [("", "stop", None)]


async def test_logprobs_are_the_models_own(engine: Engine, policy: LoadedPolicy):
    samples = await _samples(engine, Sampling(num_samples=2, max_tokens=5, seed=1, temperature=0.3, num_top_logprobs=0))
    for pieces in samples.values():
        ids = torch.tensor([PROMPT + _ids(pieces)])
        with torch.inference_mode():
            logprobs = torch.log_softmax(policy.model(input_ids=ids).logits[0], dim=-1)
        expected = [float(logprobs[len(PROMPT) - 1 + place, piece.token_id]) for place, piece in enumerate(pieces)]
        said = [piece.logprobs.entries[0][1] for piece in pieces if piece.logprobs]
        assert said == pytest.approx(expected, abs=1e-4)


async def test_leaving_early_stops_the_decoding(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    num_steps, advance = 0, engine._advance

    def advance_slowly(generation):  # all 240 steps would take 12 s
        nonlocal num_steps
        num_steps += 1
        time.sleep(0.05)
        return advance(generation)

    monkeypatch.setattr(engine, "_advance", advance_slowly)
    stream = engine.generate(PROMPT, Sampling(num_samples=2, max_tokens=240, seed=0, ignore_eos=True))
    await anext(stream)
    await stream.aclose()
    await eventually(lambda: engine.num_requests == 0)
    assert num_steps < 240


async def test_a_failing_request_says_why_and_the_next_works(engine: Engine):
    with pytest.raises(IndexError):
        async for _ in engine.generate([10_000], Sampling(num_samples=1, max_tokens=1)):
            pass
    assert len((await _samples(engine, Sampling(num_samples=1, max_tokens=2, ignore_eos=True)))[0]) == 2


def test_the_cache_keeps_rows_apart_when_some_are_dropped(policy: LoadedPolicy):
    cache = growing_cache(policy.model.config)
    keys = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 1, 2, 4)
    cache.update(keys, -keys, 0)
    cache.batch_select_indices(torch.tensor([0, 2]))
    kept_keys, kept_values = cache.update(torch.full((2, 1, 1, 4), 9.0), torch.full((2, 1, 1, 4), 8.0), 0)
    # Rows 0 and 2, two positions each, and then the new one.
    assert kept_keys[:, 0, :, 0].tolist() == [[0, 0, 9], [2, 2, 9]]
    assert kept_values[:, 0, :, 0].tolist() == [[0, 0, 8], [-2, -2, 8]]
