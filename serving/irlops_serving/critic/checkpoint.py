"""A critic's folder, checked and loaded: safetensors only, no remote code, every weight there and finite."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoModelForTokenClassification, PreTrainedModel

from irlops.errors import PairError
from irlops.registry.folders import inspect_model_folder

Precision = Literal["float32", "bfloat16"]

_NUM_PROBE_TOKENS = 4
_CAUSAL_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
"""Rewards; the same token in a longer batch differs by rounding only."""


@dataclass(frozen=True)
class LoadedCritic:
    """A critic in memory, ready to score.

    Made by ``load_critic``; consumed by ``TokenScorer``.
    Example: ``LoadedCritic(model=..., vocabulary_size=512, max_length=512)``.
    """

    model: PreTrainedModel
    vocabulary_size: int
    max_length: int
    """Longest prompt plus solution, in tokens."""


def load_critic(folder: Path, *, precision: Precision = "float32") -> LoadedCritic:
    """Load the critic in ``folder`` for inference on the CPU.

    Raises:
        PairError: the folder is missing, incomplete or unsafe, is not a critic, or its weights can't be used.
    """
    inspect_model_folder(folder, "critic")
    model, report = AutoModelForTokenClassification.from_pretrained(
        folder,
        dtype=getattr(torch, precision),
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
    )
    # A head without a bias is a head whose bias is 0, and that is what transformers makes of it.
    absent = sorted(set(report["missing_keys"]) - {"score.bias"})
    if absent or report["mismatched_keys"]:
        raise PairError(
            f"The critic in {folder} lacks weights of its own architecture "
            f"({', '.join(map(str, absent[:5])) or 'shapes differ'}). Export it again with save_pretrained."
        )
    model.eval().requires_grad_(False)
    _require_finite_weights(model, folder)
    _require_causal(model, folder, precision)
    config = model.config.get_text_config()
    return LoadedCritic(model, vocabulary_size=config.vocab_size, max_length=config.max_position_embeddings)


def _require_finite_weights(model: PreTrainedModel, folder: Path) -> None:
    broken = [name for name, weight in model.named_parameters() if not bool(torch.isfinite(weight).all())]
    if broken:
        raise PairError(
            f"The critic in {folder} has weights that are not finite numbers ({', '.join(broken[:3])}): its training "
            "diverged. Serve an earlier pair."
        )


@torch.inference_mode()
def _require_causal(model: PreTrainedModel, folder: Path, precision: Precision) -> None:
    """A reward belongs to the text so far: shared prompts and padding on the right both rest on it."""
    ids = torch.arange(_NUM_PROBE_TOKENS + 1).unsqueeze(0)
    alone = model(input_ids=ids[:, :-1]).logits
    followed = model(input_ids=ids).logits[:, :-1]
    if not torch.allclose(alone, followed, atol=_CAUSAL_TOLERANCE[precision], rtol=_CAUSAL_TOLERANCE[precision]):
        raise PairError(
            f"The critic in {folder} ({type(model).__name__}) reads ahead: the reward of a token changes with the "
            "tokens after it. A critic has to be a causal model (Llama, Qwen2, …)."
        )
