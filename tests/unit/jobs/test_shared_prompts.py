"""Rows that attend to a prompt together see what each would see alone."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from irlops.contracts.jobs import RolloutConfig
from irlops.errors import ConfigError
from irlops_jobs.rollouts.shared_prompts import SharedPrompts
from irlops_jobs.rollouts.transformers_engine import TransformersEngine

PROMPTS = [(1, 5, 6), (1, 7, 8, 9, 3, 4, 5), (1, 9)]
END = 2
SHAPE = {
    "vocab_size": 12,  # so small that rows end all the time
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def _model(kind, config, num_key_value_heads):
    torch.manual_seed(0)
    return kind(config(**SHAPE, num_key_value_heads=num_key_value_heads)).eval()


@pytest.mark.parametrize(
    "model",
    [
        _model(LlamaForCausalLM, LlamaConfig, 4),
        _model(LlamaForCausalLM, LlamaConfig, 2),
        _model(LlamaForCausalLM, LlamaConfig, 1),
        _model(Qwen2ForCausalLM, Qwen2Config, 2),
    ],
    ids=["a key head for each query head", "two query heads to a key head", "one key head", "Qwen2"],
)
def test_every_sample_has_the_log_probabilities_of_a_pass_over_it_alone(model):
    before = model.config._attn_implementation
    engine = TransformersEngine(model, RolloutConfig(max_new_tokens=24), eos_token_id=END)
    samples = engine.sample(PROMPTS, num_samples=5, seeds=[3, 4, 5])
    assert model.config._attn_implementation == before
    lengths = {len(sample.token_ids) for group in samples for sample in group}
    assert min(lengths) < 4
    assert max(lengths) == 24  # rows left in between, more of one prompt than of another
    for prompt, group in zip(PROMPTS, samples, strict=True):
        for sample in group:
            ids = torch.tensor([[*prompt, *sample.token_ids]])
            with torch.no_grad():
                logprobs = model(ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
            expected = logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0]
            assert torch.allclose(torch.tensor(sample.logprobs), expected, atol=1e-4)


def test_a_prompt_whose_rows_have_all_ended_stays_without_rows():
    cache = _model(LlamaForCausalLM, LlamaConfig, 2)(torch.tensor([[1, 5], [1, 7], [1, 9]])).past_key_values
    prompts = SharedPrompts.of(cache, torch.ones(3, 2, dtype=torch.bool), torch.tensor([0, 0, 1, 1, 2, 2]))
    kept = prompts.keep(torch.tensor([True, False, False, False, True, True]))
    assert kept.prompt_S.tolist() == [0, 2, 2]
    assert kept.row_QN[kept.prompt_S, kept.slot_S].tolist() == [0, 1, 2]
    assert len(kept.keys) == len(kept.values) == 2


def test_a_layer_with_a_sliding_window_is_refused():
    windowed = Qwen2Config(
        **SHAPE, num_key_value_heads=2, use_sliding_window=True, sliding_window=4, max_window_layers=0
    )
    engine = TransformersEngine(Qwen2ForCausalLM(windowed).eval(), RolloutConfig(max_new_tokens=24), eos_token_id=END)
    with pytest.raises(ConfigError, match="sees the last 4 tokens only"):
        engine.sample(PROMPTS, num_samples=5, seeds=[3, 4, 5])
