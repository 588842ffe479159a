"""The policy's update: clipped policy gradient on critic (or outcome) rewards, held near the warm start by KL."""

# Dimension key: S solutions, T solution tokens (right-padded).
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from irlops.contracts.jobs import PolicyConfig
from irlops_jobs.distributed.runtime import Runtime
from irlops_jobs.distributed.trainer import Trainer
from irlops_jobs.updates.microbatches import Group, MicroBatch, plan
from irlops_jobs.updates.own_states import JudgedBranches, two_action_loss


@dataclass(frozen=True)
class PolicyTarget:
    """What the policy's loss needs of one sample; all per solution token, as CPU tensors of its length.

    Example:
        Two tokens, trainer and engine agreeing: ``PolicyTarget(advantage=tensor([1., 1.]), logprob_engine=tensor([-.1, -.2]),
        logprob_old=None, logprob_reference=None, weight=tensor([.5, .5]))``
    """

    advantage: Tensor
    logprob_engine: Tensor
    """As the rollout engine computed it, nats."""
    logprob_old: Tensor | None
    """Under the policy before this round's first step, by the trainer; None for the first step, where it is the same."""
    logprob_reference: Tensor | None
    """Under the warm start; None when no KL is asked for."""
    weight: Tensor
    """Of each token in the global loss; holds the denominators of all processes."""

    def with_reference(self, logprob_reference: Tensor) -> PolicyTarget:
        """The same target, held to a reference."""
        return replace(self, logprob_reference=logprob_reference)

    @classmethod
    def idle(cls) -> PolicyTarget:
        """For passes that only keep processes in step."""
        zero = torch.zeros(1)
        return cls(zero, zero, None, None, zero)


class Scoring(Protocol):
    """Anything that gives log-probabilities of a batch without gradients: a trainer or a frozen reference."""

    runtime: Runtime

    def forward(self, *args: Any) -> Any: ...


def token_weights(num_tokens: int, *, num_samples: float, config: PolicyConfig, max_new_tokens: int) -> Tensor:
    """Weights of a sample's tokens: their mean for grpo, a constant denominator otherwise.

    Dividing by a sample's own length favours long wrong answers (Dr. GRPO, arXiv 2503.20783), so the other
    advantages divide by the longest possible one.
    """
    per_token = num_tokens if config.advantage == "grpo" else max_new_tokens
    return torch.full((num_tokens,), 1.0 / (per_token * max(num_samples, 1.0)))


def update_policy(
    policy: Trainer,
    groups: Sequence[Group[PolicyTarget]],
    *,
    config: PolicyConfig,
    micro_batch_tokens: int,
    judged: Sequence[JudgedBranches] = (),
) -> dict[str, float]:
    """``config.updates_per_round`` optimizer steps on one round's samples.

    Args:
        judged: branches off the same samples, in passes planned alike; they join each step, weighted by
            ``config.branch_weight``. With ``expert_in_group`` the samples are others, and the passes stay apart.
    Returns:
        Loss, gradient norm, KL to the warm start (nats per token), entropy (nats per token), the clipped part of the
        tokens, and the mean and largest gap between the trainer's and the engine's log-probabilities.
    """
    metrics: dict[str, float] = {}
    micros = plan(
        groups,
        max_tokens=micro_batch_tokens,
        runtime=policy.runtime,
        idle=PolicyTarget.idle(),
        num_branches=config.branches_per_sample if judged else 0,
    )
    if config.updates_per_round > 1:
        micros = [_with_old_logprobs(policy, micro) for micro in micros]
    passes = pair_passes(micros, judged, config)
    for _ in range(config.updates_per_round):
        tally = Tally()

        def loss_of(module: nn.Module, one: Pass, tally: Tally = tally) -> Tensor:
            return loss_of_pass(module, one, config, tally)

        metrics = policy.step(passes, loss_of)
        metrics = {f"policy/{name}": value for name, value in metrics.items()} | tally.totals(policy)
    return metrics


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass: over samples, over branches off them, or over both at once."""

    micro: MicroBatch[PolicyTarget] | None
    judged: JudgedBranches | None


def pair_passes(
    micros: Sequence[MicroBatch[PolicyTarget]], judged: Sequence[JudgedBranches], config: PolicyConfig
) -> list[Pass]:
    """Branches ride along with their samples, which takes half of the passes; not with ``expert_in_group``, where the
    groups have one member more than the branches know of."""
    if judged and not config.expert_in_group:
        return [Pass(micro, branches) for micro, branches in zip(micros, judged, strict=True)]
    return [*(Pass(micro, None) for micro in micros), *(Pass(None, branches) for branches in judged)]


def loss_of_pass(module: nn.Module, one: Pass, config: PolicyConfig, tally: Tally) -> Tensor:
    """() float32, what one pass adds to the step's loss."""
    if one.judged is None:
        assert one.micro is not None
        logprob_ST, entropy_ST = module(one.micro.batch)
        return policy_loss(logprob_ST, entropy_ST, one.micro, config=config, tally=tally)
    logprob_ST, entropy_ST, other_SA = module(one.judged.batch)
    own_SA = logprob_ST.gather(1, one.judged.batch.branch_position_SA)
    loss = config.branch_weight * two_action_loss(own_SA, other_SA, one.judged)
    if one.micro is not None:
        loss = loss + policy_loss(logprob_ST, entropy_ST, one.micro, config=config, tally=tally)
    return loss


def policy_loss(
    logprob_ST: Tensor, entropy_ST: Tensor, micro: MicroBatch[PolicyTarget], *, config: PolicyConfig, tally: Tally
) -> Tensor:
    """Clipped surrogate plus KL, weighted by token.

    Args:
        logprob_ST: (S, T) float32 nats under the policy being trained; carries gradients.
        entropy_ST: (S, T) float32 nats, for the record only.
    Returns:
        () float32.
    """
    mask_ST = micro.batch.solution_mask_ST
    advantage_ST, weight_ST, engine_ST = (
        _stack(mask_ST, [getattr(target, name) for target in micro.payloads])
        for name in ("advantage", "weight", "logprob_engine")
    )
    old_ST = _stack_or(mask_ST, [target.logprob_old for target in micro.payloads], logprob_ST.detach())
    ratio_ST = torch.exp(logprob_ST - old_ST)
    clipped_ST = ratio_ST.clamp(1 - config.clip_low, 1 + config.clip_high)
    surrogate_ST = torch.minimum(ratio_ST * advantage_ST, clipped_ST * advantage_ST)
    surrogate_ST = surrogate_ST * importance_weights(old_ST, engine_ST, config)
    reference_ST = _stack_or(mask_ST, [target.logprob_reference for target in micro.payloads], logprob_ST.detach())
    kl_ST = kl_estimate(logprob_ST, reference_ST)
    tally.add(
        mask_ST & (weight_ST > 0),
        kl=kl_ST,
        entropy=entropy_ST,
        clipped=(ratio_ST != clipped_ST),
        gap=(old_ST - engine_ST).abs(),
    )
    return (weight_ST * (config.kl_coefficient * kl_ST - surrogate_ST)).sum()


def kl_estimate(logprob_ST: Tensor, reference_ST: Tensor) -> Tensor:
    """Schulman's k3: exp(d) - d - 1 with d = reference - policy; unbiased for KL(policy || reference), never negative."""
    difference_ST = reference_ST - logprob_ST
    return torch.exp(difference_ST.clamp(max=20.0)) - difference_ST - 1


def importance_weights(old_ST: Tensor, engine_ST: Tensor, config: PolicyConfig) -> Tensor:
    """pi_trainer / pi_engine of the sampled tokens: truncated, or tokens outside [1/limit, limit] masked out."""
    if config.importance_correction == "none":
        return torch.ones_like(old_ST)
    ratio_ST = torch.exp((old_ST - engine_ST).clamp(-20.0, 20.0)).detach()
    if config.importance_correction == "truncate":
        return ratio_ST.clamp(max=config.importance_limit)
    inside_ST = (ratio_ST <= config.importance_limit) & (ratio_ST >= 1 / config.importance_limit)
    return ratio_ST * inside_ST


def trace_logprobs(policy: Scoring, groups: Sequence[Group[int]], *, micro_batch_tokens: int) -> dict[int, Tensor]:
    """Log-probabilities (length,) of every trace's tokens, by payload, as ``score_traces`` does for rewards."""
    result: dict[int, Tensor] = {}
    for micro in plan(groups, max_tokens=micro_batch_tokens, runtime=policy.runtime, idle=-1):
        logprob_ST, _ = policy.forward(micro.batch)
        for key, row, mask in zip(micro.payloads, logprob_ST, micro.batch.solution_mask_ST, strict=True):
            if key >= 0:
                result[key] = row[mask].cpu()
    return result


class Tally:
    """Token sums of what a step wants to report."""

    names = ("kl", "entropy", "clipped", "gap")

    def __init__(self) -> None:
        self._sums: dict[str, float] = dict.fromkeys((*self.names, "tokens"), 0.0)
        self._largest_gap = 0.0

    def add(self, mask_ST: Tensor, **values: Tensor) -> None:
        for name, value_ST in values.items():
            self._sums[name] += float(value_ST.detach()[mask_ST].float().sum())
        self._sums["tokens"] += float(mask_ST.sum())
        if mask_ST.any():
            self._largest_gap = max(self._largest_gap, float(values["gap"][mask_ST].max()))

    def totals(self, policy: Trainer) -> dict[str, float]:
        *sums, tokens = policy.runtime.total(*(self._sums[name] for name in (*self.names, "tokens")))
        means = {f"policy/{name}": value / max(tokens, 1.0) for name, value in zip(self.names, sums, strict=True)}
        return means | {"policy/largest_gap": policy.runtime.largest(self._largest_gap)}


def _stack(mask_ST: Tensor, rows: Sequence[Tensor]) -> Tensor:
    flat = torch.cat([row.float() for row in rows]).to(mask_ST.device)
    return torch.zeros(mask_ST.shape, device=mask_ST.device).masked_scatter(mask_ST, flat)


def _stack_or(mask_ST: Tensor, rows: Sequence[Tensor | None], default_ST: Tensor) -> Tensor:
    present = [row for row in rows if row is not None]
    return _stack(mask_ST, present) if len(present) == len(rows) else default_ST


def _with_old_logprobs(policy: Trainer, micro: MicroBatch[PolicyTarget]) -> MicroBatch[PolicyTarget]:
    logprob_ST, _ = policy.forward(micro.batch)
    payloads = [
        PolicyTarget(target.advantage, target.logprob_engine, row[mask].cpu(), target.logprob_reference, target.weight)
        for target, row, mask in zip(micro.payloads, logprob_ST, micro.batch.solution_mask_ST, strict=True)
    ]
    return MicroBatch(micro.batch, payloads, micro.groups)
