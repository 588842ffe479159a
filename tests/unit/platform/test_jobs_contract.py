"""Settings of a job that exclude each other are refused before anything starts."""

import pytest

from irlops.contracts.jobs import parse_job
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


def test_a_wrong_value_is_named_with_its_place_and_what_was_seen():
    with pytest.raises(ConfigError, match=r"job file: checkpoints.every: Input should be .* \(seen: 0\)\. The keys"):
        parse_job(miniature("sft", checkpoints={"every": 0}), origin="sft.yaml")
