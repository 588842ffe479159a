"""The critic's update on expert states: the expert's token against another one behind the same prefix.

This is the discriminator's question asked one token at a time: same question, same prefix, two actions. Trace labels
say that something went wrong somewhere; a branch says which token is the expert's, and the policy's own doubts choose
the places. Neither the question's difficulty nor the style of a whole solution can give the answer away.

The policy is still while the critic learns, so what it would have written is asked for many updates at once, and so is
what a critic's frozen layers make of it; an update then runs the layers that learn, and nothing else.
"""

# Dimension key: S solutions, T solution tokens (right-padded), A branches, L tokens of a row, H hidden.
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from irlops.contracts.jobs import CriticConfig
from irlops_jobs.distributed.trainer import Trainer
from irlops_jobs.models.branches import BranchBatch
from irlops_jobs.models.expert_rows import ExpertRows, ExpertState
from irlops_jobs.models.scorers import CriticScorer, PolicyScorer
from irlops_jobs.rollouts.sampling import uniform_draws
from irlops_jobs.session import EncodedDemonstration
from irlops_jobs.updates.microbatches import Group, Trace, plan


@dataclass(frozen=True)
class ExpertDraw:
    """A demonstration drawn for an update.

    Example:
        ``ExpertDraw(demonstration, seed=5, corruptions=[(11, 12, 77, 2)])``
    """

    demonstration: EncodedDemonstration
    seed: int
    """Fixes which alternatives are drawn, whatever process draws them."""
    corruptions: Sequence[Sequence[int]] = ()
    """As token ids."""


@dataclass(frozen=True)
class _Asked:
    """What a pass knows of a draw, and its place among the others; -1 in idle passes."""

    key: int
    one: ExpertState
    uniform_T2: Tensor
    corruptions: Sequence[Sequence[int]] = ()

    @classmethod
    def idle(cls) -> _Asked:
        return cls(-1, ExpertState.bare((0,), (0,)), torch.zeros(1, 2))


def prepare_states(
    policy: Trainer, critic: Trainer, draws: Sequence[ExpertDraw], *, config: CriticConfig, micro_batch_tokens: int
) -> list[ExpertState]:
    """Everything that stands against the experts' tokens, and the trunk of a critic that has frozen layers."""
    stands_on_policy: bool = critic.scorer.stands_on(policy.scorer)  # pyright: ignore[reportCallIssue]
    if stands_on_policy:
        return _in_one_pass(policy, draws, config=config, micro_batch_tokens=micro_batch_tokens)
    states = propose_states(policy, draws, config=config, micro_batch_tokens=micro_batch_tokens)
    return with_trunk(critic, states, micro_batch_tokens=micro_batch_tokens)


def propose_states(
    policy: Trainer, draws: Sequence[ExpertDraw], *, config: CriticConfig, micro_batch_tokens: int
) -> list[ExpertState]:
    """What the policy would have written in place of the experts' tokens, and the corruptions."""
    scorer: PolicyScorer = policy.scorer  # pyright: ignore[reportAssignmentType]
    found: dict[int, ExpertState] = {}
    for micro in plan(_groups(draws), max_tokens=micro_batch_tokens, runtime=policy.runtime, idle=_Asked.idle()):
        with torch.no_grad():
            batch = scorer.propose(
                micro.batch,
                _stack_draws(micro.payloads).to(policy.runtime.device),
                num_branches=config.branches_per_expert,
                floor=config.branch_floor,
            )
        found |= _compared(micro.payloads, batch, config)
    return [found[key] for key in range(len(draws))]


def _in_one_pass(
    policy: Trainer, draws: Sequence[ExpertDraw], *, config: CriticConfig, micro_batch_tokens: int
) -> list[ExpertState]:
    """``propose_states`` with the trunk of a critic that stands on the policy's layers, from the same pass."""
    scorer: PolicyScorer = policy.scorer  # pyright: ignore[reportAssignmentType]
    device, found = policy.runtime.device, dict[int, ExpertState]()
    for micro in plan(
        _groups(draws),
        max_tokens=micro_batch_tokens // 2,  # as in with_trunk
        runtime=policy.runtime,
        idle=_Asked.idle(),
        num_branches=config.branches_per_expert,
    ):
        with torch.no_grad():
            written, batch = scorer.write_and_propose(
                ExpertRows.of([asked.one for asked in micro.payloads], device),
                micro.batch,
                _stack_draws(micro.payloads).to(device),
                num_branches=config.branches_per_expert,
                floor=config.branch_floor,
            )
            states = _compared(micro.payloads, batch, config)
            # Idle passes have branches as well: all processes run the same layers.
            rows = [states.get(asked.key, ExpertState.idle()) for asked in micro.payloads]
            branch_SAH = scorer.write_branches(
                written,
                pad_sequence([state.branch_ids_A for state in rows], batch_first=True).to(device),
                pad_sequence([len(s.prompt_ids) + s.position_A for s in rows], batch_first=True).to(device),
            )
        for row_LH, branch_AH, asked, state in zip(written.states_SLH, branch_SAH, micro.payloads, rows, strict=True):
            num_branches = len(state.branch_ids_A)
            trunk_LH = torch.cat([row_LH[: state.num_tokens - num_branches], branch_AH[:num_branches]])
            found[asked.key] = replace(state, trunk_LH=trunk_LH)
    return [found[key] for key in range(len(draws))]


def _groups(draws: Sequence[ExpertDraw]) -> list[Group[_Asked]]:
    groups: list[Group[_Asked]] = []
    for key, draw in enumerate(draws):
        one, num_tokens = draw.demonstration, len(draw.demonstration.solution_ids)
        uniform_T2 = uniform_draws([draw.seed], 2 * num_tokens)[0].view(num_tokens, 2)
        asked = _Asked(key, ExpertState.bare(one.prompt_ids, one.solution_ids), uniform_T2, draw.corruptions)
        groups.append(Group(one.prompt_ids, [Trace(one.solution_ids, asked)]))
    return groups


def _stack_draws(payloads: Sequence[_Asked]) -> Tensor:
    return pad_sequence([asked.uniform_T2 for asked in payloads], batch_first=True).permute(2, 0, 1)


def _compared(payloads: Sequence[_Asked], batch: BranchBatch, config: CriticConfig) -> dict[int, ExpertState]:
    """The states of one pass with their branches, by place; none for idle ones."""
    states: dict[int, ExpertState] = {}
    for row, asked in enumerate(payloads):
        if asked.key < 0:
            continue
        real_A = batch.branch_weight_SA[row] > 0
        state = replace(
            asked.one,
            branch_ids_A=batch.branch_ids_SA[row][real_A],
            position_A=batch.branch_position_SA[row][real_A],
            weight_A=batch.branch_weight_SA[row][real_A],
        )
        for corrupted_ids in asked.corruptions:
            state = against_corruption(state, corrupted_ids, weight=config.corrupted_branch_weight)
        states[asked.key] = state
    return states


def against_corruption(state: ExpertState, corrupted_ids: Sequence[int], *, weight: float) -> ExpertState:
    """The same state with the first token of a corrupted solution that differs as one more branch.

    What a policy would hardly write it hardly proposes, so this is where a critic learns of such tokens at all.
    """
    pairs = zip(state.solution_ids, corrupted_ids, strict=False)
    for position, (own, other) in enumerate(pairs):
        if own != other:
            return state.with_branch(other, position, weight)
    return state


def with_trunk(critic: Trainer, states: Sequence[ExpertState], *, micro_batch_tokens: int) -> list[ExpertState]:
    """The states with what the critic's frozen layers make of them; unchanged for a critic that learns as a whole."""
    scorer: CriticScorer = critic.scorer  # pyright: ignore[reportAssignmentType]
    if scorer.num_top_layers == 0:
        return list(states)
    keyed = [Group(one.prompt_ids, [Trace(one.solution_ids, (key, one))]) for key, one in enumerate(states)]
    found: dict[int, ExpertState] = {}
    idle = (-1, ExpertState.idle())
    # A row holds its branches as well, and all of it attends to all of it: half of the tokens fill the memory of a pass.
    for micro in plan(keyed, max_tokens=micro_batch_tokens // 2, runtime=critic.runtime, idle=idle):
        rows = ExpertRows.of([state for _, state in micro.payloads], critic.runtime.device)
        for trunk_LH, (key, state) in zip(scorer.trunk(rows), micro.payloads, strict=True):
            found[key] = replace(state, trunk_LH=trunk_LH[: state.num_tokens])
    return [found[key] for key in range(len(states))]


def update_on_expert_states(
    critic: Trainer, states: Sequence[ExpertState], *, micro_batch_tokens: int
) -> dict[str, float]:
    """One optimizer step of the critic on this process's share of a batch of expert states.

    Returns:
        Loss, and the weighted part of branches in which the expert's token has the higher reward.
    """
    groups = [Group(one.prompt_ids, [Trace(one.solution_ids, one)]) for one in states]
    idle = ExpertState.idle(_idle_trunk(critic.scorer))  # pyright: ignore[reportArgumentType]
    num_branches = max((len(one.branch_ids_A) for one in states), default=0)
    micros = plan(groups, max_tokens=micro_batch_tokens, runtime=critic.runtime, idle=idle, num_branches=num_branches)
    batches = [ExpertRows.of(micro.payloads, critic.runtime.device) for micro in micros]
    (total_weight,) = critic.runtime.total(sum(float(batch.weight_SA.sum()) for batch in batches))
    num_right = torch.zeros((), dtype=torch.float64)

    def loss_of(module: nn.Module, batch: ExpertRows) -> Tensor:
        own_SA, branch_SA = module(batch)
        weight_SA = batch.weight_SA / max(total_weight, 1e-9)
        num_right.add_(float((weight_SA * (own_SA > branch_SA)).sum()))
        return branch_loss(own_SA, branch_SA, weight_SA)

    metrics = critic.step(batches, loss_of)
    (right,) = critic.runtime.total(float(num_right))
    return {"critic/branch_loss": metrics["loss"], "critic/branch_accuracy": right}


def _idle_trunk(scorer: CriticScorer) -> Tensor | None:
    """(3, H) as of the row of an idle state, in the precision of the weights that read it; None without frozen layers."""
    if scorer.num_top_layers == 0:
        return None
    model: PreTrainedModel = scorer.model  # pyright: ignore[reportAssignmentType]
    return torch.zeros(3, model.config.hidden_size, dtype=model.dtype)


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
