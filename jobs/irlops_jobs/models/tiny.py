"""The ``tiny`` preset: a Llama small enough to learn multi-step arithmetic on a laptop's CPU in minutes."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForTokenClassification

from irlops_jobs.models.tokenizers import BOS, EOS, PAD, build_tiny_tokenizer


def tiny_config() -> LlamaConfig:
    """Width 128, four layers, about 0.9 million parameters; head size 32 is the smallest that vLLM's CPU kernels take."""
    tokenizer = build_tiny_tokenizer()
    ids = tokenizer.get_vocab()
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        pad_token_id=ids[PAD],
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
    )


def build_tiny_policy(seed: int) -> LlamaForCausalLM:
    """Random weights of the tiny policy; the same seed gives the same weights and leaves torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(tiny_config())


def build_tiny_critic(seed: int) -> LlamaForTokenClassification:
    """Random weights of the tiny critic: one logit per token."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = tiny_config()
        config.num_labels = 1
        return LlamaForTokenClassification(config)
