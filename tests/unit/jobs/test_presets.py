"""Presets: what a name stands for, and its sizes."""

import subprocess
import sys

import pytest

from irlops.errors import ConfigError
from irlops_jobs.models.presets import PRESETS, find_preset, model_facts


def test_an_unknown_preset_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"'gpt' is unknown.*tiny, smollm2-135m, llama3\.1-8b"):
        find_preset("gpt")


@pytest.mark.parametrize(
    ("name", "policy", "critic"),
    [
        ("llama3.1-8b", "meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.2-1B-Instruct"),
        ("llama3.2-3b", "meta-llama/Llama-3.2-3B-Instruct", "meta-llama/Llama-3.2-1B-Instruct"),
        ("qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"),
        ("qwen2.5-3b", "Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"),
    ],
)
def test_the_published_pairs_and_their_equal_size_variants_are_there(name, policy, critic):
    assert (find_preset(name).policy.hub_id, find_preset(name).critic.hub_id) == (policy, critic)
    equal = find_preset(f"{name}-equal")
    assert equal.shares_backbone
    assert equal.policy.hub_id == policy


def test_every_hub_model_is_pinned_to_a_commit_and_has_its_sizes():
    for preset in PRESETS.values():
        for source in (preset.policy, preset.critic):
            if source.kind != "generated":
                assert len(source.revision or "") == 40
                assert source.name in model_facts()


def test_a_revision_is_a_setting():
    source = find_preset("qwen2.5-3b").policy
    assert source.with_revision("abc").label == "Qwen/Qwen2.5-3B-Instruct@abc"
    assert source.with_revision(None) == source


@pytest.mark.parametrize("name", list(model_facts()))
def test_the_sizes_of_a_model_add_up_to_its_published_parameter_count(name):
    facts = model_facts()[name]
    width, inner, head = facts["hidden_size"], facts["intermediate_size"], facts["head_dim"]
    query, key_value = facts["num_attention_heads"] * head, facts["num_key_value_heads"] * head
    layer = 2 * width * query + 2 * width * key_value + 3 * width * inner + 2 * width
    if facts["model_type"] == "qwen2":
        layer += query + 2 * key_value  # biases of the three projections
    embeddings = facts["vocab_size"] * width * (1 if facts["tie_word_embeddings"] else 2)
    assert embeddings + facts["num_hidden_layers"] * layer + width == facts["num_parameters"]


def test_presets_are_read_without_loading_torch():
    code = "import sys, irlops_jobs.models.presets as p; p.model_facts(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
