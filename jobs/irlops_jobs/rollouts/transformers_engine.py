"""Rollouts with transformers: each prompt is prefilled once and its N samples decode together.

Rows leave the batch as they end, keys and values are written into buffers allocated once, and every row draws from
its own generator, so results do not depend on batching or on the number of processes.
"""

# Dimension key: Q prompts, P prompt tokens, N sequences being decoded, V vocabulary, H hidden.
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from irlops.contracts.jobs import RolloutConfig
from irlops_jobs.models.save import base_model_of, merged_state_dict
from irlops_jobs.models.shared_prefix import TraceBatch, encode_prompts
from irlops_jobs.rollouts.carriers import OnProgress, Sample
from irlops_jobs.rollouts.sampling import choose_tokens, derive_seed, draw_other, sampling_dtype, uniform_draws
from irlops_jobs.rollouts.shared_prompts import SharedPrompts, attending_to_shared_prompts

COMPACT_BELOW = 0.7
"""Finished rows are dropped from the batch once fewer than this part of it is still decoding."""


class _BufferedLayer(DynamicLayer):
    """A cache layer that writes into a buffer of known size instead of growing by concatenation at every token.

    Args:
        prompts: (Q, K, P, D), what the layer keeps of the prompts: the size of a head, and the precision.
    """

    def __init__(self, prompts: Tensor, num_rows: int, capacity: int) -> None:
        super().__init__()
        self.length = 0
        self._keys, self._values = (
            prompts.new_empty((num_rows, prompts.shape[1], capacity, prompts.shape[3])) for _ in range(2)
        )
        self.dtype, self.device, self.is_initialized = prompts.dtype, prompts.device, True
        self._show()

    def _show(self) -> None:
        self.keys, self.values = self._keys[..., : self.length, :], self._values[..., : self.length, :]

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        end = self.length + key_states.shape[-2]
        self._keys[..., self.length : end, :] = key_states
        self._values[..., self.length : end, :] = value_states
        self.length = end
        self._show()
        return self.keys, self.values  # pyright: ignore[reportReturnType] - set by _show

    def keep(self, rows: Tensor) -> None:
        self._keys, self._values = self._keys[rows], self._values[rows]
        self._show()


@dataclass
class _Decoding:
    """Rows still being written; ``origin`` says which (prompt, sample) each row is."""

    origin: Tensor
    prompts: SharedPrompts
    position: Tensor
    uniform: Tensor
    hidden: Tensor
    tokens: list[list[int]] = field(default_factory=list)
    logprobs: list[list[float]] = field(default_factory=list)
    alternatives: list[list[int]] = field(default_factory=list)


class TransformersEngine:
    """Samples from a causal language model in this process.

    Args:
        policy: shared with the trainer where it can be. One with adapters, or in another precision than samples are
            drawn in, is merged into a copy by ``load_weights``: adapters make each token about three times as slow.
        config: sampling settings.
        eos_token_id: ends a solution.
        with_alternatives: draw at each token what else might have been written; the distribution is at hand here.
    """

    def __init__(
        self, policy: nn.Module, config: RolloutConfig, *, eos_token_id: int, with_alternatives: bool = False
    ) -> None:
        self._config = config
        self._with_alternatives = with_alternatives
        self._eos = eos_token_id
        self._policy = policy
        self._copy: PreTrainedModel | None = None
        self.load_weights(policy)

    def load_weights(self, policy: nn.Module) -> None:
        """Sample from these weights from now on."""
        base = base_model_of(policy)
        dtype = sampling_dtype(self._config, base.dtype)
        self._policy = policy
        if base is policy and dtype == base.dtype:
            return
        own = self._copy = _like(base, dtype) if self._copy is None else self._copy
        own.load_state_dict(merged_state_dict(policy))
        self._policy = own

    def close(self) -> None:
        """Nothing to give back: the model belongs to the trainer."""

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        num_samples: int,
        seeds: Sequence[int],
        on_progress: OnProgress | None = None,
    ) -> list[list[Sample]]:
        was_training = self._policy.training
        self._policy.eval()
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        per_batch = max(1, self._config.batch_size // num_samples)
        results: list[list[Sample]] = [[] for _ in prompts]
        for start in range(0, len(order), per_batch):
            chosen = order[start : start + per_batch]
            samples = self._decode([prompts[i] for i in chosen], num_samples, [seeds[i] for i in chosen])
            for row, index in enumerate(chosen):
                results[index] = samples[row * num_samples : (row + 1) * num_samples]
            if on_progress:
                on_progress(start + len(chosen), len(order))
        self._policy.train(was_training)
        return results

    def _prefill(self, prompts: list[Sequence[int]], num_samples: int, seeds: list[int]) -> tuple[_Decoding, Cache]:
        device = next(self._policy.parameters()).device
        batch = TraceBatch.of(prompts, [[0]], [0]).to(device)
        hidden_QPH, cache = encode_prompts(self._backbone, batch.prompt_ids_QP, batch.prompt_mask_QP)
        length_Q = batch.prompt_mask_QP.sum(1)
        rows = torch.arange(len(prompts), device=device).repeat_interleave(num_samples)
        prompts_of_rows = SharedPrompts.of(cache, batch.prompt_mask_QP, rows)
        layers = [_BufferedLayer(keys, len(rows), self._config.max_new_tokens) for keys in prompts_of_rows.keys]
        sample_seeds = [derive_seed(seed, index) for seed in seeds for index in range(num_samples)]
        state = _Decoding(
            origin=torch.arange(len(rows), device=device),
            prompts=prompts_of_rows,
            position=length_Q[rows],
            uniform=uniform_draws(sample_seeds, (1 + self._with_alternatives) * self._config.max_new_tokens).to(device),
            hidden=hidden_QPH[torch.arange(len(prompts), device=device), length_Q - 1][rows],
            tokens=[[] for _ in range(len(rows))],
            logprobs=[[] for _ in range(len(rows))],
            alternatives=[[] for _ in range(len(rows))],
        )
        return state, Cache(layers=list(layers))

    def _decode(self, prompts: list[Sequence[int]], num_samples: int, seeds: list[int]) -> list[Sample]:
        state, cache = self._prefill(prompts, num_samples, seeds)
        with attending_to_shared_prompts(self._policy):  # pyright: ignore[reportArgumentType] - a transformers model
            self._write(state, cache)
        return [
            Sample(tuple(tokens), tuple(logprobs), tokens[-1] != self._eos, tuple(alternatives))
            for tokens, logprobs, alternatives in zip(state.tokens, state.logprobs, state.alternatives, strict=True)
        ]

    def _write(self, state: _Decoding, cache: Cache) -> None:
        alive = torch.ones(len(state.origin), dtype=torch.bool, device=state.origin.device)
        for step in range(self._config.max_new_tokens):
            logits = self._policy.lm_head(state.hidden).float()  # pyright: ignore[reportCallIssue] - a causal LM has one
            token, logprob = choose_tokens(
                logits, state.uniform[:, step], temperature=self._config.temperature, top_p=self._config.top_p
            )
            _record(state, token, logprob, alive, self._other(logits, token, state, step))
            alive = alive & (token != self._eos)
            if not alive.any():
                break
            if alive.float().mean() < COMPACT_BELOW:
                state, token, alive = _compact(state, cache, token, alive)
            if step + 1 < self._config.max_new_tokens:
                self._advance(state, cache, token)

    def _other(self, logits: Tensor, token: Tensor, state: _Decoding, step: int) -> Tensor | None:
        if not self._with_alternatives:
            return None
        probabilities = torch.softmax(logits / self._config.temperature, dim=-1)
        return draw_other(probabilities, token, state.uniform[:, self._config.max_new_tokens + step])

    def _advance(self, state: _Decoding, cache: Cache, token: Tensor) -> None:
        out = self._backbone(
            input_ids=token[:, None],
            attention_mask=torch.zeros((1, 1, 1, 1), device=token.device),  # made, so that nobody makes another
            position_ids=state.position[:, None],
            past_key_values=cache,
            use_cache=True,
            shared_prompts=state.prompts,
        )
        state.position = state.position + 1
        state.hidden = out.last_hidden_state[:, 0]

    @property
    def _backbone(self) -> nn.Module:
        return self._policy.get_decoder()  # pyright: ignore[reportCallIssue] - every causal LM of transformers has it


def _like(base: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A model of this architecture whose weights are still to come."""
    fresh: nn.Module = type(base)(base.config)
    return fresh.to(device=base.device, dtype=dtype).requires_grad_(False)  # pyright: ignore[reportCallIssue, reportReturnType]


def _record(state: _Decoding, token: Tensor, logprob: Tensor, alive: Tensor, other: Tensor | None) -> None:
    others = [None] * len(token) if other is None else other.tolist()
    rows = zip(state.origin.tolist(), token.tolist(), logprob.tolist(), alive.tolist(), others, strict=True)
    for origin, one_token, one_logprob, is_alive, one_other in rows:
        if is_alive:
            state.tokens[origin].append(one_token)
            state.logprobs[origin].append(one_logprob)
            if one_other is not None:
                state.alternatives[origin].append(one_other)


def _compact(state: _Decoding, cache: Cache, token: Tensor, alive: Tensor) -> tuple[_Decoding, Tensor, Tensor]:
    for layer in cache.layers:
        layer.keep(alive)  # pyright: ignore[reportAttributeAccessIssue] - the layers are ours
    kept = _Decoding(
        origin=state.origin[alive],
        prompts=state.prompts.keep(alive),
        position=state.position[alive],
        uniform=state.uniform[alive],
        hidden=state.hidden[alive],
        tokens=state.tokens,
        logprobs=state.logprobs,
        alternatives=state.alternatives,
    )
    return kept, token[alive], alive[alive]
