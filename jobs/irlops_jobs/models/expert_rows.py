"""Expert solutions with single-token branches, each in one sequence: prompt, solution, branches.

A branch continues the solution's prefix by one token and is seen by nobody else. Unlike a group of samples, an expert
solution shares its prompt with nobody, so a row needs no cache: one pass gives both sides of every comparison. A critic
of which only the top layers learn can be given what its lower layers made of the rows, once for many updates.
"""

# Dimension key: S rows, L tokens of a row (right-padded), A branches of a row (right-padded), R tokens read, H hidden.
from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from irlops_jobs.models.last_layer import as_whole_layer, run_at, take


@dataclass(frozen=True)
class ExpertState:
    """One expert solution and the tokens that stand against its own.

    Example:
        Against the solution's second token stands token 44: ``ExpertState((1, 7), (11, 12, 2), branch_ids_A=tensor([44]),
        position_A=tensor([1]), weight_A=tensor([0.3]))``
    """

    prompt_ids: tuple[int, ...]
    solution_ids: tuple[int, ...]
    branch_ids_A: Tensor
    position_A: Tensor
    """The solution token that each branch stands in for."""
    weight_A: Tensor
    """Of each comparison, before it is divided by all of them."""
    trunk_LH: Tensor | None = None
    """What a critic's frozen layers make of the row; None for a critic that learns as a whole."""

    @classmethod
    def idle(cls, trunk_3H: Tensor | None = None) -> ExpertState:
        """For passes that only keep processes in step: one comparison of no weight.

        Args:
            trunk_3H: (3, H), where the other processes' states have a trunk: all must run the same layers.
        """
        zero = torch.zeros(1, dtype=torch.long)
        return cls((0,), (0,), zero, zero, torch.zeros(1), trunk_3H)

    def with_branch(self, token_id: int, position: int, weight: float) -> ExpertState:
        """The same solution with one comparison more."""
        return replace(
            self,
            branch_ids_A=torch.cat([self.branch_ids_A, self.branch_ids_A.new_tensor([token_id])]),
            position_A=torch.cat([self.position_A, self.position_A.new_tensor([position])]),
            weight_A=torch.cat([self.weight_A, self.weight_A.new_tensor([weight])]),
        )

    @classmethod
    def bare(cls, prompt_ids: tuple[int, ...], solution_ids: tuple[int, ...]) -> ExpertState:
        """Without any comparison yet."""
        nothing = torch.zeros(0, dtype=torch.long)
        return cls(prompt_ids, solution_ids, nothing, nothing, torch.zeros(0))

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.solution_ids) + len(self.branch_ids_A)


@dataclass(frozen=True)
class ExpertRows:
    """Rows of one pass, padded on the right."""

    ids_SL: Tensor
    position_SL: Tensor
    """Of ordinary tokens their place in the row, of branches that of the token they stand in for; 0 where padded."""
    own_SA: Tensor
    """Places in the row of the experts' tokens."""
    branch_SA: Tensor
    """Places in the row of the branches."""
    weight_SA: Tensor
    """0 where padded."""
    trunk_SLH: Tensor | None = None

    @classmethod
    def of(cls, states: Sequence[ExpertState], device: torch.device) -> ExpertRows:
        """Pad states into one batch."""
        ids, positions, own, branches = [], [], [], []
        for state in states:
            num_prompt, num_before = len(state.prompt_ids), len(state.prompt_ids) + len(state.solution_ids)
            here = state.branch_ids_A.device
            written = torch.tensor((*state.prompt_ids, *state.solution_ids), device=here)
            ids.append(torch.cat([written, state.branch_ids_A]))
            positions.append(torch.cat([torch.arange(num_before, device=here), num_prompt + state.position_A]))
            own.append(num_prompt + state.position_A)
            branches.append(torch.arange(num_before, num_before + len(state.branch_ids_A), device=here))
        parts = [ids, positions, own, branches, [state.weight_A for state in states]]
        trunks = [state.trunk_LH for state in states if state.trunk_LH is not None]
        padded = [pad_sequence(part, batch_first=True).to(device) for part in parts]
        return cls(*padded, trunk_SLH=pad_sequence(trunks, batch_first=True).to(device) if trunks else None)

    def attention_mask(self) -> Tensor:
        """(S, 1, L, L) float32 to add to attention scores.

        Everybody sees itself and what stands before its own position: for an ordinary token all before it, for a branch
        the prefix that it continues. No position reaches as far as the branches or the padding.
        """
        places_L = torch.arange(self.ids_SL.shape[1], device=self.ids_SL.device)
        allowed_SLL = places_L < self.position_SL[:, :, None]
        allowed_SLL = allowed_SLL | torch.eye(len(places_L), dtype=torch.bool, device=places_L.device)
        mask = torch.zeros(allowed_SLL.shape, device=places_L.device)
        return mask.masked_fill(~allowed_SLL, torch.finfo(torch.float32).min)[:, None]


def lower_part(backbone: nn.Module, num_top_layers: int) -> nn.Module:
    """The backbone without its last layers and its final norm; shares the other modules with it."""
    return with_layers(backbone, backbone.layers[:-num_top_layers], norm=nn.Identity())  # pyright: ignore[reportIndexIssue, reportArgumentType]


def upper_part(backbone: nn.Module, num_top_layers: int) -> nn.Module:
    """The backbone's last layers and its final norm, to be given ``inputs_embeds``; shares the modules with it."""
    return with_layers(backbone, backbone.layers[-num_top_layers:], norm=backbone.norm)  # pyright: ignore[reportIndexIssue, reportArgumentType]


def with_layers(backbone: nn.Module, layers: nn.ModuleList, *, norm: nn.Module | Tensor) -> nn.Module:
    """The backbone with these layers and this final norm; shares all modules with it."""
    view = copy.copy(backbone)
    view._modules = backbone._modules | {"layers": layers, "norm": norm}  # pyright: ignore[reportAttributeAccessIssue]
    return view


def row_states(backbone: nn.Module, rows: ExpertRows) -> Tensor:
    """Hidden states (S, L, H) of a backbone, or of a part of it, on the rows' tokens or on their trunk."""
    inputs = {"input_ids": rows.ids_SL} if rows.trunk_SLH is None else {"inputs_embeds": rows.trunk_SLH}
    out = backbone(**inputs, attention_mask=rows.attention_mask(), position_ids=rows.position_SL, use_cache=False)
    return out.last_hidden_state


def compared_states(backbone: nn.Module, rows: ExpertRows) -> tuple[Tensor, Tensor]:
    """Final hidden states (S, A, H) at the experts' tokens that are compared, and (S, A, H) at the branches.

    A row has some 150 tokens, of which about 20 are read: the last layer runs on those alone.
    """
    place_SR = torch.cat([rows.own_SA, rows.branch_SA], dim=1)
    layers: nn.ModuleList = backbone.layers  # pyright: ignore[reportAssignmentType]
    last = as_whole_layer(layers[-1])
    if last is None:
        at_SRH = take(row_states(backbone, rows), place_SR)
    else:
        below_SLH = row_states(with_layers(backbone, layers[:-1], norm=nn.Identity()), rows)  # pyright: ignore[reportArgumentType]
        at_SRH = backbone.norm(  # pyright: ignore[reportCallIssue]
            run_at(
                last,
                below_SLH,
                place_SR,
                cosine_sine_SLD=backbone.rotary_emb(below_SLH, rows.position_SL),  # pyright: ignore[reportCallIssue]
                mask_S1LL=rows.attention_mask(),
            )
        )
    own_SAH, branch_SAH = at_SRH.split(rows.own_SA.shape[1], dim=1)
    return own_SAH, branch_SAH
