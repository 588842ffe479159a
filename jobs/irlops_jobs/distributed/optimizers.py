"""Optimizers and learning-rate schedules, by configuration."""

from __future__ import annotations

import math

import torch
from torch import nn

from irlops.contracts.jobs import OptimizerConfig
from irlops_jobs.distributed.muon import MuonByShape


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """One AdamW, or Muon for hidden matrices beside AdamW for everything else.

    Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) orthogonalises the update of a matrix; vectors,
    embeddings and heads stay with AdamW, as its author advises. ``match_rms_adamw`` lets both share a learning rate
    (Liu et al. 2025, arXiv 2502.16982).
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if config.name == "adamw":
        return [_adamw([parameter for _, parameter in named], config)]
    matrices = [parameter for name, parameter in named if _is_hidden_matrix(name, parameter)]
    others = [parameter for name, parameter in named if not _is_hidden_matrix(name, parameter)]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(
            MuonByShape(
                matrices, lr=config.learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    if others:  # low-rank adapters are matrices and nothing else
        optimizers.append(_adamw(others, config))
    return optimizers


def _adamw(parameters: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)


def _is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and not any(part in name for part in ("embed", "lm_head", "score", "potential"))


def learning_rate_factor(step: int, config: OptimizerConfig, num_steps: int) -> float:
    """Of the configured learning rate at ``step`` (from 0): linear warm-up, then constant, linear or cosine to a tenth."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps))
    match config.schedule:
        case "linear":
            return 1 - 0.9 * progress
        case "cosine":
            return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))
        case _:
            return 1.0
