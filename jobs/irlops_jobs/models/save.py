"""A run's models as folders that transformers and stock vLLM load: Hugging Face layout, safetensors, adapters merged."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from irlops_jobs.models.publish import published_folder

CALIBRATION_FILE = "calibration.json"
SHARD_SIZE = "4GB"
_OVERHEAD_BYTES = 16 * 2**20
"""Tokenizer and configuration beside the weights."""


def save_model(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    state_dict: Mapping[str, Tensor] | None = None,
    calibration: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a policy or a critic; the folder that was there before stays until the new one is complete.

    Args:
        model: A transformers model, or one wrapped by peft.
        tokenizer: Saved beside it, so the folder is self-contained.
        folder: Its place. Call this from one process only.
        state_dict: ``merged_state_dict(model)`` gathered before; needed when the weights are sharded over processes.
        calibration: Of a critic, as calibration.json.
        dtype: Of floating-point weights in the files; None keeps the model's.

    Raises:
        StorageError: the disk is full or can't be written; the earlier folder is untouched.
    """
    base = base_model_of(model)
    tensors = _without_tied(base, merged_state_dict(model) if state_dict is None else state_dict)
    tensors = {name: _for_file(tensor, dtype) for name, tensor in tensors.items()}
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    with published_folder(folder, expected_bytes=num_bytes + _OVERHEAD_BYTES) as staging:
        save_torch_state_dict(tensors, staging, max_shard_size=SHARD_SIZE, metadata={"format": "pt"})
        _config_for(base, tensors).save_pretrained(staging)
        if getattr(base, "generation_config", None) is not None and base.can_generate():
            base.generation_config.save_pretrained(staging)  # pyright: ignore[reportOptionalMemberAccess] - checked above
        tokenizer.save_pretrained(staging)
        if calibration is not None:
            (staging / CALIBRATION_FILE).write_text(json.dumps(dict(calibration), indent=2) + "\n", encoding="utf-8")


def base_model_of(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside peft's wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue, reportReturnType]


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The weights under their Hugging Face names, low-rank adapters added in; the model itself is left as it is.

    Detached; unchanged tensors share memory with the model. Sharded weights are gathered, so with FSDP every process
    has to call this.

    Returns:
        {name: tensor} as the unwrapped model's own ``state_dict`` would hold after merging.
    """
    root = base_model_of(model)
    merged: dict[str, Tensor] = {}
    adapted = {name: module for name, module in root.named_modules() if hasattr(module, "lora_A")}
    for name, tensor in root.state_dict().items():
        if ".lora_" in name or ".original_module." in name:
            continue
        plain = name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
        whole = _gathered(tensor)
        owner, _, leaf = name.rpartition(".base_layer.")
        merged[plain] = _with_adapter(whole, adapted[owner]) if owner in adapted and leaf == "weight" else whole
    return merged


def _with_adapter(weight: Tensor, layer: nn.Module) -> Tensor:
    """W + B A alpha / rank, added in float32 so that a small step isn't lost in bfloat16."""
    down = _gathered(layer.lora_A["default"].weight)  # pyright: ignore[reportIndexIssue, reportArgumentType, reportAttributeAccessIssue]
    up = _gathered(layer.lora_B["default"].weight)  # pyright: ignore[reportIndexIssue, reportArgumentType, reportAttributeAccessIssue]
    scaling = float(layer.scaling["default"])  # pyright: ignore[reportIndexIssue, reportArgumentType]
    return (weight.float() + scaling * (up.float() @ down.float())).to(weight.dtype)


def _gathered(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore[reportAttributeAccessIssue] - a DTensor


def _without_tied(base: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tied = ("lm_head.weight",) if base.config.tie_word_embeddings else ()
    return {name: tensor for name, tensor in tensors.items() if name not in tied}


def _for_file(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = (tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor).contiguous()
    # A gathered weight is a view of a buffer padded for all processes, which safetensors refuses to write.
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _config_for(base: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Any:
    """The model's configuration as a server needs it: its class, its dtype, and no path of this machine."""
    config = copy.deepcopy(base.config)
    config.architectures = [type(base).__name__]
    config.dtype = next(iter(tensors.values())).dtype
    config._name_or_path = ""
    return config
