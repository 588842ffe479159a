"""vLLM in the trainer's own process: real rollouts on a CPU, with the weights that the trainer has now."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from irlops.contracts.jobs import LoraConfig, RolloutConfig
from irlops_jobs.models.load import load_policy, load_tokenizer, with_lora
from irlops_jobs.models.prompts import encode_prompt
from irlops_jobs.models.scorers import PolicyScorer
from irlops_jobs.models.shared_prefix import TraceBatch
from support.tiny_models import save_tiny_policy

pytestmark = pytest.mark.slow
pytest.importorskip("vllm", reason="vLLM is not installed")

CONFIG = RolloutConfig(engine="vllm", samples_per_prompt=3, max_new_tokens=12, temperature=0.7)
QUESTIONS = ("What is 2 + 3?", "Sam has 4 apples and eats one. How many are left?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path):
    return load_tokenizer(folder, cache_dir=folder)


@pytest.fixture(scope="module")
def engine(folder: Path, tokenizer):
    from irlops_jobs.rollouts.vllm_engine import VllmEngine

    engine = VllmEngine(load_policy(folder, cache_dir=folder), tokenizer, CONFIG, max_length=128)
    yield engine
    engine.close()


def largest_gap(engine, policy, tokenizer) -> float:
    """Between log-probabilities of fresh samples as vLLM says and as transformers computes them, in nats."""
    prompts = [encode_prompt(tokenizer, question) for question in QUESTIONS]
    samples = engine.sample(prompts, num_samples=3, seeds=[1, 2])
    flat = [sample for group in samples for sample in group]
    batch = TraceBatch.of(prompts, [sample.token_ids for sample in flat], [0, 0, 0, 1, 1, 1])
    with torch.no_grad():
        logprob_ST, _ = PolicyScorer(policy, temperature=CONFIG.temperature).eval()(batch)
    return max(
        abs(own - float(recomputed))
        for sample, row in zip(flat, logprob_ST, strict=True)
        for own, recomputed in zip(sample.logprobs, row, strict=False)
    )


def _changed(policy, seed: int):
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for weight in policy.parameters():
            weight.add_(torch.randn_like(weight) * 0.1 * weight.std().nan_to_num(0.1))
    return policy


def test_samples_carry_the_log_probabilities_that_transformers_computes(engine, folder, tokenizer):
    policy = load_policy(folder, cache_dir=folder)
    engine.load_weights(policy)
    assert largest_gap(engine, policy, tokenizer) < 1e-4


def test_new_weights_reach_vllm_after_every_update(engine, folder, tokenizer):
    policy = load_policy(folder, cache_dir=folder)
    engine.load_weights(policy)
    for seed in (1, 2):
        assert largest_gap(engine, _changed(policy, seed), tokenizer) > 0.05  # vLLM still has the old ones
        engine.load_weights(policy)
        assert largest_gap(engine, policy, tokenizer) < 1e-4


def test_adapters_reach_vllm_merged(engine, folder, tokenizer):
    policy = with_lora(load_policy(folder, cache_dir=folder), LoraConfig(rank=4), seed=0)
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    engine.load_weights(policy)
    assert largest_gap(engine, policy, tokenizer) < 1e-4


def test_a_seed_gives_the_same_samples_whatever_shares_the_batch(engine, folder, tokenizer):
    engine.load_weights(load_policy(folder, cache_dir=folder))
    prompts = [encode_prompt(tokenizer, question) for question in QUESTIONS]
    [_, alone] = engine.sample(prompts, num_samples=2, seeds=[5, 6])
    [again] = engine.sample(prompts[1:], num_samples=2, seeds=[6])
    assert [sample.token_ids for sample in again] == [sample.token_ids for sample in alone]
    assert alone[0].token_ids != alone[1].token_ids


def test_a_sample_ends_with_the_end_token_or_is_truncated(engine, folder, tokenizer):
    policy = load_policy(folder, cache_dir=folder)
    engine.load_weights(policy)
    [samples] = engine.sample([encode_prompt(tokenizer, QUESTIONS[0])], num_samples=16, seeds=[3])
    for sample in samples:
        assert len(sample.token_ids) == len(sample.logprobs) <= CONFIG.max_new_tokens
        assert sample.truncated == (sample.token_ids[-1] != tokenizer.eos_token_id)
        assert all(logprob <= 0 and math.isfinite(logprob) for logprob in sample.logprobs)
