"""The dry run of a job: shapes without weights, memory without a device."""

import pytest
import torch
import yaml

from irlops.contracts.jobs import LoraConfig, parse_job
from irlops.errors import ConfigError
from irlops_jobs.models import presets
from irlops_jobs.models.load import load_policy, with_lora
from irlops_jobs.models.memory_plan import GIB, main, plan_memory
from irlops_jobs.models.presets import PRESETS, TINY, find_preset
from irlops_jobs.models.shapes import activation_bytes_per_token, check_shapes


def _job(kind="airl", preset="llama3.1-8b", sharding="ddp", engine="transformers", lora=None, **settings):
    document = {
        "kind": kind,
        "run_name": "dry",
        "data": {"name": "gsm8k"},
        "model": {"preset": preset, "dtype": "bfloat16", "max_length": 1024, "lora": lora},
        "sharding": sharding,
        **({"num_steps": 1, "optimizer": {"learning_rate": 1e-4}} if kind == "sft" else {}),
        **(
            {"num_rounds": 1, "prompts_per_round": 16, "rollouts": {"engine": engine}}
            if kind in ("airl", "grpo")
            else {}
        ),
        **settings,
    }
    return parse_job(document, origin="test")


def _part(plan, words):
    return sum(part.num_bytes for part in plan.parts if words in part.what)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_preset_runs_through_on_shapes_alone(preset):
    assert check_shapes(preset.policy, is_critic=False) > 0
    assert check_shapes(preset.critic, is_critic=True) > 0


def test_sizes_that_do_not_add_up_are_refused(monkeypatch):
    source = find_preset("qwen2.5-3b").critic
    wrong = {source.name: {**presets.model_facts()[source.name], "intermediate_size": 4865}}
    monkeypatch.setattr("irlops_jobs.models.shapes.model_facts", lambda: wrong)
    with pytest.raises(
        ConfigError, match=r"Qwen2\.5-0\.5B-Instruct@7ae557604adf are wrong: it has .*published are 494,032,768"
    ):
        check_shapes(source, is_critic=False)


def test_activations_are_what_a_real_backward_pass_keeps():
    model = load_policy(TINY, cache_dir=None)
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept = {}
    ids = torch.randint(10, 400, (2, 128))
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.setdefault(tensor.untyped_storage().data_ptr(), tensor), lambda tensor: tensor
    ):
        output = model.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    real = sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in weights) / ids.numel()
    assert output.last_hidden_state.shape == (2, 128, 128)
    planned = activation_bytes_per_token(TINY, is_critic=False, dtype=torch.float32, lora=None)
    assert planned == pytest.approx(real, rel=0.1)


def test_half_precision_weights_take_two_bytes_each():
    plan = plan_memory(_job("grpo"), num_ranks=1)
    assert _part(plan, "policy: 8.03 billion weights") == 2 * 8_030_261_248
    assert _part(plan, "policy: gradients") == 2 * 8_030_261_248
    assert _part(plan, "Adam's two moments") == 4 * 8_030_261_248
    assert _part(plan, "frozen copy for the KL term") == 2 * 8_030_261_248


def test_adapters_are_counted_as_peft_makes_them_and_need_no_frozen_copy():
    lora = LoraConfig(rank=4)
    adapted = with_lora(load_policy(TINY, cache_dir=None), lora, seed=0)
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    plan = plan_memory(_job("grpo", preset="tiny", lora=lora), num_ranks=1)
    assert _part(plan, "policy: adapters of rank 4") == 4 * trained
    assert _part(plan, "frozen copy") == 0


def test_sharding_divides_weights_and_optimizer_state():
    whole, shared = (plan_memory(_job(sharding=s), num_ranks=8) for s in ("ddp", "fsdp"))
    assert _part(shared, "policy: 8.03 billion weights") == _part(whole, "policy: 8.03 billion weights") // 8
    assert _part(shared, "policy: Adam") == _part(whole, "policy: Adam") // 8


def test_keys_and_values_are_counted_for_the_sequences_of_one_rank():
    plan = plan_memory(_job(engine="vllm"), num_ranks=8)
    # 16 prompts over 8 ranks, 8 samples each: 16 sequences; 2 (K, V) * 32 layers * 8 heads * 128 * 2 bytes a token
    assert _part(plan, "keys and values") == 16 * 1024 * (2 * 32 * 8 * 128 * 2)
    assert _part(plan, "vLLM: its own weights") == 2 * 8_030_261_248


def test_a_critic_from_the_policy_is_as_large_as_the_policy():
    document = _job().model_dump(exclude_unset=True)
    document["model"]["critic_from"] = "policy"
    equal = plan_memory(parse_job(document, origin="test"), num_ranks=1)
    assert _part(equal, "critic: 7.50 billion weights") == 2 * (8_030_261_248 - 128256 * 4096 + 4096 + 1)


def test_layers_added_to_a_critic_are_counted():
    document = _job().model_dump(exclude_unset=True)
    plain = plan_memory(parse_job(document, origin="test"), num_ranks=1)
    document["model"]["critic_extra_layers"] = 2
    deeper = plan_memory(parse_job(document, origin="test"), num_ranks=1)
    # Llama 3.2 1B, one layer: 2048 * (2 * 2048 + 2 * 512 + 3 * 8192 + 2) weights of 2 bytes
    added = _part(deeper, "critic: 1.36 billion weights") - _part(plain, "critic: 1.24 billion weights")
    assert added == 2 * 2 * 2048 * (2 * 2048 + 2 * 512 + 3 * 8192 + 2)


def test_layers_that_learn_alone_have_gradients_and_take_no_adapters():
    document = _job(lora={"rank": 16}).model_dump(exclude_unset=True)
    document["model"] |= {"critic_extra_layers": 2, "critic_trains": "added_layers"}
    plan = plan_memory(parse_job(document, origin="test"), num_ranks=1)
    # Two layers as above, the final norm, and a head of 2048 weights and a bias; 2 bytes each
    learning = 2 * 2048 * (2 * 2048 + 2 * 512 + 3 * 8192 + 2) + 2048 + 2048 + 1
    assert _part(plan, "critic: gradients") == 2 * learning
    assert _part(plan, "critic: Adam") == 2 * 2 * learning
    assert _part(plan, "critic: adapters") == 0


def test_the_plan_adds_up_and_says_whether_it_fits():
    plan = plan_memory(_job("sft", preset="smollm2-135m"), num_ranks=1, device_gib=80)
    assert plan.total_bytes == sum(part.num_bytes for part in plan.parts)
    assert plan.fits
    assert f"{plan.total_bytes / GIB:.2f}  in all of 80: fits" in str(plan)


def test_the_command_says_by_its_status_that_a_job_does_not_fit(tmp_path, capsys):
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(_job().model_dump(mode="json", exclude_unset=True)))
    assert main([str(tmp_path / "job.yaml"), "--ranks", "8", "--device-gib", "24"]) == 1
    assert "does not fit" in capsys.readouterr().out
    assert main([str(tmp_path / "absent.yaml")]) == 2
    assert "No job file" in capsys.readouterr().err
