"""A key-value cache that appends in place.

transformers' own dynamic cache copies all keys and values for every new token; its static one computes attention over
the longest answer that could come, and can't drop finished samples.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer: views of a buffer that doubles when it is full."""

    _key_room: Tensor | None = None
    _value_room: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG002 - transformers' signature
        """Append (B, heads, T, width) keys and values; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self._has_room(end):
            self._key_room = _with_room(self.keys, key_states, start, end)
            self._value_room = _with_room(self.values, value_states, start, end)
        assert self._key_room is not None
        assert self._value_room is not None
        self._key_room[:, :, start:end] = key_states
        self._value_room[:, :, start:end] = value_states
        self.keys, self.values = self._key_room[:, :, :end], self._value_room[:, :, :end]
        return self.keys, self.values

    def _has_room(self, end: int) -> bool:
        # Repeating and selecting rows (inherited) put fresh tensors in place of the views.
        is_view = (
            self._key_room is not None and self.keys is not None and self.keys.data_ptr() == self._key_room.data_ptr()
        )
        return is_view and self._key_room is not None and end <= self._key_room.shape[-2]


def _with_room(old: Tensor | None, new: Tensor, start: int, end: int) -> Tensor:
    batch, heads, _, width = new.shape
    room = torch.empty((batch, heads, max(2 * end, 64), width), dtype=new.dtype, device=new.device)
    if start and old is not None:
        room[:, :, :start] = old
    return room


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache for ``config``; layers with sliding windows keep transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
