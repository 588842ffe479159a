"""A policy and a critic that stands on the same layers: one pass over expert rows gives what both make of them.

A critic copied from the warm start, of which added layers alone learn, has the policy's own layers below until the policy
takes its first step: for the whole of the critic's warm-up. The policy's pass over prompts and solutions is the critic's
trunk then, and the branches follow from its keys and values.
"""

# Dimension key: S rows, L tokens of prompt and solution (right-padded), A branches (right-padded), H hidden.
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import Cache, DynamicCache

from irlops_jobs.models.expert_rows import ExpertRows, with_layers


@dataclass(frozen=True)
class WrittenRows:
    """Prompts and solutions after all of a policy's layers."""

    states_SLH: Tensor
    """Before the final norm."""
    cache: Cache


def are_shared(policy: nn.Module, critic: nn.Module, num_top_layers: int) -> bool:
    """Whether a critic's backbone below its last layers is the policy's, weight by weight.

    Not looked for where weights are sharded or adapters lie on them.
    """
    if any(isinstance(module, FSDPModule) for module in (*policy.modules(), *critic.modules())):
        return False
    below, own = _below_norm(policy, 0), _below_norm(critic, num_top_layers)
    return below.keys() == own.keys() and all(torch.equal(weight, own[name]) for name, weight in below.items())


def _below_norm(backbone: nn.Module, num_top_layers: int) -> dict[str, Tensor]:
    layers: nn.ModuleList = backbone.layers  # pyright: ignore[reportAssignmentType]
    part = with_layers(backbone, layers[: len(layers) - num_top_layers], norm=nn.Identity())  # pyright: ignore[reportArgumentType]
    return dict(part.named_parameters())


def write(backbone: nn.Module, rows: ExpertRows) -> WrittenRows:
    """Run rows that have no branches, and keep what branches will attend to."""
    out = _without_norm(backbone)(
        input_ids=rows.ids_SL,
        attention_mask=rows.attention_mask(),
        position_ids=rows.position_SL,
        past_key_values=DynamicCache(),
        use_cache=True,
    )
    return WrittenRows(out.last_hidden_state, out.past_key_values)


def write_branches(backbone: nn.Module, written: WrittenRows, branch_ids_SA: Tensor, place_SA: Tensor) -> Tensor:
    """(S, A, H), before the final norm, of tokens that stand in for those at these places of the rows."""
    num_tokens, num_branches = written.states_SLH.shape[1], place_SA.shape[1]
    to_row_SAL = torch.arange(num_tokens, device=place_SA.device) < place_SA[:, :, None]
    own_AA = torch.eye(num_branches, dtype=torch.bool, device=place_SA.device)
    allowed_SAK = torch.cat([to_row_SAL, own_AA.expand(len(place_SA), -1, -1)], dim=2)
    mask = torch.zeros(allowed_SAK.shape, device=place_SA.device)
    return _without_norm(backbone)(
        input_ids=branch_ids_SA,
        attention_mask=mask.masked_fill(~allowed_SAK, torch.finfo(torch.float32).min)[:, None],
        position_ids=place_SA,
        past_key_values=written.cache,
        use_cache=True,
    ).last_hidden_state


def _without_norm(backbone: nn.Module) -> nn.Module:
    return with_layers(backbone, backbone.layers, norm=nn.Identity())  # pyright: ignore[reportArgumentType]
