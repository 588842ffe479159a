"""Rewards of many token sequences at once, with little computed twice and little padding.

    sequences -> groups that begin alike -> each group's beginning once, then its endings side by side
              -> the others by length, side by side

Candidates of one question share their prompt, often half of all tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import DynamicCache, DynamicLayer

from irlops_serving.critic.checkpoint import LoadedCritic

Tokens = NDArray[np.int64]
Rewards = NDArray[np.float32]

MIN_SHARED_TOKENS = 16
"""A shorter beginning costs more to run apart than it saves (chat templates begin alike for a few tokens)."""
MIN_KEPT_SHARE = 0.75
"""A sequence joins a group when at least this share of the group's beginning is its own, too."""


@dataclass(frozen=True)
class Group:
    """Sequences that begin with the same tokens.

    Made by ``group_by_beginning``; consumed by ``TokenScorer``.
    Example: ``Group(members=(3, 0, 1), num_shared=41)``: items 3, 0 and 1 begin with the same 41 tokens.
    """

    members: tuple[int, ...]
    """Indices into the sequences."""
    num_shared: int
    """Tokens in common; 0 when the members have nothing to share."""


def group_by_beginning(sequences: Sequence[Tokens]) -> list[Group]:
    """Sort sequences into groups with a common beginning; at least one token of each stays outside of it.

    Args:
        sequences: each (T,) int64, T >= 1.
    """
    # Sorted as bytes, sequences that begin alike stand side by side (every token is eight bytes).
    order = sorted(range(len(sequences)), key=lambda index: sequences[index].tobytes())
    groups: list[Group] = []
    members: list[int] = []
    num_shared = 0
    for index in order:
        common = _num_common(sequences[members[0]], sequences[index]) if members else 0
        if members and common >= max(MIN_SHARED_TOKENS, MIN_KEPT_SHARE * num_shared):
            num_shared = min(num_shared, common) if num_shared else common
            members.append(index)
            continue
        if members:
            groups.append(Group(tuple(members), num_shared))
        members, num_shared = [index], 0
    return [*groups, Group(tuple(members), num_shared)] if members else groups


def _num_common(first: Tokens, second: Tokens) -> int:
    """Tokens that both begin with, less than the shorter one's all."""
    length = min(len(first), len(second)) - 1
    differing = np.flatnonzero(first[:length] != second[:length])
    return int(differing[0]) if len(differing) else length


class TokenScorer:
    """Runs a critic. Not for two threads at a time. Made by the server; called by ``MicroBatcher``."""

    def __init__(self, critic: LoadedCritic, *, max_batch_tokens: int = 8192) -> None:
        """
        Args:
            critic: what ``load_critic`` gave.
            max_batch_tokens: tokens in one forward pass, padding and shared beginnings included: bounds the memory.
        """
        self.critic = critic
        self._model = critic.model
        # In float32 whatever the weights are: rounded to bfloat16, rewards of different candidates would tie.
        self._head: torch.nn.Module = critic.model.score.float()  # pyright: ignore[reportAttributeAccessIssue]
        self._max_batch_tokens = max_batch_tokens
        # Sliding windows drop old keys, so a shared beginning could not be continued.
        self._can_share = all(type(layer) is DynamicLayer for layer in DynamicCache(config=self._model.config).layers)

    @torch.inference_mode()
    def score(self, sequences: Sequence[Tokens]) -> list[Rewards]:
        """The reward of every token.

        Args:
            sequences: each (T,) int64, 1 <= T <= the critic's max_length, ids within its vocabulary.
        Returns:
            One (T,) float32 array for each sequence: raw logits, higher is more expert-like.
        """
        rewards: list[Rewards] = [np.empty(len(tokens), np.float32) for tokens in sequences]
        alone: list[int] = []
        for group in group_by_beginning(sequences) if self._can_share else [Group(tuple(range(len(sequences))), 0)]:
            if group.num_shared:
                self._score_group(group, sequences, rewards)
            else:
                alone.extend(group.members)
        for members in self._batches(alone, sequences):
            padded = _pad([sequences[index] for index in members])
            logits = self._logits(input_ids=padded, use_cache=False)
            _keep(logits, members, sequences, rewards, num_shared=0)
        return rewards

    def _score_group(self, group: Group, sequences: Sequence[Tokens], rewards: list[Rewards]) -> None:
        beginning = torch.from_numpy(sequences[group.members[0]][: group.num_shared]).unsqueeze(0)
        cache = DynamicCache(config=self._model.config)
        shared_logits = self._logits(input_ids=beginning, past_key_values=cache, use_cache=True)
        shared_rewards = shared_logits[0, :, 0].float().numpy()
        for members in self._batches(group.members, sequences):
            padded = _pad([sequences[index][group.num_shared :] for index in members])
            logits = self._logits(input_ids=padded, past_key_values=self._repeat(cache, len(members)), use_cache=True)
            _keep(logits, members, sequences, rewards, group.num_shared)
        for index in group.members:
            rewards[index][: group.num_shared] = shared_rewards

    def _logits(self, **inputs: Any) -> torch.Tensor:
        """(B, T, 1) float32."""
        return self._head(self._model.base_model(**inputs).last_hidden_state.float())

    def _repeat(self, cache: DynamicCache, count: int) -> DynamicCache:
        repeated = DynamicCache(config=self._model.config)
        for index, layer in enumerate(cache.layers):
            assert isinstance(layer, DynamicLayer)
            assert layer.keys is not None
            assert layer.values is not None
            repeated.update(layer.keys.expand(count, -1, -1, -1), layer.values.expand(count, -1, -1, -1), index)
        return repeated

    def _batches(self, members: Sequence[int], sequences: Sequence[Tokens]) -> Iterator[list[int]]:
        """Members of like length together, as many as the token budget takes."""
        batch: list[int] = []
        for index in sorted(members, key=lambda member: len(sequences[member])):
            # The newest is the longest, so it says how far the others are padded.
            if batch and (len(batch) + 1) * len(sequences[index]) > self._max_batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch


def _pad(sequences: Sequence[Tokens]) -> torch.Tensor:
    """(B, T) int64, padded on the right with any token: a causal model never looks there."""
    padded = torch.zeros((len(sequences), max(map(len, sequences))), dtype=torch.int64)
    for row, tokens in enumerate(sequences):
        padded[row, : len(tokens)] = torch.from_numpy(tokens)
    return padded


def _keep(
    logits: torch.Tensor, members: Sequence[int], sequences: Sequence[Tokens], rewards: list[Rewards], num_shared: int
) -> None:
    """Copy (B, T, 1) logits of the tokens after the shared ones to their places."""
    values = logits[..., 0].float().numpy()
    for row, index in enumerate(members):
        rewards[index][num_shared:] = values[row, : len(sequences[index]) - num_shared]
