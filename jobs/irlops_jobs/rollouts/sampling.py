"""Turning logits into tokens so that a sample depends on its own seed only, not on what shares its batch."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from irlops.contracts.jobs import RolloutConfig


def sampling_dtype(config: RolloutConfig, model_dtype: torch.dtype) -> torch.dtype:
    """Precision of the weights that sample."""
    return torch.bfloat16 if config.dtype == "bfloat16" else model_dtype


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from what identifies a draw (run seed, round, question, sample); the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def uniform_draws(seeds: list[int], num_draws: int) -> Tensor:
    """(len(seeds), num_draws) float32 in [0, 1): each row from a generator of its own."""
    return torch.stack([torch.rand(num_draws, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def choose_tokens(logits_NV: Tensor, uniform_N: Tensor, *, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Sample by inverting the cumulative distribution.

    Args:
        logits_NV: (N, V) float32, before temperature.
        uniform_N: (N,) float32 in [0, 1).
        temperature: above 0; below 0.01 the likeliest token is taken.
        top_p: smallest set of likeliest tokens that holds this much probability.
    Returns:
        (N,) int64 tokens, and (N,) float32 their log-probabilities in nats at ``temperature`` over the whole
        vocabulary, which is what the policy update recomputes.
    """
    logprobs_NV = torch.log_softmax(logits_NV / max(temperature, 1e-5), dim=-1)
    if temperature < 0.01:
        token_N = logits_NV.argmax(-1)
    elif top_p >= 1:
        token_N = _invert(logprobs_NV.exp(), uniform_N)
    else:
        sorted_NV, order_NV = logprobs_NV.exp().sort(dim=-1, descending=True)
        keep_NV = sorted_NV.cumsum(-1) - sorted_NV < top_p
        token_N = order_NV.gather(-1, _invert(sorted_NV * keep_NV, uniform_N)[:, None]).squeeze(-1)
    return token_N, logprobs_NV.gather(-1, token_N[:, None]).squeeze(-1)


def draw_other(probability_NV: Tensor, own_N: Tensor, uniform_N: Tensor) -> Tensor:
    """Another token than ``own_N`` at each state, drawn from the distribution with that one excluded.

    Args:
        probability_NV: (N, V) float32.
        own_N: (N,) int64.
        uniform_N: (N,) float32 in [0, 1).
    Returns:
        (N,) int64.
    """
    return _invert(probability_NV.scatter(-1, own_N[:, None], 0.0), uniform_N)


def _invert(weights_NV: Tensor, uniform_N: Tensor) -> Tensor:
    cumulative_NV = weights_NV.cumsum(-1)
    threshold_N1 = (uniform_N * cumulative_NV[:, -1])[:, None]
    return torch.searchsorted(cumulative_NV, threshold_N1, right=True).squeeze(-1).clamp_(max=weights_NV.shape[-1] - 1)
