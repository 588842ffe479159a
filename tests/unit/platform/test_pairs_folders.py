"""What a model folder has to hold before it may become half of a pair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from irlops.errors import PairError
from irlops.registry.folders import check_pair_folders, inspect_model_folder, tokenizer_digest
from support.pair_folders import WORDS, write_critic, write_pair, write_policy, write_tokenizer


def test_a_policy_and_a_critic_of_one_run_are_a_pair(tmp_path: Path) -> None:
    policy, critic = write_pair(tmp_path)
    folders = inspect_model_folder(policy, "policy"), inspect_model_folder(critic, "critic")
    check_pair_folders(*folders)
    assert [folder.architecture for folder in folders] == ["LlamaForCausalLM", "LlamaForTokenClassification"]
    assert folders[0].num_tokens == 6


def test_different_tokenizers_are_refused_with_what_differs(tmp_path: Path) -> None:
    policy = inspect_model_folder(write_policy(tmp_path / "policy"), "policy")
    critic = inspect_model_folder(write_critic(tmp_path / "critic", words=(*WORDS, "four")), "critic")
    with pytest.raises(PairError, match=r"different tokenizers.*6 and 7 tokens.*Register a policy and a critic"):
        check_pair_folders(policy, critic)


def test_the_same_words_under_other_ids_are_another_tokenizer(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "a")
    write_tokenizer(tmp_path / "b", words=("<pad>", "<s>", "</s>", "two", "one", "three"))
    assert tokenizer_digest(tmp_path / "a") != tokenizer_digest(tmp_path / "b")


def test_another_end_of_text_token_is_another_tokenizer(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "a")
    write_tokenizer(tmp_path / "b", eos_token="three")
    assert tokenizer_digest(tmp_path / "a") != tokenizer_digest(tmp_path / "b")


def test_padding_truncation_and_how_a_token_is_written_do_not_change_the_tokenizer(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "a")
    write_tokenizer(tmp_path / "b", eos_token={"content": "</s>", "lstrip": False}, pad_token="<pad>")
    tokenizer = json.loads((tmp_path / "b/tokenizer.json").read_text()) | {"truncation": {"max_length": 8}}
    (tmp_path / "b/tokenizer.json").write_text(json.dumps(tokenizer, indent=2))
    assert tokenizer_digest(tmp_path / "a") == tokenizer_digest(tmp_path / "b")


def test_a_missing_half_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PairError, match=r"critic is missing: there is no folder .*/critic\. A pair needs both"):
        inspect_model_folder(tmp_path / "critic", "critic")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_an_incomplete_folder_is_refused_by_the_name_of_what_it_lacks(tmp_path: Path, name: str) -> None:
    (write_policy(tmp_path) / name).unlink()
    with pytest.raises(PairError, match=f"incomplete: it has no {name}"):
        inspect_model_folder(tmp_path, "policy")


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    policy = write_policy(tmp_path)
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (policy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(PairError, match=r"missing shards|model-00002-of-00002"):
        inspect_model_folder(policy, "policy")


def test_weights_cut_short_by_a_full_disk_are_refused(tmp_path: Path) -> None:
    weights = write_policy(tmp_path) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(PairError, match=f"torn: {len(whole) - 10} bytes instead of {len(whole)}"):
        inspect_model_folder(tmp_path, "policy")


@pytest.mark.parametrize(
    "content", [b"", b"not weights at all", b"\x05\0\0\0\0\0\0\0{{{{{"], ids=["empty", "text", "header"]
)
def test_weights_that_are_no_safetensors_are_refused(tmp_path: Path, content: bytes) -> None:
    (write_policy(tmp_path) / "model.safetensors").write_bytes(content)
    with pytest.raises(PairError, match="not a safetensors file"):
        inspect_model_folder(tmp_path, "policy")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "optimizer.pt", "extra/state.PKL", "modeling_custom.py"])
def test_files_that_can_run_code_are_refused(tmp_path: Path, name: str) -> None:
    write_policy(tmp_path)
    (tmp_path / "extra").mkdir()
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(PairError, match=rf"can run code when loaded: {name}"):
        inspect_model_folder(tmp_path, "policy")


def test_a_model_that_asks_for_remote_code_is_refused(tmp_path: Path) -> None:
    config = json.loads((write_policy(tmp_path) / "config.json").read_text()) | {"auto_map": {"AutoModel": "x.Y"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PairError, match="remote code"):
        inspect_model_folder(tmp_path, "policy")


def test_a_critic_with_two_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PairError, match="has 2 labels; a critic gives one reward per token"):
        inspect_model_folder(write_critic(tmp_path, num_labels=2), "critic")


def test_swapped_folders_are_refused_with_the_guess_that_they_are_swapped(tmp_path: Path) -> None:
    with pytest.raises(PairError, match=r"LlamaForCausalLM.*ForTokenClassification.*swapped\?"):
        inspect_model_folder(write_policy(tmp_path), "critic")


def test_other_weights_have_another_digest_and_equal_ones_the_same(tmp_path: Path) -> None:
    digests = [
        inspect_model_folder(write_policy(tmp_path / name, weights=weights), "policy").weights_digest
        for name, weights in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert digests[0] == digests[1] != digests[2]
