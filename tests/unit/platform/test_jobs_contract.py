"""Settings of a job that exclude each other are refused before anything starts."""

from pathlib import Path

import pytest

from irlops.contracts.jobs import load_job, parse_job
from irlops.errors import ConfigError
from support.miniature_jobs import miniature


def test_sft_with_sharded_weights_can_not_check_held_out_questions_meanwhile():
    with pytest.raises(ConfigError) as refused:
        parse_job(miniature("sft", sharding="fsdp"), origin="sft.yaml")
    assert str(refused.value) == (
        "sft.yaml is not a valid job file: evaluate_every: 6 can't go with sharding: fsdp; solutions of held-out questions "
        "are sampled from whole weights. Set evaluate_every: 0 and run an evaluate job afterwards, or sharding: ddp. "
        "The keys are described in docs/jobs.md."
    )


@pytest.mark.parametrize("changes", [{"sharding": "fsdp", "evaluate_every": 0}, {"sharding": "ddp"}])
def test_either_alone_is_fine(changes: dict):
    assert parse_job(miniature("sft", **changes), origin="sft.yaml").kind == "sft"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"batch_sise": 8}, "batch_sise: unknown key, did you mean batch_size? (seen: 8)"),
        ({"checkpoints": {"interval": 5}}, "checkpoints.interval: unknown key, known there are every, keep (seen: 5)"),
        ({"model": {"lora": {"rang": 8}}}, "model.lora.rang: unknown key, did you mean rank? (seen: 8)"),
        ({"zzz": 1}, "zzz: unknown key (seen: 1)"),
    ],
    ids=["one letter off", "another word", "in a section that may be absent", "nothing like it"],
)
def test_an_unknown_key_is_named_with_the_one_that_was_probably_meant(changes: dict, told: str):
    with pytest.raises(ConfigError) as refused:
        parse_job(miniature("sft", **changes), origin="sft.yaml")
    assert str(refused.value) == (f"sft.yaml is not a valid job file: {told}. The keys are described in docs/jobs.md.")


def test_a_file_that_breaks_off_is_told_by_line_and_column(tmp_path: Path):
    (tmp_path / "job.yaml").write_text("kind: sft\ndata: {name: arithmetic\nseed: 1\n")
    with pytest.raises(ConfigError) as refused:
        load_job(tmp_path / "job.yaml")
    assert str(refused.value).endswith("job.yaml is not YAML: line 3, column 5: expected ',' or '}', but got ':'.")


def test_a_wrong_value_is_named_with_its_place_and_what_was_seen():
    with pytest.raises(ConfigError, match=r"job file: checkpoints.every: Input should be .* \(seen: 0\)\. The keys"):
        parse_job(miniature("sft", checkpoints={"every": 0}), origin="sft.yaml")
