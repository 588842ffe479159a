"""Rewards of many token sequences at once, with little computed twice and little padding.

    sequences -> groups that begin alike -> each group's beginning once, then its endings side by side
              -> the others by length, side by side

Candidates of one question share their prompt, often half of all tokens; a prompt that was read lately is not read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from irlops_serving.critic.beginnings import Beginning, RecentBeginnings, Rewards, Tokens, num_common
from irlops_serving.critic.checkpoint import LoadedCritic

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
        common = num_common(sequences[members[0]][:-1], sequences[index][:-1]) if members else 0
        if members and common >= max(MIN_SHARED_TOKENS, MIN_KEPT_SHARE * num_shared):
            num_shared = min(num_shared, common) if num_shared else common
            members.append(index)
            continue
        if members:
            groups.append(Group(tuple(members), num_shared))
        members, num_shared = [index], 0
    return [*groups, Group(tuple(members), num_shared)] if members else groups


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
        self._recent = RecentBeginnings()
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
                beginning = self._beginning(sequences[group.members[0]][: group.num_shared], len(group.members))
                self._score_endings(group.members, beginning, sequences, rewards)
                continue
            for index in group.members:
                known = self._recent.find(sequences[index][:-1], min_tokens=MIN_SHARED_TOKENS)
                if known is None:
                    alone.append(index)
                else:
                    self._score_endings([index], known, sequences, rewards)
        for members in self._batches(alone, sequences):
            padded = _pad([sequences[index] for index in members])
            logits = self._logits(input_ids=padded, use_cache=False)
            _keep(logits, members, sequences, rewards, num_shared=0)
        return rewards

    def _beginning(self, tokens: Tokens, num_members: int) -> Beginning:
        """What the critic makes of tokens that several sequences share, or of nearly all of them where that is known."""
        known = self._recent.find(tokens, min_tokens=MIN_SHARED_TOKENS)
        num_known = len(known.tokens) if known else 0
        if known and (len(tokens) - num_known) * (num_members - 1) <= MIN_SHARED_TOKENS:
            return known
        cache = known.cache_for(1, self._model.config) if known else DynamicCache(config=self._model.config)
        unread = torch.from_numpy(tokens[num_known:]).unsqueeze(0)
        new = self._logits(input_ids=unread, past_key_values=cache, use_cache=True)[0, :, 0].numpy()
        rewards = np.concatenate([known.rewards, new]) if known else new
        beginning = Beginning(tokens, rewards, tuple(_keys_values(layer) for layer in cache.layers))
        self._recent.keep(beginning)
        return beginning

    def _score_endings(
        self, members: Sequence[int], beginning: Beginning, sequences: Sequence[Tokens], rewards: list[Rewards]
    ) -> None:
        num_shared = len(beginning.tokens)
        for batch in self._batches(members, sequences):
            padded = _pad([sequences[index][num_shared:] for index in batch])
            cache = beginning.cache_for(len(batch), self._model.config)
            logits = self._logits(input_ids=padded, past_key_values=cache, use_cache=True)
            _keep(logits, batch, sequences, rewards, num_shared)
        for index in members:
            rewards[index][:num_shared] = beginning.rewards

    def _logits(self, **inputs: Any) -> torch.Tensor:
        """(B, T, 1) float32."""
        return self._head(self._model.base_model(**inputs).last_hidden_state.float())

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


def _keys_values(layer: object) -> tuple[torch.Tensor, torch.Tensor]:
    assert isinstance(layer, DynamicLayer)
    assert layer.keys is not None
    assert layer.values is not None
    return layer.keys, layer.values


def _keep(
    logits: torch.Tensor, members: Sequence[int], sequences: Sequence[Tokens], rewards: list[Rewards], num_shared: int
) -> None:
    """Copy (B, T, 1) logits of the tokens after the shared ones to their places."""
    values = logits[..., 0].float().numpy()
    for row, index in enumerate(members):
        rewards[index][num_shared:] = values[row, : len(sequences[index]) - num_shared]
