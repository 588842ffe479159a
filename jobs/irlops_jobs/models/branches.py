"""Single-token branches off a solution: what if the next token had been another one?

A branch continues the solution's own prefix by one token and is seen by nobody else. All branches of a solution ride
in the same forward pass behind it, under a mask, so comparing an expert's token with what the policy would have
written there costs one token per comparison instead of one sequence.
"""

# Dimension key: S solutions, T solution tokens, A branches of a solution (right-padded), P prompt tokens, H hidden, V vocabulary.
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from irlops_jobs.models.shared_prefix import TraceBatch, dynamic_layers, encode_prompts, in_reach_of_gradients
from irlops_jobs.rollouts.sampling import draw_other


@dataclass(frozen=True)
class BranchBatch(TraceBatch):
    """Solutions with branches; ``branch_position_SA`` is the solution token that a branch stands in for."""

    branch_ids_SA: Tensor
    branch_position_SA: Tensor
    branch_weight_SA: Tensor
    """0 where padded."""


def branch_hidden_states(backbone: nn.Module, batch: BranchBatch) -> tuple[Tensor, Tensor]:
    """Final hidden states at the solutions' tokens (S, T, H) and at the branches' tokens (S, A, H)."""
    prompt_hidden, cache = encode_prompts(backbone, batch.prompt_ids_QP, batch.prompt_mask_QP)
    for layer in dynamic_layers(cache):
        layer.keys = layer.keys.index_select(0, batch.parent_S)  # pyright: ignore[reportOptionalMemberAccess] - filled above
        layer.values = layer.values.index_select(0, batch.parent_S)  # pyright: ignore[reportOptionalMemberAccess] - as above
    num_solution_tokens = batch.solution_ids_ST.shape[1]
    offsets_T = torch.arange(num_solution_tokens, device=batch.parent_S.device)
    offsets = torch.cat([offsets_T.expand(len(batch.parent_S), -1), batch.branch_position_SA], dim=1)
    positions = batch.prompt_mask_QP.sum(1)[batch.parent_S][:, None] + offsets
    at = backbone(
        input_ids=torch.cat([batch.solution_ids_ST, batch.branch_ids_SA], dim=1),
        attention_mask=_branch_mask(batch),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    at = in_reach_of_gradients(at, prompt_hidden, backbone)
    return at[:, :num_solution_tokens], at[:, num_solution_tokens:]


def _branch_mask(batch: BranchBatch) -> Tensor:
    """(S, 1, T + A, P + T + A) float32 to add to attention scores: solutions causal, a branch sees its prefix and itself."""
    num_solutions, num_tokens = batch.solution_ids_ST.shape
    num_branches = batch.branch_ids_SA.shape[1]
    device = batch.parent_S.device
    prompt_SP = batch.prompt_mask_QP[batch.parent_S][:, None].expand(-1, num_tokens + num_branches, -1)
    steps_T = torch.arange(num_tokens, device=device)
    causal_STT = (steps_T[:, None] >= steps_T).expand(num_solutions, -1, -1)
    prefix_SAT = steps_T < batch.branch_position_SA[:, :, None]
    to_solution = torch.cat([causal_STT, prefix_SAT], dim=1)
    own_AA = torch.eye(num_branches, dtype=torch.bool, device=device).expand(num_solutions, -1, -1)
    nobody = torch.zeros((num_solutions, num_tokens, num_branches), dtype=torch.bool, device=device)
    to_branches = torch.cat([nobody, own_AA], dim=1)
    allowed = torch.cat([prompt_SP, to_solution, to_branches], dim=2)
    return torch.zeros(allowed.shape, device=device).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]


def doubt_and_draw(
    hidden_NH: Tensor, own_N: Tensor, uniform_N: Tensor, head: nn.Module, *, size: int
) -> tuple[Tensor, Tensor]:
    """How sure the policy is not to write a token, and what it would write instead.

    Args:
        hidden_NH: (N, H), states that predict the tokens.
        own_N: (N,) int64, the solution's tokens.
        uniform_N: (N,) float32 in [0, 1): the draw at each state.
        size: states whose vocabulary distributions are alive at once.
    Returns:
        (N,) float32, 1 - pi(own token); (N,) int64, a token drawn from the policy with the own token excluded.
    """
    doubts, draws = [], []
    for hidden, own, uniform in zip(hidden_NH.split(size), own_N.split(size), uniform_N.split(size), strict=True):
        probability_NV = torch.softmax(head(hidden).float(), dim=-1)
        doubts.append(1 - probability_NV.gather(-1, own[:, None]).squeeze(-1))
        draws.append(draw_other(probability_NV, own, uniform))
    return torch.cat(doubts), torch.cat(draws)


def propose_branches(
    doubt_ST: Tensor, drawn_ST: Tensor, batch: TraceBatch, *, num_branches: int, floor: float, order_ST: Tensor
) -> BranchBatch:
    """Branches at the states where the policy is least sure of the solution's token, then at any others.

    A branch weighs as much as the policy doubts the token there, at least ``floor``: what the policy already knows
    needs little teaching, but must not be forgotten.

    Args:
        order_ST: (S, T) float32 in [0, 1), drawn: which of the states that weigh ``floor`` come first this time.
    """
    weight_ST = doubt_ST.clamp(min=floor) * batch.solution_mask_ST
    rank_ST = (doubt_ST + floor * order_ST + 1.0) * batch.solution_mask_ST
    _, position_SA = rank_ST.topk(min(num_branches, rank_ST.shape[1]), dim=1)
    return BranchBatch(
        **{name: getattr(batch, name) for name in TraceBatch.__dataclass_fields__},
        branch_ids_SA=drawn_ST.gather(1, position_SA),
        branch_position_SA=position_SA,
        branch_weight_SA=weight_ST.gather(1, position_SA),
    )
