"""The critic's update on expert states: the expert's token against the one the policy would have written there.

This is the discriminator's question asked one token at a time: same question, same prefix, two actions. Trace labels
say that something went wrong somewhere; a branch says which token is the expert's, and the policy's own doubts choose
the places. Neither the question's difficulty nor the style of a whole solution can give the answer away.
"""

# Dimension key: S solutions, T solution tokens (right-padded), A branches.
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils.rnn import pad_sequence

from irlops.contracts.jobs import CriticConfig
from irlops_jobs.distributed.trainer import Trainer
from irlops_jobs.models.branches import BranchBatch
from irlops_jobs.models.scorers import PolicyScorer
from irlops_jobs.rollouts.sampling import uniform_draws
from irlops_jobs.session import EncodedDemonstration
from irlops_jobs.updates.microbatches import Group, MicroBatch, Trace, plan


@dataclass(frozen=True)
class BranchDraws:
    """The draws of one demonstration's branches; an idle pass has weight 0."""

    uniform: Tensor
    weight: float


def update_on_expert_states(
    critic: Trainer,
    policy: Trainer,
    demonstrations: Sequence[EncodedDemonstration],
    seeds: Sequence[int],
    *,
    config: CriticConfig,
    micro_batch_tokens: int,
) -> dict[str, float]:
    """One optimizer step of the critic on this process's share of a batch of demonstrations.

    Args:
        seeds: one a demonstration; they fix which alternatives are drawn, whatever process draws them.
    Returns:
        Loss, and the weighted part of branches in which the expert's token has the higher reward.
    """
    groups = [
        Group(
            one.prompt_ids, [Trace(one.solution_ids, BranchDraws(uniform_draws([seed], len(one.solution_ids))[0], 1.0))]
        )
        for one, seed in zip(demonstrations, seeds, strict=True)
    ]
    idle = BranchDraws(torch.zeros(1), 0.0)
    micros = plan(groups, max_tokens=micro_batch_tokens, runtime=critic.runtime, idle=idle)
    batches = [_propose(policy, micro, config) for micro in micros]
    (total_weight,) = critic.runtime.total(sum(float(batch.branch_weight_SA.sum()) for batch in batches))
    num_right = torch.zeros((), dtype=torch.float64)

    def loss_of(module: nn.Module, batch: BranchBatch) -> Tensor:
        reward_ST, branch_SA = module(batch)
        own_SA = reward_ST.gather(1, batch.branch_position_SA)
        weight_SA = batch.branch_weight_SA / max(total_weight, 1e-9)
        num_right.add_(float((weight_SA * (own_SA > branch_SA)).sum()))
        return branch_loss(own_SA, branch_SA, weight_SA)

    metrics = critic.step(batches, loss_of)
    (right,) = critic.runtime.total(float(num_right))
    return {"critic/branch_loss": metrics["loss"], "critic/branch_accuracy": right}


def branch_loss(own_SA: Tensor, branch_SA: Tensor, weight_SA: Tensor) -> Tensor:
    """Binary cross-entropy with the expert's token as 1 and the policy's alternative as 0, weighted by branch.

    Args:
        own_SA: (S, A) float32 rewards of the experts' tokens; carries gradients.
        branch_SA: (S, A) float32 rewards of the alternatives; carries gradients.
        weight_SA: (S, A) float32; adds up to 1 over all processes.
    Returns:
        () float32, nats per comparison.
    """
    return 0.5 * (weight_SA * (softplus(-own_SA) + softplus(branch_SA))).sum()


def _propose(policy: Trainer, micro: MicroBatch[BranchDraws], config: CriticConfig) -> BranchBatch:
    scorer: PolicyScorer = policy.scorer  # pyright: ignore[reportAssignmentType]
    uniform_ST = pad_sequence([draws.uniform for draws in micro.payloads], batch_first=True)
    with torch.no_grad():
        batch = scorer.propose(
            micro.batch,
            uniform_ST.to(policy.runtime.device),
            num_branches=config.branches_per_expert,
            floor=config.branch_floor,
        )
    weight_S = torch.tensor([draws.weight for draws in micro.payloads], device=policy.runtime.device)
    batch.branch_weight_SA.mul_(weight_S[:, None])
    return batch
