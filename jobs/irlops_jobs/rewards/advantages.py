"""Advantages of the samples of one question.

Everything here works on one question's group at a time and on plain float tensors; nothing carries gradients.
"""

# Dimension key: G samples of one question, T tokens (right-padded).
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from irlops.contracts.jobs import PolicyConfig, RewardConfig


def aggregate_rewards(reward_GT: Tensor, mask_GT: Tensor, *, aggregation: str, gamma: float) -> Tensor:
    """One number per trace, by the rules of ``irlops.selection.aggregate`` (a test holds them equal).

    Args:
        reward_GT: (G, T) float32 token rewards.
        mask_GT: (G, T) bool, True on solution tokens; every row has at least one.
        aggregation: mean | min | product | last | discounted. ``product`` is the log-odds that all tokens are right,
            ``discounted`` weighs tokens by gamma to the power of their distance from the end, normalised.
    Returns:
        (G,) float32.
    """
    length_G = mask_GT.sum(1)
    match aggregation:
        case "mean":
            return (reward_GT * mask_GT).sum(1) / length_G
        case "min":
            return reward_GT.masked_fill(~mask_GT, torch.inf).min(1).values
        case "product":
            surprise_G = (softplus(-reward_GT.double()) * mask_GT).sum(1).clamp(min=1e-300)  # -log p
            return (-surprise_G - torch.log(-torch.expm1(-surprise_G))).float()
        case "last":
            return reward_GT.gather(1, (length_G - 1)[:, None]).squeeze(1)
        case "discounted":
            distance_GT = (length_G[:, None] - 1 - torch.arange(mask_GT.shape[1])).clamp(min=0)
            weight_GT = (gamma**distance_GT) * mask_GT
            return (reward_GT * weight_GT).sum(1) / weight_GT.sum(1)
    raise AssertionError(aggregation)


def discounted_suffix_sums(value_GT: Tensor, *, gamma: float) -> Tensor:
    """A_t = sum over k >= t of gamma^(k-t) v_k, by a reverse scan.

    Dividing by gamma^t and taking a cumulative sum overflows float32 near 824 tokens at gamma 0.9; this doesn't.
    """
    result_GT = torch.empty_like(value_GT)
    running_G = torch.zeros_like(value_GT[:, 0])
    for t in range(value_GT.shape[1] - 1, -1, -1):
        running_G = value_GT[:, t] + gamma * running_G
        result_GT[:, t] = running_G
    return result_GT


def clip_rewards(reward_GT: Tensor, limit: float | None) -> Tensor:
    return reward_GT if limit is None else reward_GT.clamp(-limit, limit)


def group_advantages(
    reward_GT: Tensor, mask_GT: Tensor, *, policy: PolicyConfig, reward: RewardConfig, used_G: Tensor
) -> Tensor | None:
    """Token advantages of one question's samples.

    Args:
        reward_GT: (G, T) float32 clipped token rewards.
        mask_GT: (G, T) bool.
        used_G: (G,) bool, samples that take part (truncated ones may not); the rest get advantage 0.
    Returns:
        (G, T) float32, or None when the group teaches nothing: fewer than two samples take part, or their trace
        rewards (``discounted_dense``: their last tokens') spread less than ``policy.min_group_std``: dividing by such
        a spread would blow noise up.
    """
    trace_G = aggregate_rewards(reward_GT, mask_GT, aggregation=reward.aggregation, gamma=reward.gamma)
    last_G = aggregate_rewards(reward_GT, mask_GT, aggregation="last", gamma=reward.gamma)
    baseline_G = trace_G[used_G]
    has_dense = _spreads(last_G[used_G], policy)
    if not _spreads(baseline_G, policy) or (policy.advantage == "discounted_dense" and not has_dense):
        return None
    match policy.advantage:
        case "grpo":
            advantage_GT = ((trace_G - baseline_G.mean()) / baseline_G.std())[:, None] * mask_GT
        case "dr_grpo":
            advantage_GT = (trace_G - baseline_G.mean())[:, None] * mask_GT
        case "rloo":
            others_G = (baseline_G.sum() - trace_G) / (len(baseline_G) - 1)
            advantage_GT = (trace_G - others_G)[:, None] * mask_GT
        case "centred_dense":
            advantage_GT = centred_dense_advantages(reward_GT, mask_GT, gamma=reward.gamma, used_G=used_G)
        case _:
            advantage_GT = dense_advantages(reward_GT, mask_GT, gamma=reward.gamma, used_G=used_G)
    if policy.dense_weight > 0 and has_dense:
        dense_GT = dense_advantages(reward_GT, mask_GT, gamma=reward.gamma, used_G=used_G)
        advantage_GT = advantage_GT + policy.dense_weight * dense_GT
    return advantage_GT * used_G[:, None]


def _spreads(value_G: Tensor, policy: PolicyConfig) -> bool:
    return len(value_G) > 1 and float(value_G.std()) >= policy.min_group_std  # NaN has no spread either


def dense_advantages(reward_GT: Tensor, mask_GT: Tensor, *, gamma: float, used_G: Tensor) -> Tensor:
    """Discounted suffix sums of token rewards, standardised by the group's last-token rewards (the paper's v1 form)."""
    last_G = aggregate_rewards(reward_GT, mask_GT, aggregation="last", gamma=gamma)[used_G]
    standard_GT = (reward_GT - last_G.mean()) / (last_G.std() + 1e-4) * mask_GT
    return discounted_suffix_sums(standard_GT, gamma=gamma) * mask_GT


def centred_dense_advantages(reward_GT: Tensor, mask_GT: Tensor, *, gamma: float, used_G: Tensor) -> Tensor:
    """Discounted suffix sums of token rewards less the mean token reward of the group.

    The critic's logit compares expert and policy at one state: at its optimum it is log pi_expert - log pi, an advantage
    already (Fu et al. 2018, arXiv 1710.11248, section 5). ``gamma`` 0 takes it at its word: a wrong step is blamed on
    the token that made it and on no other.
    """
    counted_GT = mask_GT & used_G[:, None]
    mean = reward_GT[counted_GT].mean()
    return discounted_suffix_sums((reward_GT - mean) * mask_GT, gamma=gamma) * mask_GT
