"""Attention of rows that are being written to prompts that many of them share.

A row's next token attends to all before it, and what that costs on a CPU is reading keys and values from memory. The samples
of a question have the same prompt: its keys and values are kept once, and all rows of it are multiplied with them
together (as in cascade inference, https://flashinfer.ai/2024/02/02/cascade-inference.html, but with one softmax over
both parts, since nothing of it is large).
"""

# Dimension key: Q prompts, P prompt tokens (right-padded), S rows, N rows of a prompt (padded), T tokens written so far, K key
# heads, G query heads of each, J all query heads, D size of a head.
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from irlops.errors import ConfigError
from irlops_jobs.models.shared_prefix import dynamic_layers

NAME = "irlops_shared_prompts"


@dataclass(frozen=True)
class SharedPrompts:
    """Keys and values of prompts, and which rows follow which."""

    keys: list[Tensor]
    """Of each layer (Q, K, P, D)."""
    values: list[Tensor]
    mask_QP: Tensor
    """float32, added to scores."""
    prompt_S: Tensor
    row_QN: Tensor
    """The rows of each prompt; some row where it has fewer than others."""
    slot_S: Tensor
    """Where in ``row_QN`` each row is."""

    @classmethod
    def of(cls, cache: Cache, prompt_mask_QP: Tensor, prompt_S: Tensor) -> SharedPrompts:
        """From a pass over the prompts.

        Args:
            prompt_S: the prompt of each row, ascending.
        """
        layers = dynamic_layers(cache)
        mask_QP = torch.zeros(prompt_mask_QP.shape, device=prompt_mask_QP.device)
        return cls(
            [layer.keys for layer in layers],  # pyright: ignore[reportArgumentType] - filled by the pass
            [layer.values for layer in layers],  # pyright: ignore[reportArgumentType] - as above
            mask_QP.masked_fill(~prompt_mask_QP, torch.finfo(torch.float32).min),
            *_places(prompt_S, len(prompt_mask_QP)),
        )

    def keep(self, alive_S: Tensor) -> SharedPrompts:
        """The same prompts with fewer rows."""
        prompt_S, row_QN, slot_S = _places(self.prompt_S[alive_S], len(self.mask_QP))
        return replace(self, prompt_S=prompt_S, row_QN=row_QN, slot_S=slot_S)


def _places(prompt_S: Tensor, num_prompts: int) -> tuple[Tensor, Tensor, Tensor]:
    rows = torch.arange(len(prompt_S), device=prompt_S.device)
    counts = torch.bincount(prompt_S, minlength=num_prompts)
    row_QN = pad_sequence(list(rows.split(counts.tolist())), batch_first=True)
    return prompt_S, row_QN, rows - (counts.cumsum(0) - counts)[prompt_S]


@contextmanager
def attending_to_shared_prompts(model: PreTrainedModel) -> Iterator[None]:
    """While inside, the model's passes take ``shared_prompts=`` and one token of each row."""
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before


def _attend(
    layer: nn.Module,
    query_SJ1D: Tensor,
    key_SKTD: Tensor,
    value_SKTD: Tensor,
    _mask: Tensor | None,
    *,
    scaling: float,
    shared_prompts: SharedPrompts,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface; every row sees its whole prompt and all that it has written itself.

    Raises:
        ConfigError: the layer sees the last tokens only.
    """
    if sliding_window is not None:
        raise ConfigError(
            f"A layer of this model sees the last {sliding_window} tokens only, which rollouts with transformers don't know how to "
            "share between samples. Set rollouts.engine: vllm."
        )
    shared, index = shared_prompts, int(layer.layer_idx)  # pyright: ignore[reportArgumentType]
    key_QKPD, value_QKPD = shared.keys[index], shared.values[index]
    num_rows, num_keys = key_SKTD.shape[:2]
    query_SKGD = query_SJ1D.view(num_rows, num_keys, -1, query_SJ1D.shape[-1]) * scaling
    to_prompt_SKGP = _ungroup(_group(query_SKGD, shared) @ key_QKPD.mT, shared, num_keys)
    to_prompt_SKGP = to_prompt_SKGP + shared.mask_QP[shared.prompt_S][:, None, None]
    to_own_SKGT = query_SKGD @ key_SKTD.mT
    weight = torch.cat([to_prompt_SKGP, to_own_SKGT.float()], dim=-1).softmax(-1).to(value_SKTD.dtype)
    weight_SKGP, weight_SKGT = weight.split([key_QKPD.shape[2], key_SKTD.shape[2]], dim=-1)
    seen_SKGD = _ungroup(_group(weight_SKGP, shared) @ value_QKPD, shared, num_keys) + weight_SKGT @ value_SKTD
    return seen_SKGD.flatten(1, 2)[:, None], None


def _group(rows_SKGX: Tensor, shared: SharedPrompts) -> Tensor:
    """(Q, K, N x G, X): all rows of a prompt side by side."""
    return rows_SKGX[shared.row_QN].transpose(1, 2).flatten(2, 3)


def _ungroup(grouped: Tensor, shared: SharedPrompts, num_keys: int) -> Tensor:
    """(S, K, G, X), the inverse of ``_group``."""
    num_rows_each = shared.row_QN.shape[1]
    grouped_QKNGX = grouped.view(len(grouped), num_keys, num_rows_each, -1, grouped.shape[-1])
    return grouped_QKNGX.transpose(1, 2)[shared.prompt_S, shared.slot_S]


ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
