"""Layers on top of a copied policy, so that its critic can read what the policy itself expected.

Whether a token is right shows in how it compares with what the policy would have written there. That prediction is
complete only in the policy's last layer, one token earlier, where no layer of a plain copy can read it any more: a
copy has to learn all arithmetic a second time. With a layer or two on top it is one attention step away.
The result is still a stock model of the same architecture, only deeper, and vLLM serves it as it is.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel


def add_layers(critic: PreTrainedModel, num_layers: int, *, seed: int) -> PreTrainedModel:
    """Append decoder layers that start as the identity: their output projections are 0.

    Args:
        critic: a token classifier of a decoder architecture; changed in place.
        seed: of the new layers' other weights.
    """
    backbone = getattr(critic, critic.base_model_prefix)
    layers: nn.ModuleList = backbone.layers
    like = layers[-1]
    if getattr(critic.config, "layer_types", None):  # a new layer looks its kind of attention up there
        critic.config.layer_types = [*critic.config.layer_types, *[critic.config.layer_types[-1]] * num_layers]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(num_layers):
            layers.append(_fresh_layer(like, critic, index=len(layers)))
    critic.config.num_hidden_layers = len(layers)
    return critic


def freeze_below(critic: PreTrainedModel, num_layers: int) -> PreTrainedModel:
    """Leave only the last ``num_layers`` decoder layers, the final norm and the head to be trained; changed in place."""
    backbone = getattr(critic, critic.base_model_prefix)
    frozen = [backbone.get_input_embeddings(), *backbone.layers[:-num_layers]]
    for module in frozen:
        module.requires_grad_(False)
    return critic


def _fresh_layer(like: nn.Module, critic: PreTrainedModel, *, index: int) -> nn.Module:
    layer = type(like)(critic.config, index).to(next(like.parameters()).dtype)  # pyright: ignore[reportCallIssue] - a decoder layer
    layer.apply(critic._init_weights)
    for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
        nn.init.zeros_(layer.get_parameter(name))
    return layer
