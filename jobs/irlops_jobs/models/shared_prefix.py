"""Forward passes that encode each prompt once, however many solutions follow it.

The prompt's keys and values are computed once and indexed by every solution's parent, gradients included, so a
question with N samples, its expert and its corruptions costs one prompt. Nothing is padded on the left: prompts and
solutions are padded on the right and positions are given explicitly.
"""

# Dimension key: Q prompts, P prompt tokens (right-padded), S solutions, T solution tokens (right-padded), H hidden, V vocabulary.
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

LOGITS_PER_CHUNK = 2**23
"""Vocabulary logits alive at once (32 MiB in float32); a longer batch is cut and recomputed in the backward pass."""


@dataclass(frozen=True)
class TraceBatch:
    """Solutions with their prompts, padded; ``parent_S`` says which prompt each solution follows."""

    prompt_ids_QP: Tensor
    prompt_mask_QP: Tensor
    solution_ids_ST: Tensor
    solution_mask_ST: Tensor
    parent_S: Tensor

    @classmethod
    def of(
        cls, prompts: Sequence[Sequence[int]], solutions: Sequence[Sequence[int]], parents: Sequence[int]
    ) -> TraceBatch:
        """Pad token lists into one batch; prompts without solutions are allowed."""
        prompt_ids, prompt_mask = _pad(prompts)
        solution_ids, solution_mask = _pad(solutions)
        return cls(prompt_ids, prompt_mask, solution_ids, solution_mask, torch.tensor(parents, dtype=torch.long))

    def to(self, device: torch.device) -> TraceBatch:
        return TraceBatch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def _pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    ids = pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]


def encode_prompts(backbone: nn.Module, ids_QP: Tensor, mask_QP: Tensor) -> tuple[Tensor, Cache]:
    """Hidden states (Q, P, H) of the prompts, and the keys and values that solutions attend to."""
    out = backbone(input_ids=ids_QP, attention_mask=mask_QP.long(), use_cache=True, past_key_values=DynamicCache())
    return out.last_hidden_state, out.past_key_values


def dynamic_layers(cache: Cache) -> list[DynamicLayer]:
    """The layers of a cache of full attention, the only kind that prompts can be shared in so far."""
    return cast(list[DynamicLayer], cache.layers)


def hidden_states(backbone: nn.Module, batch: TraceBatch) -> tuple[Tensor, Tensor]:
    """Final hidden states of the solutions.

    Returns:
        before_ST_H: (S, T, H), what predicts each solution token (the state one token earlier).
        at_ST_H: (S, T, H), the state at each solution token itself.
    """
    prompt_hidden, cache = encode_prompts(backbone, batch.prompt_ids_QP, batch.prompt_mask_QP)
    prompt_length_Q = batch.prompt_mask_QP.sum(1)
    last_QH = prompt_hidden[torch.arange(len(prompt_length_Q), device=prompt_length_Q.device), prompt_length_Q - 1]
    for layer in dynamic_layers(cache):
        layer.keys = layer.keys.index_select(0, batch.parent_S)  # pyright: ignore[reportOptionalMemberAccess] - filled above
        layer.values = layer.values.index_select(0, batch.parent_S)  # pyright: ignore[reportOptionalMemberAccess] - as above
    mask = torch.cat([batch.prompt_mask_QP[batch.parent_S], batch.solution_mask_ST], dim=1)
    offsets_T = torch.arange(batch.solution_ids_ST.shape[1], device=mask.device)
    positions = prompt_length_Q[batch.parent_S][:, None] + offsets_T
    at = backbone(
        input_ids=batch.solution_ids_ST,
        attention_mask=mask.long(),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    at = in_reach_of_gradients(at, prompt_hidden, backbone)
    before = torch.cat([last_QH[batch.parent_S][:, None], at[:, :-1]], dim=1)
    return before, at


def in_reach_of_gradients(states: Tensor, prompt_hidden: Tensor, backbone: nn.Module) -> Tensor:
    """``states`` as they are, with the prompts' last layer in their graph when weights are sharded.

    FSDP2 gathers a layer's weights for the backward pass when a gradient reaches the layer's output. A critic reads its
    prompts through keys and values alone, so none would reach the last layer's, and its weights would not be there.
    """
    if any(isinstance(module, FSDPModule) for module in backbone.modules()):
        return states + 0.0 * prompt_hidden.sum()
    return states


def _chunk_logprobs(hidden_NH: Tensor, token_N: Tensor, head: nn.Module) -> tuple[Tensor, Tensor]:
    logits_NV = head(hidden_NH).float()
    log_normaliser_N = torch.logsumexp(logits_NV, dim=-1)
    chosen_N = logits_NV.gather(-1, token_N[:, None]).squeeze(-1) - log_normaliser_N
    with torch.no_grad():
        probabilities_NV = torch.exp(logits_NV - log_normaliser_N[:, None])
        entropy_N = log_normaliser_N - (probabilities_NV * logits_NV).sum(-1)
    return chosen_N, entropy_N


def chosen_logprobs(hidden_NH: Tensor, token_N: Tensor, head: nn.Module, vocabulary_size: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities of chosen tokens and entropies, without ever holding (tokens, vocabulary) for all tokens.

    Args:
        hidden_NH: (N, H), states that predict the tokens; carries gradients.
        token_N: (N,) int64.
        head: the vocabulary projection.
    Returns:
        (N,) float32 nats, <= 0, with gradients; and (N,) float32 nats, >= 0, without.
    """
    size = max(1, LOGITS_PER_CHUNK // vocabulary_size)
    if len(token_N) <= size:
        return _chunk_logprobs(hidden_NH, token_N, head)
    parts = [
        checkpoint(_chunk_logprobs, hidden, token, head, use_reentrant=False)
        for hidden, token in zip(hidden_NH.split(size), token_N.split(size), strict=True)
    ]
    chosen, entropy = zip(*parts, strict=True)  # pyright: ignore[reportArgumentType] - checkpoint returns the pair
    return torch.cat(chosen), torch.cat(entropy)
