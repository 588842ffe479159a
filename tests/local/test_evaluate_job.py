"""The evaluation job for real: models, samples, files and MLflow; one process or two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from irlops.contracts.evaluation import Evaluation
from irlops.contracts.pair import summarise_evaluation
from irlops.errors import ConfigError, PairError
from irlops.registry.client import open_client
from irlops_jobs.models.tiny import build_tiny_critic, build_tiny_policy, build_tiny_tokenizer
from support.miniature_jobs import launch, run_here
from support.mlflow_store import empty_mlflow_database, tracking_uri  # noqa: F401 - fixtures
from support.tiny_models import save_tiny_policy

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning:mlflow")]

JOB: dict[str, Any] = {
    "kind": "evaluate",
    "run_name": "mini-evaluate",
    "data": {"name": "arithmetic", "num_train": 8, "num_dev": 8, "num_test": 6, "min_steps": 1, "max_steps": 2},
    "model": {"preset": "tiny", "policy_from": "mini/policy", "critic_from": "mini/critic", "max_length": 160},
    "compare": {"untrained": None},
    "samples_per_problem": 4,
    "num_dev_problems": 8,
    "num_corrupted": 6,
    "bootstrap_resamples": 100,
    "rollouts": {"max_new_tokens": 24},
}


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("state")
    for half, model in (("policy", build_tiny_policy(1)), ("critic", build_tiny_critic(2))):
        model.save_pretrained(folder / "mini" / half)
        build_tiny_tokenizer().save_pretrained(folder / "mini" / half)
    save_tiny_policy(folder / "stranger" / "policy")
    return folder


def evaluation_of(run_dir: Path, row: str = "airl") -> Evaluation:
    return Evaluation.model_validate_json((run_dir / "evaluation" / f"evaluation-{row}.json").read_bytes())


def test_two_processes_measure_what_one_measures(state_dir: Path):
    one = evaluation_of(run_here(JOB, state_dir))
    ended = launch({**JOB, "run_name": "mini-evaluate-2"}, state_dir, num_processes=2)
    assert ended.code == 0, ended.output
    two = evaluation_of(state_dir / "mini-evaluate-2")
    assert two.samples == one.samples
    assert summarise_evaluation(two.body()).metrics == pytest.approx(summarise_evaluation(one.body()).metrics, abs=1e-5)
    assert two.calibration.model_dump() == pytest.approx(one.calibration.model_dump(), abs=1e-4)
    assert "untrained solves 6 test problems" in ended.output


def test_numbers_and_files_reach_mlflow(
    state_dir: Path,
    tracking_uri: str,  # noqa: F811 - the fixture
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    run_dir = run_here({**JOB, "run_name": "mini-evaluate-3"}, state_dir)
    client = open_client(tracking_uri)
    run = client.get_run(json.loads((run_dir / "mlflow-run.json").read_text())["run_id"])
    evaluation = evaluation_of(run_dir)
    assert run.data.metrics["airl/pass_at_k.1"] == evaluation.pass_at_k[1].mean
    assert run.data.metrics["airl/critic.ece"] == pytest.approx(evaluation.critic.ece)
    assert "untrained/selectors.reward.1" in run.data.metrics
    names = {Path(file.path).name for file in client.list_artifacts(run.info.run_id, "evaluation")}
    assert {"evaluation.json", "report.html", "heatmaps.png", "selectors.png", "calibration.json"} <= names


def test_a_policy_that_solves_nothing_has_null_for_what_is_not_defined(state_dir: Path):
    run_dir = run_here({**JOB, "run_name": "mini-evaluate-4"}, state_dir)
    body = json.loads((run_dir / "evaluation" / "evaluation.json").read_text())
    assert body["pass_at_k"]["1"]["mean"] == 0.0
    assert body["critic"]["auroc"] is None
    assert body["first_error"]["num_traces"] == 6
    assert (run_dir / "evaluation" / "report.html").stat().st_size > 10_000


def test_without_a_critic_the_job_says_what_to_set(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"names no critic. Set model.critic_from"):
        run_here({**JOB, "model": {"preset": "tiny"}}, tmp_path)


def test_a_row_with_another_tokenizer_is_refused(state_dir: Path):
    with pytest.raises(PairError, match=r"compare names stranger/policy, which uses another tokenizer \(261 tokens\)"):
        run_here({**JOB, "compare": {"stranger": "stranger/policy"}}, state_dir)
