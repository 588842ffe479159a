"""Models without weights: built on the meta device from shipped sizes, to check shapes and to measure activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from irlops.contracts.jobs import LoraConfig
from irlops.errors import ConfigError
from irlops_jobs.models.load import LORA_TARGETS, with_lora
from irlops_jobs.models.presets import ModelSource, model_facts
from irlops_jobs.models.tiny import tiny_config

PROBE_TOKENS = 64
_FUSED = "irlops_fused_on_meta"


def config_of(source: ModelSource, *, num_layers: int | None = None) -> PreTrainedConfig:
    """The configuration of a preset's model, from facts.json; optionally with fewer layers."""
    if source.kind == "generated":
        config = tiny_config()
        config.num_hidden_layers = num_layers or config.num_hidden_layers
        return config
    facts = dict(model_facts()[source.name])
    sizes: dict[str, Any] = {key: facts[key] for key in facts if key not in ("model_type", "num_parameters")}
    sizes["num_hidden_layers"] = num_layers or sizes["num_hidden_layers"]
    return CONFIG_MAPPING[facts["model_type"]](**sizes)


def build_on_meta(
    source: ModelSource, *, is_critic: bool, dtype: torch.dtype, num_layers: int | None = None
) -> PreTrainedModel:
    """The model with shapes and no memory behind them."""
    config = config_of(source, num_layers=num_layers)
    kind: Any = AutoModelForTokenClassification if is_critic else AutoModelForCausalLM
    if is_critic:
        config.num_labels = 1
    with torch.device("meta"):
        return kind.from_config(config, dtype=dtype, attn_implementation=_FUSED)


def check_shapes(source: ModelSource, *, is_critic: bool) -> int:
    """Run the whole architecture on shapes alone.

    Returns:
        Its number of parameters.
    Raises:
        ConfigError: the shipped sizes don't give the published parameter count, the output has another shape than the
            jobs expect, or LoRA finds no projections.
    """
    model = build_on_meta(source, is_critic=is_critic, dtype=torch.bfloat16)
    width, num_outputs = model.config.hidden_size, 1 if is_critic else model.config.vocab_size
    with torch.no_grad():
        shape = tuple(model(**_probe()).logits.shape)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    problems = []
    if shape != (1, PROBE_TOKENS, num_outputs):
        problems.append(f"its output is {shape}, not {(1, PROBE_TOKENS, num_outputs)}")
    expected = model_facts().get(source.name, {}).get("num_parameters", num_parameters)
    backbone = num_parameters - (width + 1 if is_critic else 0)
    untied = 0 if model.config.tie_word_embeddings or not is_critic else model.config.vocab_size * width
    if source.kind != "generated" and backbone + untied != expected:
        problems.append(f"it has {backbone + untied:,} parameters, published are {expected:,}")
    missing = [name for name in LORA_TARGETS if not any(n.endswith(name) for n, _ in model.named_modules())]
    if missing:
        problems.append(f"it has no {', '.join(missing)} for adapters")
    if problems:
        raise ConfigError(f"The shapes of {source.label} are wrong: {'; '.join(problems)}. Correct facts.json.")
    return num_parameters


def activation_bytes_per_token(
    source: ModelSource, *, is_critic: bool, dtype: torch.dtype, lora: LoraConfig | None, num_layers: int | None = None
) -> int:
    """Bytes kept for the backward pass per token of a micro-batch, without recomputation.

    Measured on the real modules, on the meta device, with one and with two layers; attention is taken to keep its
    inputs, output and normalisers (a fused kernel), not its scores.
    """
    one, two = (_saved_bytes(source, is_critic, dtype, lora, layers) for layers in (1, 2))
    return (one + (two - one) * ((num_layers or config_of(source).num_hidden_layers) - 1)) // PROBE_TOKENS


def _saved_bytes(
    source: ModelSource, is_critic: bool, dtype: torch.dtype, lora: LoraConfig | None, num_layers: int
) -> int:
    model = build_on_meta(source, is_critic=is_critic, dtype=dtype, num_layers=num_layers)
    backbone: nn.Module = model.model
    if lora is not None:
        with_lora(model, lora, seed=0, train_head=is_critic)  # adapts the backbone's layers in place
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        backbone(**_probe())
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in weights)


def _probe() -> dict[str, Any]:
    ids = torch.zeros(1, PROBE_TOKENS, dtype=torch.long, device="meta")
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}


class _FusedAttention(torch.autograd.Function):
    """Shapes of an attention kernel that never writes its scores; on the meta device there is nothing to compute."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        output = torch.empty_like(query)
        normaliser = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, output, normaliser)
        return output

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, _output, _normaliser = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _fused(_: nn.Module, query: Tensor, key: Tensor, value: Tensor, *__: Any, **___: Any) -> tuple[Tensor, None]:
    output: Any = _FusedAttention.apply(query, key, value)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(_FUSED, _fused)
AttentionMaskInterface.register(_FUSED, lambda *_, **__: None)
