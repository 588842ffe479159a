"""Draws the next token of every sample, each from a generator of its own.

logits (B, V) -> temperature -> top-k, top-p, min-p -> one uniform number per sample -> token
"""

# Dimension key: B samples, V vocabulary, K likeliest tokens.

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from irlops_serving.policy.requests import GREEDY_BELOW, Sampling


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities at one position, in nats, before temperature and truncation (vLLM's ``raw_logprobs``).

    Example: ``TokenLogprobs(entries=((48, -0.2), (17, -2.1)))``: token 48 was drawn.
    """

    entries: tuple[tuple[int, float], ...]
    """(token id, log-probability): the drawn token first, then the likeliest others."""


def generators_of(sampling: Sampling) -> list[torch.Generator]:
    """One random generator for each sample; sample i's is that of a lone sample with seed + i."""
    if sampling.seed is None:
        return [torch.Generator().manual_seed(secrets.randbits(63)) for _ in range(sampling.num_samples)]
    return [torch.Generator().manual_seed((sampling.seed + index) % 2**64) for index in range(sampling.num_samples)]


def draw_tokens(logits_BV: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> list[int]:
    """The next token of every sample.

    Args:
        logits_BV: (B, V) float32.
        sampling: the request's settings.
        generators: B of them; each gives one number.
    """
    if sampling.temperature < GREEDY_BELOW:
        return logits_BV.argmax(-1).tolist()
    probabilities_BV = torch.softmax(logits_BV / sampling.temperature, dim=-1)
    for truncate in (_keep_top_k, _keep_top_p, _keep_min_p):
        probabilities_BV = truncate(probabilities_BV, sampling)
    # In float64, and by inverting the cumulative distribution: one number a sample, whatever the vocabulary.
    cumulative_BV = probabilities_BV.double().cumsum(-1)
    uniform_B1 = torch.cat([torch.rand(1, 1, generator=generator, dtype=torch.float64) for generator in generators])
    drawn_B1 = torch.searchsorted(cumulative_BV, uniform_B1 * cumulative_BV[:, -1:], right=True)
    return drawn_B1.clamp_(max=logits_BV.shape[-1] - 1)[:, 0].tolist()


def _keep_top_k(probabilities_BV: Tensor, sampling: Sampling) -> Tensor:
    if not 0 < sampling.top_k < probabilities_BV.shape[-1]:
        return probabilities_BV
    threshold_B1 = probabilities_BV.topk(sampling.top_k, dim=-1).values[:, -1:]
    return probabilities_BV.where(probabilities_BV >= threshold_B1, 0.0)


def _keep_top_p(probabilities_BV: Tensor, sampling: Sampling) -> Tensor:
    """The likeliest tokens that together reach ``top_p`` of what is left; at least one."""
    if sampling.top_p >= 1:
        return probabilities_BV
    sorted_BV, order_BV = (probabilities_BV / probabilities_BV.sum(-1, keepdim=True)).sort(-1, descending=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    kept_BV = torch.zeros_like(probabilities_BV, dtype=torch.bool).scatter(-1, order_BV, before_BV < sampling.top_p)
    return probabilities_BV.where(kept_BV, 0.0)


def _keep_min_p(probabilities_BV: Tensor, sampling: Sampling) -> Tensor:
    if sampling.min_p <= 0:
        return probabilities_BV
    threshold_B1 = sampling.min_p * probabilities_BV.amax(-1, keepdim=True)
    return probabilities_BV.where(probabilities_BV >= threshold_B1, 0.0)


def read_logprobs(logits_BV: Tensor, drawn: Sequence[int], num_top: int) -> list[TokenLogprobs]:
    """Log-probability of each drawn token and of the ``num_top`` likeliest ones at its position."""
    logprobs_BV = torch.log_softmax(logits_BV, dim=-1)
    drawn_logprobs = logprobs_BV.gather(-1, torch.tensor(drawn).unsqueeze(-1))[:, 0].tolist()
    top = logprobs_BV.topk(num_top, dim=-1)
    rows = zip(drawn, drawn_logprobs, top.indices.tolist(), top.values.tolist(), strict=True)
    return [
        TokenLogprobs(
            ((token, logprob), *(entry for entry in zip(top_ids, top_logprobs, strict=True) if entry[0] != token))
        )
        for token, logprob, top_ids, top_logprobs in rows
    ]
