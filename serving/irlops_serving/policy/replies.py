"""OpenAI's answer shapes, with the fields that vLLM adds: the same keys, in the same places, of the same types."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from tokenizers import Tokenizer

from irlops_serving.policy.engine import Piece
from irlops_serving.policy.text import token_text

FINGERPRINT = f"irlops-transformers-{version('transformers')}"


@dataclass(frozen=True)
class Asked:
    """What a reply has to repeat of its request."""

    model: str
    prompt_ids: tuple[list[int], ...]
    """One list for each prompt; a chat has one."""
    num_samples: int
    """Of each prompt; sample s of prompt p is choice p * num_samples + s."""
    with_token_ids: bool
    num_top_logprobs: int | None
    tokenizer: Tokenizer
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:16])
    created: int = field(default_factory=lambda: int(time.time()))

    def prompt_of(self, choice_index: int) -> list[int] | None:
        return self.prompt_ids[choice_index // self.num_samples] if self.with_token_ids else None


class ChatReply:
    """Builds ``chat.completion`` and its chunks."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._context: dict[int, list[int]] = {}

    def whole(self, samples: dict[int, list[Piece]]) -> dict[str, Any]:
        choices = [self._choice(index, pieces) for index, pieces in sorted(samples.items())]
        return {
            **self._head("chat.completion"),
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": _whole_usage(self._asked, samples),
            "prompt_logprobs": None,
            "prompt_token_ids": self._asked.prompt_of(0),
            "prompt_text": None,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }

    def _choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        message = {
            "role": "assistant",
            "content": "".join(piece.text for piece in pieces),
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        }
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(pieces),
            "finish_reason": pieces[-1].finish_reason,
            "stop_reason": pieces[-1].stop_reason,
            "token_ids": [piece.token_id for piece in pieces] if self._asked.with_token_ids else None,
            "routed_experts": None,
        }

    def first_chunks(self) -> list[dict[str, Any]]:
        """The role of every choice, and the prompt's tokens."""
        return [
            {
                **self._head("chat.completion.chunk"),
                "choices": [_chunk_choice(index, {"delta": {"role": "assistant", "content": ""}, "logprobs": None})],
                "prompt_token_ids": self._asked.prompt_of(index),
                "prompt_text": None,
            }
            for index in range(self._asked.num_samples)
        ]

    def chunk(self, piece: Piece) -> dict[str, Any]:
        choice = _chunk_choice(piece.index, {"delta": {"content": piece.text}, "logprobs": self._logprobs([piece])})
        choice["finish_reason"] = piece.finish_reason
        if piece.finish_reason is not None:
            choice["stop_reason"] = piece.stop_reason
        choice["token_ids"] = [piece.token_id] if self._asked.with_token_ids else None
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def last_chunk(self, num_tokens: int) -> dict[str, Any]:
        """The usage, when it was asked for."""
        return {
            **self._head("chat.completion.chunk"),
            "choices": [],
            "usage": _usage(self._asked, num_tokens),
            "system_fingerprint": FINGERPRINT,
        }

    def _head(self, kind: str) -> dict[str, Any]:
        asked = self._asked
        return {"id": f"chatcmpl-{asked.id}", "object": kind, "created": asked.created, "model": asked.model}

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        if self._asked.num_top_logprobs is None:
            return None
        content = []
        for piece in pieces:
            entries = _named_entries(self._asked, piece, self._context)
            named = [
                {"token": text, "logprob": logprob, "bytes": list(text.encode())}
                for text, logprob in entries[: max(1, self._asked.num_top_logprobs)]
            ]
            top = [dict(entry) for entry in named] if self._asked.num_top_logprobs else []
            content.append({**named[0], "top_logprobs": top})
        return {"content": content}


class CompletionReply:
    """Builds ``text_completion`` and its chunks."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._context: dict[int, list[int]] = {}
        self._text_offset: dict[int, int] = {}
        self._has_shown_prompt: set[int] = set()

    def whole(self, samples: dict[int, list[Piece]]) -> dict[str, Any]:
        choices = [self._choice(index, pieces) for index, pieces in sorted(samples.items())]
        return {
            **self._head(),
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": _whole_usage(self._asked, samples),
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }

    def _choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        return {
            "index": index,
            "text": "".join(piece.text for piece in pieces),
            "logprobs": self._logprobs(pieces),
            "finish_reason": pieces[-1].finish_reason,
            "stop_reason": pieces[-1].stop_reason,
            "token_ids": [piece.token_id for piece in pieces] if self._asked.with_token_ids else None,
            "prompt_logprobs": None,
            "prompt_token_ids": self._asked.prompt_of(index),
            "routed_experts": None,
        }

    def first_chunks(self) -> list[dict[str, Any]]:
        return []

    def chunk(self, piece: Piece) -> dict[str, Any]:
        is_first = piece.index not in self._has_shown_prompt
        self._has_shown_prompt.add(piece.index)
        choice = {
            "index": piece.index,
            "text": piece.text,
            "logprobs": self._logprobs([piece]),
            "finish_reason": piece.finish_reason,
            "stop_reason": piece.stop_reason,
            "prompt_token_ids": self._asked.prompt_of(piece.index) if is_first else None,
            "token_ids": [piece.token_id] if self._asked.with_token_ids else None,
        }
        return {**self._head(), "choices": [choice]}

    def last_chunk(self, num_tokens: int) -> dict[str, Any]:
        usage = _usage(self._asked, num_tokens)
        return {**self._head(), "choices": [], "usage": usage, "system_fingerprint": FINGERPRINT}

    def _head(self) -> dict[str, Any]:
        asked = self._asked
        return {"id": f"cmpl-{asked.id}", "object": "text_completion", "created": asked.created, "model": asked.model}

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        if self._asked.num_top_logprobs is None:
            return None
        offsets, logprobs, tokens, top = [], [], [], []
        for piece in pieces:
            entries = _named_entries(self._asked, piece, self._context)
            text, logprob = entries[0]
            offsets.append(self._text_offset.get(piece.index, 0))
            self._text_offset[piece.index] = offsets[-1] + len(text)
            logprobs.append(logprob)
            tokens.append(text)
            # The first of several tokens that read the same is the likelier one.
            top.append(dict(reversed(entries)))
        return {"text_offset": offsets, "token_logprobs": logprobs, "tokens": tokens, "top_logprobs": top}


def _chunk_choice(index: int, body: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, **body, "finish_reason": None}


def _named_entries(asked: Asked, piece: Piece, context: dict[int, list[int]]) -> list[tuple[str, float]]:
    """(text, log-probability) of the drawn token and the likeliest others."""
    assert piece.logprobs is not None
    before = context.setdefault(piece.index, [])
    named = [(token_text(asked.tokenizer, token, before), logprob) for token, logprob in piece.logprobs.entries]
    before.append(piece.token_id)
    return named


def _usage(asked: Asked, num_tokens: int) -> dict[str, Any]:
    num_prompt = sum(map(len, asked.prompt_ids))
    return {"prompt_tokens": num_prompt, "total_tokens": num_prompt + num_tokens, "completion_tokens": num_tokens}


def _whole_usage(asked: Asked, samples: dict[int, list[Piece]]) -> dict[str, Any]:
    usage = _usage(asked, sum(map(len, samples.values())))
    return {**usage, "prompt_tokens_details": None, "completion_tokens_details": None}
