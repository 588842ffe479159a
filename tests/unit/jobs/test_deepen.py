"""Layers added on top of a copied policy."""

import torch
from transformers import Qwen2Config, Qwen2ForTokenClassification

from irlops_jobs.models.deepen import add_layers, freeze_below
from irlops_jobs.models.tiny import build_tiny_critic


def test_added_layers_start_as_the_identity():
    critic = build_tiny_critic(seed=0).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = critic(ids).logits
        after = add_layers(critic, 2, seed=1)(ids).logits
    assert torch.equal(before, after)


def test_layers_are_added_to_an_architecture_whose_layers_have_kinds_and_fewer_key_heads():
    config = Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_labels=1,
    )  # fmt: skip
    critic = Qwen2ForTokenClassification(config).eval()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = critic(ids).logits
        after = add_layers(critic, 2, seed=1)(ids).logits
    assert torch.equal(before, after)
    assert critic.config.layer_types == ["full_attention"] * 4


def test_only_the_added_layers_the_norm_and_the_head_are_trained():
    critic = freeze_below(add_layers(build_tiny_critic(seed=0), 2, seed=1), 2)
    trained = {
        name.split(".")[1] + "." + name.split(".")[2]
        for name, p in critic.named_parameters()
        if p.requires_grad and "layers" in name
    }
    others = {name for name, p in critic.named_parameters() if p.requires_grad and "layers" not in name}
    assert trained == {"layers.4", "layers.5"}
    assert others == {"model.norm.weight", "score.weight", "score.bias"}


def test_no_gradient_reaches_the_copied_layers():
    critic = freeze_below(add_layers(build_tiny_critic(seed=0), 1, seed=1), 1)
    critic(torch.tensor([[5, 6, 7]])).logits.sum().backward()
    assert critic.model.embed_tokens.weight.grad is None
    assert critic.model.layers[0].mlp.down_proj.weight.grad is None
    assert critic.score.weight.grad is not None
