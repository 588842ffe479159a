"""The job that ``irlops evaluate`` asks for; tests/local runs one."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from irlops.cli.evaluate import _table, make_job
from irlops.cli.main import app
from irlops.contracts.pair import Pair, summarise_evaluation
from irlops.errors import ConfigError
from irlops.registry.pairs import pair_in_folder
from support.pair_folders import evaluation_body, write_pair


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    policy, _ = write_pair(tmp_path)
    config = json.loads((policy / "config.json").read_text()) | {"max_position_embeddings": 512}
    (policy / "config.json").write_text(json.dumps(config))
    return pair_in_folder(tmp_path)


def test_options_become_a_job_of_both_halves(pair: Pair) -> None:
    job = make_job(pair, "gsm8k", 8, 100, None, 0.7, seed=3)
    assert (job.model.policy_from, job.model.critic_from) == (pair.policy.uri, pair.critic.uri)
    assert (job.data.name, job.data.num_test, job.samples_per_problem, job.seed) == ("gsm8k", 100, 8, 3)
    assert (job.rollouts.max_new_tokens, job.rollouts.temperature) == (320, 0.7)
    assert job.model.max_length == 512  # 320 and room for the question would be more than the model reads


def test_a_solution_longer_than_the_context_is_refused(pair: Pair) -> None:
    with pytest.raises(ConfigError, match="512 new tokens do not fit into the policy's context of 512"):
        make_job(pair, "arithmetic", 8, None, 512, 1.0, seed=0)


def test_an_unknown_data_set_is_refused_with_the_known_ones(tmp_path: Path, pair: Pair) -> None:
    arguments = ["evaluate", "--pair", str(tmp_path), "--dataset", "math", "--output-dir", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, "Choose arithmetic or gsm8k" in result.output) == (2, True)


def test_the_table_also_has_the_strict_published_answer_rule() -> None:
    strict = {"pass_at_1": {"mean": 0.4}, "disagreements": 3}
    screen = Console(file=io.StringIO(), width=100)
    screen.print(_table(summarise_evaluation(evaluation_body() | {"strict": strict})))
    printed = screen.file
    assert isinstance(printed, io.StringIO)
    rows = [line.split() for line in printed.getvalue().splitlines()]
    assert ["strict.pass_at_1", "0.400"] in rows
    assert not any(row[0].startswith("strict.disagreements") for row in rows)
