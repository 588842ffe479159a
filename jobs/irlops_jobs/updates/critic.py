"""The critic's update: tell expert tokens from the policy's and from corrupted ones."""

# Dimension key: S solutions, T solution tokens (right-padded).
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from irlops.contracts.jobs import CriticConfig, RewardConfig
from irlops_jobs.distributed.trainer import Trainer
from irlops_jobs.updates.critic_labels import CriticTarget
from irlops_jobs.updates.microbatches import Group, MicroBatch, plan
from irlops_jobs.updates.policy import Scoring


def update_critic(
    critic: Trainer,
    policy: Trainer,
    groups: Sequence[Group[CriticTarget]],
    *,
    config: CriticConfig,
    reward: RewardConfig,
    micro_batch_tokens: int,
) -> dict[str, float]:
    """One optimizer step of the critic on all processes' groups.

    Returns:
        Loss, gradient norm, and the global mean reward of expert-like and of other tokens.
    """
    batches = plan(groups, max_tokens=micro_batch_tokens, runtime=critic.runtime, idle=CriticTarget.idle())
    sums = torch.zeros(4, dtype=torch.float64)

    def loss_of(module: nn.Module, micro: MicroBatch[CriticTarget]) -> Tensor:
        reward_ST, shaping_ST = module(micro.batch)
        logits_expert_is_high_ST = reward_ST
        if reward.form == "airl":
            logprob_ST, _ = policy.forward(micro.batch)
            logits_expert_is_high_ST = airl_logits(reward_ST, shaping_ST, logprob_ST, micro.batch.solution_mask_ST)
        sums.add_(_side_sums(reward_ST.detach(), micro))
        if config.loss == "pairwise":
            return pairwise_loss(logits_expert_is_high_ST, micro)
        loss = some_token_loss if config.negatives == "some_token" else token_loss
        return loss(logits_expert_is_high_ST, micro.payloads, label_smoothing=config.label_smoothing)

    metrics = critic.step(batches, loss_of)
    positive, num_positive, negative, num_negative = critic.runtime.total(*sums.tolist())
    return {
        "critic/loss": metrics["loss"],
        "critic/grad_norm": metrics["grad_norm"],
        "critic/skipped": metrics["skipped"],
        "critic/reward_expert_like": positive / max(num_positive, 1.0),
        "critic/reward_other": negative / max(num_negative, 1.0),
    }


def token_loss(logits_expert_is_high_ST: Tensor, targets: Sequence[CriticTarget], *, label_smoothing: float) -> Tensor:
    """Weighted binary cross-entropy over the chosen tokens of all traces.

    Args:
        logits_expert_is_high_ST: (S, T) float32; carries gradients.
        targets: one for each of the S traces; their weights hold the global denominators.
        label_smoothing: targets become 1 - x and x.
    Returns:
        () float32, nats.
    """
    weight_ST, target_ST = torch.zeros_like(logits_expert_is_high_ST), torch.zeros_like(logits_expert_is_high_ST)
    for row, target in enumerate(targets):
        if target.positions:
            weight_ST[row, list(target.positions)] = target.weight / len(target.positions)
        target_ST[row] = 1 - label_smoothing if target.is_expert_like else label_smoothing
    return binary_cross_entropy_with_logits(logits_expert_is_high_ST, target_ST, weight_ST, reduction="sum")


def some_token_loss(
    logits_expert_is_high_ST: Tensor, targets: Sequence[CriticTarget], *, label_smoothing: float
) -> Tensor:
    """Cross-entropy of whole traces when a trace is expert-like only if each of its tokens is.

    P(trace) is the product of its tokens' probabilities (a noisy AND, as in multiple-instance learning). A positive
    trace lifts every token; a negative one lowers some token, mostly the one already doubted, and leaves its right
    steps alone. Labelling every token of a wrong solution as wrong teaches the critic to punish right steps.

    Args:
        logits_expert_is_high_ST: (S, T) float32; carries gradients.
        targets: one for each of the S traces; their weights hold the global denominators.
        label_smoothing: targets become 1 - x and x.
    Returns:
        () float32, nats.
    """
    read_ST = _positions_mask(targets, logits_expert_is_high_ST)
    like = logits_expert_is_high_ST
    weight_S = like.new_tensor([target.weight if target.positions else 0.0 for target in targets])
    positive_S = like.new_tensor([1 - label_smoothing if one.is_expert_like else label_smoothing for one in targets])
    log_all_S = torch.where(read_ST, logsigmoid(logits_expert_is_high_ST), 0.0).sum(1).clamp(max=-1e-6)
    log_not_all_S = torch.log(-torch.expm1(log_all_S))
    return -(weight_S * (positive_S * log_all_S + (1 - positive_S) * log_not_all_S)).sum()


def _positions_mask(targets: Sequence[CriticTarget], like_ST: Tensor) -> Tensor:
    """(S, T) bool, True where the loss reads the critic."""
    rows = [row for row, target in enumerate(targets) for _ in target.positions]
    columns = [position for target in targets for position in target.positions]
    mask_ST = torch.zeros(like_ST.shape, dtype=torch.bool)
    mask_ST[rows, columns] = True
    return mask_ST.to(like_ST.device)


def pairwise_loss(logits_expert_is_high_ST: Tensor, micro: MicroBatch[CriticTarget]) -> Tensor:
    """Bradley-Terry within each question: every expert-like trace should score above every other one.

    A trace's score is the mean over its positions. Comparing within a question takes the question's own difficulty
    out of the loss (GAD, arXiv 2511.10643).

    Args:
        logits_expert_is_high_ST: (S, T) float32; carries gradients.
    Returns:
        () float32, nats: the mean over a question's pairs, times the question's weight, summed over questions.
    """
    score_S = torch.stack(
        [
            row[list(t.positions)].mean() if t.positions else row.sum() * 0
            for row, t in zip(logits_expert_is_high_ST, micro.payloads, strict=True)
        ]
    )
    total = score_S.sum() * 0.0
    for group in sorted(set(micro.groups)):
        rows = [row for row, owner in enumerate(micro.groups) if owner == group and micro.payloads[row].positions]
        high = [row for row in rows if micro.payloads[row].is_expert_like]
        low = [row for row in rows if not micro.payloads[row].is_expert_like]
        if high and low:
            margins = score_S[high][:, None] - score_S[low][None, :]
            total = total - micro.payloads[high[0]].weight * logsigmoid(margins).mean()
    return total


def airl_logits(reward_ST: Tensor, shaping_ST: Tensor, logprob_ST: Tensor, mask_ST: Tensor) -> Tensor:
    """AIRL's discriminator logit f - log pi with f = g + h(next) - h(now) (Fu et al. 2018, arXiv 1710.11248, eq. 4).

    Args:
        reward_ST: (S, T) float32, g; carries gradients.
        shaping_ST: (S, T) float32, potential differences; carries gradients.
        logprob_ST: (S, T) float32, nats, under the current policy, detached: the policy is still here.
        mask_ST: (S, T) bool.
    Returns:
        (S, T) float32; above 0 reads "expert". 0 where masked.
    """
    return torch.where(mask_ST, reward_ST + shaping_ST - logprob_ST.detach(), 0.0)


def score_traces(critic: Scoring, groups: Sequence[Group[int]], *, micro_batch_tokens: int) -> dict[int, Tensor]:
    """Token rewards (length,) float32 on the CPU of every trace, by its payload (any key; -1 marks idle passes)."""
    rewards: dict[int, Tensor] = {}
    for micro in plan(groups, max_tokens=micro_batch_tokens, runtime=critic.runtime, idle=-1):
        reward_ST, _ = critic.forward(micro.batch)
        for key, row, mask in zip(micro.payloads, reward_ST, micro.batch.solution_mask_ST, strict=True):
            if key >= 0:
                rewards[key] = row[mask].cpu()
    return rewards


def _side_sums(reward_ST: Tensor, micro: MicroBatch[CriticTarget]) -> Tensor:
    read_ST = _positions_mask(micro.payloads, reward_ST)
    counted_S = torch.tensor([target.weight > 0 for target in micro.payloads])
    expert_like_S = torch.tensor([target.is_expert_like for target in micro.payloads])
    reward_S, num_S = (reward_ST.double() * read_ST).sum(1).cpu(), read_ST.sum(1).double().cpu()
    sides = [counted_S & expert_like_S, counted_S & ~expert_like_S]
    return torch.stack([part_S[side_S].sum() for side_S in sides for part_S in (reward_S, num_S)])
