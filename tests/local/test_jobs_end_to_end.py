"""Jobs from their file to what they leave: adapters, roll-back, vLLM's rollouts, and what is refused before it costs time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

from irlops.contracts.exit_codes import exit_code_for
from irlops.errors import ConfigError, DataError, PairError, UnavailableError
from support.miniature_jobs import launch, miniature, recorded, run_here, weights
from support.tiny_models import save_tiny_critic

pytestmark = pytest.mark.slow

LORA = {"lora": {"rank": 4, "alpha": 16}}
ADDED_LAYERS = {"critic_from": "policy", "critic_extra_layers": 2, "critic_trains": "added_layers"}
CALM = {"min_auroc": 0.0, "max_truncated": 1.0, "min_reward_std": 0.0, "max_accuracy_drop": 1.0}


def test_adapters_are_trained_and_exported_merged_for_stock_transformers(tmp_path: Path):
    sft = run_here(miniature("sft", model=LORA, optimizer={"learning_rate": 0.02}), tmp_path)
    airl = run_here(
        miniature("airl", model={**LORA, "policy_from": "mini-sft/policy", "critic_from": "policy"}), tmp_path
    )
    policy, policy_info = AutoModelForCausalLM.from_pretrained(airl / "policy", output_loading_info=True)
    critic, critic_info = AutoModelForTokenClassification.from_pretrained(airl / "critic", output_loading_info=True)
    for info in (policy_info, critic_info):
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
    assert critic.config.num_labels == 1
    ids = AutoTokenizer.from_pretrained(airl / "policy")("2 + 3 =", return_tensors="pt").input_ids
    assert policy(ids).logits.isfinite().all()
    assert critic(ids).logits.shape == (1, ids.shape[1], 1)
    before, after = weights(sft), weights(airl)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) == 4 * 7  # seven projections in each of four layers, and nothing else
    assert all("_proj" in name for name in moved)


def test_a_collapse_publishes_the_last_healthy_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    changes = {"evaluate_every": 1, "policy": {"optimizer": {"learning_rate": 0.01}}}
    guarded = {**CALM, "max_kl": 1e-4, "patience": 1, "action": "rollback"}
    # KL is read before a round's step: 0 in round 2, the first in which the policy moves, and above the limit in round 3.
    collapsed = run_here(miniature("airl", **changes, collapse=guarded), tmp_path / "guarded")
    assert "training collapsed (KL to the warm start" in capsys.readouterr().out
    assert recorded(collapsed)[3]["collapse/rolled_back"] == 1.0
    healthy = run_here(
        miniature("airl", **changes, num_rounds=2, collapse={**CALM, "action": "warn"}), tmp_path / "two"
    )
    for half in ("policy", "critic"):
        published, expected = weights(collapsed, half), weights(healthy, half)
        assert all(torch.equal(published[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("num_processes", "sharding", "critic"),
    [(1, "ddp", {}), (2, "fsdp", {}), (2, "fsdp", ADDED_LAYERS)],
    ids=[
        "one process",
        "two processes with sharded weights",
        "sharded weights, of the critic added layers alone learn",
    ],
)
def test_airl_samples_with_vllm_from_the_weights_it_trains(
    tmp_path: Path, num_processes: int, sharding: str, critic: dict[str, Any]
):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    document = miniature("airl", num_rounds=3, sharding=sharding, rollouts={"engine": "vllm"}, model=critic)
    ended = launch(document, tmp_path, num_processes=num_processes)  # returns when no process of it holds its output
    assert ended.code == 0, ended.output
    rounds = recorded(tmp_path / "mini-airl")
    assert list(rounds) == [0, 1, 2, 3]
    # Nats between vLLM's log-probabilities and the trainer's, for samples drawn after the weights moved in round 2.
    assert rounds[3]["policy/largest_gap"] < 1e-3
    assert rounds[3]["policy/kl"] > 1e-4
    assert (tmp_path / "mini-airl" / "critic" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"model": {"policy_from": "sft-tiny/policy"}},
            ConfigError,
            r"model.policy_from of mini-airl is sft-tiny/policy",
        ),
        ({"model": {"critic_from": "other/critic"}}, ConfigError, r"model.critic_from of mini-airl is other/critic"),
        ({"model": {"max_length": 16}}, DataError, r"None of 48 demonstrations fits in model.max_length 16"),
        ({"data": {"name": "gsm8k", "source": "nowhere", "min_steps": 2, "max_steps": 4}}, DataError, "nowhere"),
    ],
    ids=["no policy folder", "no critic folder", "too short for any demonstration", "no data"],
)
def test_what_a_job_lacks_is_said_with_its_exit_code(tmp_path: Path, changes, error, message):
    with pytest.raises(error, match=message) as refused:
        run_here(miniature("airl", **changes), tmp_path)
    assert exit_code_for(refused.value) == 2


def test_a_critic_with_another_tokenizer_is_refused(tmp_path: Path):
    save_tiny_critic(tmp_path / "other" / "critic")
    with pytest.raises(PairError, match="another tokenizer"):
        run_here(miniature("airl", model={"critic_from": "other/critic"}), tmp_path)


def test_a_tracking_server_that_is_down_at_the_start_is_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9") as failed:
        run_here(miniature("sft"), tmp_path)
    assert exit_code_for(failed.value).is_retryable


def test_a_mistyped_key_ends_the_pod_for_good_before_torch_is_loaded(tmp_path: Path):
    ended = launch({**miniature("sft"), "num_stpes": 3}, tmp_path, num_processes=2)
    assert ended.code == 2
    assert "num_stpes: unknown key, did you mean num_steps?" in ended.output


def test_a_job_whose_start_is_missing_ends_the_pod_before_torch_is_loaded(tmp_path: Path):
    document = miniature("airl", model={"policy_from": "mini-sft/policy"})
    ended = launch(document, tmp_path, num_processes=2)
    assert ended.code == 2
    assert ended.output == (
        f"Error: model.policy_from of mini-airl is mini-sft/policy, but {tmp_path}/mini-sft/policy holds no model (no "
        "config.json). Run the job that writes it first, or correct the path: it is relative to IRLOPS_STATE_DIR.\n"
    )


def test_a_tracking_server_that_is_down_ends_the_pod_once_instead_of_seven_times(tmp_path: Path):
    nobody = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "PET_MAX_RESTARTS": "6"}
    ended = launch(miniature("sft"), tmp_path, num_processes=1, **nobody)
    assert ended.code == 200
    assert ended.output.count("http://127.0.0.1:9 does not answer") == 1
