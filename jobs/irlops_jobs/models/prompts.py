"""How a question becomes a prompt: by the tokenizer's chat template, exactly as the policy server will do it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from transformers import PreTrainedTokenizerBase


def encode_prompt(tokenizer: PreTrainedTokenizerBase, question: str) -> tuple[int, ...]:
    """Tokens of ``question`` as a single user message, up to where the assistant starts to write."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore[reportArgumentType, reportReturnType]


def decode_solution(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Text of solution tokens, without the end token."""
    return cast(str, tokenizer.decode(list(token_ids), skip_special_tokens=True))
