"""The policy's update on the states of its own samples: the token it wrote against another one it might have written.

A trace's reward blames or praises all of its tokens. The critic can be asked more: what of the alternative, at this very
state? The policy's expected reward over the two is known then, not sampled, and its gradient is
p (1 - p) (r_own - r_other) times the difference of the two log-probabilities: zero where the policy is sure, zero where
the critic sees no difference, whatever became of the rest of the solution.
"""

# Dimension key: S solutions, T solution tokens (right-padded), A branches.
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from irlops_jobs.distributed.trainer import Trainer
from irlops_jobs.models.branches import BranchBatch, propose_branches
from irlops_jobs.models.scorers import PolicyScorer
from irlops_jobs.rewards.advantages import clip_rewards
from irlops_jobs.rewards.running import RunningScale
from irlops_jobs.rollouts.carriers import Sample
from irlops_jobs.rollouts.rounds import SampledQuestion
from irlops_jobs.rollouts.sampling import derive_seed, uniform_draws
from irlops_jobs.updates.microbatches import Group, MicroBatch, Trace, plan


@dataclass(frozen=True)
class OwnStateDraws:
    """The draws of one sample's branches; truncated samples and idle passes have weight 0."""

    key: int
    """Place among the round's samples of this process; -1 in idle passes."""
    uniform: Tensor
    weight: float
    sample: Sample


@dataclass(frozen=True)
class JudgedBranches:
    """Branches off the policy's samples with what the critic makes of them.

    Example:
        The sampled token has reward 1.5, the alternative -2: ``gain_SA`` is 3.5 there.
    """

    batch: BranchBatch
    gain_SA: Tensor
    """(S, A) float32: clipped reward of the sampled token less that of the alternative; 0 where padded or truncated."""
    num_samples: float
    """Over all processes."""
    rewards: Mapping[int, Tensor]
    """Of the samples' own tokens, (length,) float32 as the critic gave them, by place among the round's samples."""


def judge_branches(
    policy: Trainer,
    critic: Trainer,
    questions: Sequence[SampledQuestion],
    *,
    num_branches: int,
    reward_limit: float | None,
    micro_batch_tokens: int,
    draw: int,
    scale: RunningScale | None = None,
) -> list[JudgedBranches]:
    """Draw what the policy might have written instead in each sample, where it doubted most, and ask the critic.

    Args:
        num_branches: of each sample.
        draw: names this occasion (the round); with a sample's tokens it fixes what is drawn, on whatever process.
    """
    keys = iter(range(sum(len(question.samples) for question in questions)))
    groups = [
        Group(q.demonstration.prompt_ids, [Trace(s.token_ids, _draws(next(keys), s, draw)) for s in q.samples])
        for q in questions
    ]
    idle = OwnStateDraws(-1, torch.zeros(1), 0.0, Sample((0,), (0.0,), truncated=True, alternatives=(0,)))
    micros = plan(groups, max_tokens=micro_batch_tokens, runtime=policy.runtime, idle=idle, num_branches=num_branches)
    samples = [sample for question in questions for sample in question.samples]
    num_samples, num_silent = policy.runtime.total(len(samples), sum(not sample.alternatives for sample in samples))
    propose = _propose if num_silent else _as_the_engine_told
    return [
        _judge(propose(policy, micro, num_branches), critic, micro, reward_limit, scale, num_samples)
        for micro in micros
    ]


def token_rewards(judged: Sequence[JudgedBranches], questions: Sequence[SampledQuestion]) -> list[list[Tensor]]:
    """Rewards of every sample's tokens, (length,) float32, from the passes that judged its branches."""
    found = {key: row for one in judged for key, row in one.rewards.items()}
    keys = iter(range(len(found)))
    return [[found[next(keys)] for _ in question.samples] for question in questions]


def two_action_loss(own_SA: Tensor, other_SA: Tensor, judged: JudgedBranches) -> Tensor:
    """Minus the policy's expected reward over the two tokens, less a constant; summed over states, a mean over samples.

    Args:
        own_SA: (S, A) float32 nats, log-probabilities of the sampled tokens; carries gradients.
        other_SA: (S, A) float32 nats, of the alternatives; carries gradients.
    Returns:
        () float32.
    """
    return -(torch.sigmoid(own_SA - other_SA) * judged.gain_SA).sum() / max(judged.num_samples, 1.0)


def _draws(key: int, sample: Sample, draw: int) -> OwnStateDraws:
    seed = derive_seed("own states", draw, *sample.token_ids)
    return OwnStateDraws(key, uniform_draws([seed], len(sample.token_ids))[0], float(not sample.truncated), sample)


def _propose(policy: Trainer, micro: MicroBatch[OwnStateDraws], num_branches: int) -> BranchBatch:
    """Ask the policy, in a pass of its own, for an engine that tells nothing but tokens."""
    scorer: PolicyScorer = policy.scorer  # pyright: ignore[reportAssignmentType]
    uniform_ST = pad_sequence([draws.uniform for draws in micro.payloads], batch_first=True)
    uniform_2ST = uniform_ST.to(policy.runtime.device).expand(2, -1, -1)  # without a floor the order decides nothing
    with torch.no_grad():
        return scorer.propose(micro.batch, uniform_2ST, num_branches=num_branches, floor=0.0)


def _as_the_engine_told(_policy: Trainer, micro: MicroBatch[OwnStateDraws], num_branches: int) -> BranchBatch:
    """Doubts and alternatives from when the samples were drawn: the policy is still the same."""
    samples, device = [draws.sample for draws in micro.payloads], micro.batch.solution_ids_ST.device
    logprob_ST = pad_sequence([torch.tensor(sample.logprobs) for sample in samples], batch_first=True).to(device)
    other_ST = pad_sequence([torch.tensor(sample.alternatives) for sample in samples], batch_first=True).to(device)
    return propose_branches(
        -torch.expm1(logprob_ST),
        other_ST,
        micro.batch,
        num_branches=num_branches,
        floor=0.0,
        order_ST=torch.zeros_like(logprob_ST),
    )


def _judge(
    batch: BranchBatch,
    critic: Trainer,
    micro: MicroBatch[OwnStateDraws],
    limit: float | None,
    scale: RunningScale | None,
    num_samples: float,
) -> JudgedBranches:
    reward_ST, other_SA = critic.forward(batch)
    rewards = {
        draws.key: row[mask].cpu()
        for draws, row, mask in zip(micro.payloads, reward_ST, batch.solution_mask_ST, strict=True)
        if draws.key >= 0
    }
    own_SA = reward_ST.gather(1, batch.branch_position_SA)
    if scale:
        own_SA, other_SA = scale.apply(own_SA), scale.apply(other_SA)
    weight_S = torch.tensor([draws.weight for draws in micro.payloads], device=critic.runtime.device)
    gain_SA = (clip_rewards(own_SA, limit) - clip_rewards(other_SA, limit)) * (batch.branch_weight_SA > 0)
    return JudgedBranches(batch, gain_SA * weight_S[:, None], num_samples, rewards)
