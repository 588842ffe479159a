"""A policy's folder, checked and loaded: safetensors only, no remote code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from irlops.errors import PairError
from irlops.registry.folders import inspect_model_folder
from irlops_serving.policy.requests import Message, RequestError


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy in memory.

    Made by ``load_policy``; consumed by the engine and the routes.
    Example: ``LoadedPolicy(folder=Path("out/airl/policy"), model=..., context_tokens=512, end_ids=frozenset({2}), ...)``.
    """

    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    context_tokens: int
    vocabulary_size: int
    end_ids: tuple[int, ...]
    """Tokens that end a solution; the tokenizer's own first."""

    @property
    def fast_tokenizer(self) -> Tokenizer:
        return self.tokenizer.backend_tokenizer

    def chat_ids(self, messages: list[Message], *, add_generation_prompt: bool) -> list[int]:
        """Prompt tokens of a conversation.

        Raises:
            RequestError: it is empty, or the model's chat template refuses it.
        """
        if not messages:
            raise RequestError("messages is empty; a conversation needs at least one message.", param="messages")
        turns = [{"role": message.role, "content": message.text()} for message in messages]
        try:
            text: Any = self.tokenizer.apply_chat_template(
                turns, add_generation_prompt=add_generation_prompt, tokenize=False
            )
        except (TemplateError, ValueError) as error:
            raise RequestError(
                f"The model's chat template refuses these messages: {error}", param="messages"
            ) from error
        # The template writes the special tokens itself.
        return self.text_ids(text, add_special_tokens=False)

    def text_ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return self.fast_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids


def load_policy(folder: Path, *, dtype: str = "auto", max_length: int | None = None) -> LoadedPolicy:
    """Load the policy in ``folder`` for inference on the CPU.

    Args:
        folder: Hugging Face layout.
        dtype: ``auto`` takes the file's.
        max_length: prompt plus answer, in tokens; None takes the model's context.

    Raises:
        PairError: the folder is missing, incomplete or unsafe, or is not a policy.
    """
    inspect_model_folder(folder, "policy")
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype if dtype == "auto" else getattr(torch, dtype),
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
    )
    model, report = loaded
    if report["missing_keys"] or report["mismatched_keys"]:
        raise PairError(
            f"The policy in {folder} lacks weights of its own architecture ({', '.join(sorted(report['missing_keys'])[:5])}). "
            "Export it again with save_pretrained."
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    config = model.config.get_text_config()
    context_tokens = min(config.max_position_embeddings, max_length or config.max_position_embeddings)
    end_ids = _end_ids(tokenizer.eos_token_id, config.eos_token_id, model.generation_config)
    model.eval().requires_grad_(False)
    return LoadedPolicy(folder, model, tokenizer, context_tokens, config.vocab_size, end_ids)


def _end_ids(*sources: Any) -> tuple[int, ...]:
    """Every end-of-text token that the tokenizer, the config or the generation config names, in that order."""
    found: dict[int, None] = {}
    for source in sources:
        value = getattr(source, "eos_token_id", source)
        for token in value if isinstance(value, list | tuple) else [value]:
            if isinstance(token, int):
                found[token] = None
    return tuple(found)
