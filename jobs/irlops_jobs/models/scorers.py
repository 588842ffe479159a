"""The modules that training wraps: batches of traces in, one number per solution token out."""

# Dimension key: S solutions, T solution tokens (right-padded), H hidden.
from __future__ import annotations

import torch
from torch import Tensor, nn

from irlops_jobs.models.branches import BranchBatch, branch_hidden_states, doubt_and_draw, propose_branches
from irlops_jobs.models.expert_rows import ExpertRows, compared_states, lower_part, row_states, upper_part
from irlops_jobs.models.last_layer import take
from irlops_jobs.models.shared_layers import WrittenRows, are_shared, write, write_branches
from irlops_jobs.models.shared_prefix import LOGITS_PER_CHUNK, TraceBatch, chosen_logprobs, hidden_states


class PolicyScorer(nn.Module):
    """Log-probabilities of solution tokens under a causal language model.

    Args:
        temperature: of the rollouts; the policy being trained is the one that was sampled, temperature included.
    """

    def __init__(self, model: nn.Module, *, autocast: str = "none", temperature: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self._autocast = autocast
        self._temperature = temperature

    def forward(self, batch: TraceBatch) -> tuple[Tensor, ...]:
        """Log-probabilities and entropies.

        Returns:
            (S, T) float32 nats, <= 0, with gradients; (S, T) float32 nats, >= 0, without. Both are 0 where masked.
            With branches also: (S, A) float32 nats of the branches' tokens, from the same pass.
        """
        with _precision(self._autocast, batch.solution_ids_ST.device):
            before_STH, _ = hidden_states(self.model.get_decoder(), batch)  # pyright: ignore[reportCallIssue]
        own = self._own_tokens(batch, before_STH)
        return (*own, self._branches(batch, before_STH)) if isinstance(batch, BranchBatch) else own

    def _own_tokens(self, batch: TraceBatch, before_STH: Tensor) -> tuple[Tensor, Tensor]:
        mask_ST = batch.solution_mask_ST
        head = self.model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
        # Scaling the states scales the logits: heads of causal language models have no bias.
        hidden_NH = before_STH[mask_ST].to(head.weight.dtype) / self._temperature  # pyright: ignore
        chosen_N, entropy_N = chosen_logprobs(hidden_NH, batch.solution_ids_ST[mask_ST], head, head.weight.shape[0])
        return _scatter(chosen_N, mask_ST), _scatter(entropy_N, mask_ST)

    def _branches(self, batch: BranchBatch, before_STH: Tensor) -> Tensor:
        head = self.model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
        position_SA = batch.branch_position_SA
        at_SAH = before_STH.gather(1, position_SA[:, :, None].expand(-1, -1, before_STH.shape[-1]))
        hidden_NH = at_SAH.flatten(0, 1).to(head.weight.dtype) / self._temperature  # pyright: ignore
        chosen_N, _ = chosen_logprobs(hidden_NH, batch.branch_ids_SA.flatten(), head, head.weight.shape[0])
        return chosen_N.view(position_SA.shape)

    def propose(self, batch: TraceBatch, uniform_2ST: Tensor, *, num_branches: int, floor: float) -> BranchBatch:
        """What this policy would have written in place of the solutions' tokens, where it doubts them most.

        Args:
            uniform_2ST: (2, S, T) float32 in [0, 1): the draw at each state, and ``order_ST`` of ``propose_branches``.
        """
        with _precision(self._autocast, batch.solution_ids_ST.device):
            before_STH, _ = hidden_states(self.model.get_decoder(), batch)  # pyright: ignore[reportCallIssue]
        return self._propose_from(before_STH, batch, uniform_2ST, num_branches=num_branches, floor=floor)

    def _propose_from(
        self, before_STH: Tensor, batch: TraceBatch, uniform_2ST: Tensor, *, num_branches: int, floor: float
    ) -> BranchBatch:
        mask_ST = batch.solution_mask_ST
        head = self.model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
        doubt_N, drawn_N = doubt_and_draw(
            before_STH[mask_ST].to(head.weight.dtype) / self._temperature,  # pyright: ignore
            batch.solution_ids_ST[mask_ST],
            uniform_2ST[0][mask_ST],
            head,
            size=max(1, LOGITS_PER_CHUNK // head.weight.shape[0]),
        )
        doubt_ST, drawn_ST = _scatter(doubt_N, mask_ST), _scatter(drawn_N, mask_ST)
        return propose_branches(
            doubt_ST, drawn_ST, batch, num_branches=num_branches, floor=floor, order_ST=uniform_2ST[1]
        )

    def write_and_propose(
        self, rows: ExpertRows, batch: TraceBatch, uniform_2ST: Tensor, *, num_branches: int, floor: float
    ) -> tuple[WrittenRows, BranchBatch]:
        """``propose`` from a pass over the same solutions in rows of their own, which a critic on the same layers goes on from."""
        backbone = self.model.get_decoder()  # pyright: ignore[reportCallIssue]
        with _precision(self._autocast, rows.ids_SL.device):
            written = write(backbone, rows)
            normed_SLH = backbone.norm(written.states_SLH)  # pyright: ignore[reportCallIssue]
        offset_T = torch.arange(batch.solution_ids_ST.shape[1], device=rows.ids_SL.device)
        place_ST = (batch.prompt_mask_QP.sum(1)[batch.parent_S][:, None] + offset_T - 1).clamp(
            max=rows.ids_SL.shape[1] - 1
        )
        proposed = self._propose_from(
            take(normed_SLH, place_ST), batch, uniform_2ST, num_branches=num_branches, floor=floor
        )
        return written, proposed

    def write_branches(self, written: WrittenRows, branch_ids_SA: Tensor, place_SA: Tensor) -> Tensor:
        """(S, A, H), what the layers make of branches off written rows."""
        with _precision(self._autocast, branch_ids_SA.device):
            return write_branches(self.model.get_decoder(), written, branch_ids_SA, place_SA)  # pyright: ignore[reportCallIssue]


class CriticScorer(nn.Module):
    """Rewards of solution tokens: the raw logit of a token classifier, high where the text reads like an expert's.

    Args:
        num_top_layers: the last layers, when they alone learn (``critic_trains: added_layers``); 0 when all do.
    """

    def __init__(
        self, model: nn.Module, *, autocast: str = "none", shaping: bool = False, num_top_layers: int = 0
    ) -> None:
        super().__init__()
        self.model = model
        self.num_top_layers = num_top_layers
        self._autocast = autocast
        self.potential = nn.Linear(model.config.hidden_size, 1, bias=False) if shaping else None  # pyright: ignore

    def forward(self, batch: TraceBatch | ExpertRows) -> tuple[Tensor, Tensor]:
        """Rewards and what shaping adds to them.

        Returns:
            reward_ST: (S, T) float32, log-odds of "expert"; carries gradients, 0 where masked.
            shaping_ST: (S, T) float32, h(next) - h(now) with h 0 after the end; all 0 without a potential.
            With branches: reward_ST, and (S, A) float32 rewards of the branches' tokens, from the same pass.
            Of expert rows: (S, A) float32 rewards of the experts' tokens and of the branches that stand against them.
        """
        if isinstance(batch, ExpertRows):
            return self._compare_rows(batch)
        if isinstance(batch, BranchBatch):
            return self._compare_branches(batch)
        with _precision(self._autocast, batch.solution_ids_ST.device):
            before_STH, at_STH = hidden_states(_backbone(self.model), batch)
        mask_ST = batch.solution_mask_ST
        reward_ST = self._rewards(at_STH, mask_ST)
        if self.potential is None:
            return reward_ST, torch.zeros_like(reward_ST)
        now_ST = self.potential(before_STH.float()).squeeze(-1)
        is_last_ST = mask_ST & ~nn.functional.pad(mask_ST[:, 1:], (0, 1))
        next_ST = self.potential(at_STH.float()).squeeze(-1).masked_fill(is_last_ST, 0.0)
        return reward_ST, torch.where(mask_ST, next_ST - now_ST, 0.0)

    def _compare_branches(self, batch: BranchBatch) -> tuple[Tensor, Tensor]:
        with _precision(self._autocast, batch.solution_ids_ST.device):
            at_STH, branch_SAH = branch_hidden_states(_backbone(self.model), batch)
        return self._rewards(at_STH, batch.solution_mask_ST), self._read(branch_SAH)

    def stands_on(self, policy: PolicyScorer) -> bool:
        """Whether the frozen layers are the policy's, so that its pass is this critic's trunk."""
        if self.num_top_layers == 0 or hasattr(policy.model, "peft_config") or self._autocast != policy._autocast:
            return False
        return are_shared(policy.model.get_decoder(), _backbone(self.model), self.num_top_layers)  # pyright: ignore[reportCallIssue]

    def trunk(self, rows: ExpertRows) -> Tensor:
        """(S, L, H), what the frozen layers make of the rows; with it in the rows a pass runs the layers on top alone."""
        with torch.no_grad(), _precision(self._autocast, rows.ids_SL.device):
            return row_states(lower_part(_backbone(self.model), self.num_top_layers), rows)

    def _compare_rows(self, rows: ExpertRows) -> tuple[Tensor, Tensor]:
        backbone = _backbone(self.model)
        with _precision(self._autocast, rows.ids_SL.device):
            part = backbone if rows.trunk_SLH is None else upper_part(backbone, self.num_top_layers)
            own_SAH, branch_SAH = compared_states(part, rows)
        return self._read(own_SAH), self._read(branch_SAH)

    def _rewards(self, at_STH: Tensor, mask_ST: Tensor) -> Tensor:
        return _scatter(self._read(at_STH[mask_ST]), mask_ST)

    def _read(self, states: Tensor) -> Tensor:
        head: nn.Module = self.model.score  # pyright: ignore[reportAssignmentType]
        return head(states.to(next(head.parameters()).dtype)).squeeze(-1).float()


def _backbone(model: nn.Module) -> nn.Module:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue] - peft's wrapper
    return getattr(inner, inner.base_model_prefix)  # pyright: ignore[reportArgumentType]


def _precision(autocast: str, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast == "bfloat16")


def _scatter(values_N: Tensor, mask_ST: Tensor) -> Tensor:
    return torch.zeros(mask_ST.shape, dtype=values_N.dtype, device=values_N.device).masked_scatter(mask_ST, values_N)
