"""A random two-layer Llama policy, a critic of the same shape and their tokenizer, written as real model folders.

Small enough to save and load in well under a second, and of shapes that stock vLLM takes on a CPU (head size 32).
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForTokenClassification, PreTrainedTokenizerFast

CONTEXT_TOKENS = 256
PAD, BOS, EOS, USER, ASSISTANT = "<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{{ '"
    + BOS
    + "' }}{% for message in messages %}{{ ('"
    + USER
    + "' if message['role'] == 'user' else '"
    + ASSISTANT
    + "')"
    " + message['content'] }}{% endfor %}{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, plus the five special ones: 261 ids, nothing to train."""
    special = [PAD, BOS, EOS, USER, ASSISTANT]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS)
    fast.chat_template = CHAT_TEMPLATE
    fast.model_max_length = CONTEXT_TOKENS
    return fast


def tiny_config() -> LlamaConfig:
    tokenizer = tiny_tokenizer()
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def save_tiny_policy(folder: Path, seed: int = 0) -> Path:
    """A policy folder: random weights, wide enough that sampling is not uniform."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(tiny_config())
        _widen(model)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_tiny_critic(folder: Path, seed: int = 1, head_bias: float = 0.25) -> Path:
    """A critic folder; its head's bias is not zero, so a server that drops it gives other numbers."""
    config = tiny_config()
    config.num_labels = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForTokenClassification(config)
        _widen(model)
        model.score.bias.data.fill_(head_bias)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def _widen(model: torch.nn.Module) -> None:
    """Scale the initial weights up: at 0.02 every logit is nearly the same, and so would be any wrong answer."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.mul_(8.0 if weight.dim() > 1 else 1.0)
