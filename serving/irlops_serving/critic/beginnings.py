"""Keys and values of beginnings that were read lately: the next candidates of the same question go on from there.

A gateway asks several times about one question, as its candidates end, and each time the prompt would be read again.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache

Tokens = NDArray[np.int64]
Rewards = NDArray[np.float32]

MAX_KEPT = 16
"""Questions that are worked on at the same time; each search looks at all of them."""
MAX_KEPT_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Beginning:
    """Tokens with what the critic makes of them.

    Made by ``TokenScorer``; kept by ``RecentBeginnings``.
    Example: 41 tokens, 41 rewards, and for each layer keys and values of shape (1, heads, 41, width).
    """

    tokens: Tokens
    rewards: Rewards
    keys_values: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    @property
    def num_bytes(self) -> int:
        return sum(part.nbytes for layer in self.keys_values for part in layer)

    def first(self, num_tokens: int) -> Beginning:
        """The same, shorter; shares the memory."""
        if num_tokens == len(self.tokens):
            return self
        shorter = tuple((keys[:, :, :num_tokens], values[:, :, :num_tokens]) for keys, values in self.keys_values)
        return Beginning(self.tokens[:num_tokens], self.rewards[:num_tokens], shorter)

    def cache_for(self, num_sequences: int, config: PreTrainedConfig) -> DynamicCache:
        """A cache in which this many sequences begin so; what is added to it changes nothing here."""
        cache = DynamicCache(config=config)
        for layer, (keys, values) in enumerate(self.keys_values):
            cache.update(keys.expand(num_sequences, -1, -1, -1), values.expand(num_sequences, -1, -1, -1), layer)
        return cache


class RecentBeginnings:
    """The beginnings used last, within a bound of number and memory. Not for two threads at a time."""

    def __init__(self, max_bytes: int = MAX_KEPT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._kept: OrderedDict[bytes, Beginning] = OrderedDict()

    def find(self, tokens: Tokens, *, min_tokens: int) -> Beginning | None:
        """The longest beginning of ``tokens`` that is known, if it has at least ``min_tokens``; at most all of them.

        Args:
            tokens: (T,) int64.
        """
        best, best_key = None, b""
        for key, one in reversed(self._kept.items()):
            common = num_common(one.tokens, tokens)
            if common >= max(min_tokens, 1 + len(best.tokens) if best else 0):
                best, best_key = one.first(common), key
        if best is not None:
            self._kept.move_to_end(best_key)
        return best

    def keep(self, one: Beginning) -> None:
        """Remember it, and forget those that were not used for longest."""
        key = one.tokens.tobytes()
        if key in self._kept or one.num_bytes > self._max_bytes:
            return
        self._kept[key] = one
        self._num_bytes += one.num_bytes
        while len(self._kept) > MAX_KEPT or self._num_bytes > self._max_bytes:
            _, forgotten = self._kept.popitem(last=False)
            self._num_bytes -= forgotten.num_bytes


def num_common(first: Tokens, second: Tokens) -> int:
    """Tokens that both begin with."""
    length = min(len(first), len(second))
    differing = np.flatnonzero(first[:length] != second[:length])
    return int(differing[0]) if len(differing) else length
