"""What a job records, against a real MLflow store."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest

from irlops.errors import PreemptedError, UnavailableError
from irlops.registry.client import open_client
from irlops.registry.tracking import TrainingRun, open_training_run
from support.mlflow_store import empty_mlflow_database, tracking_uri  # noqa: F401 - fixtures

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:mlflow")


@pytest.fixture
def uri(tracking_uri: str) -> str:  # noqa: F811
    return tracking_uri


def open_run(folder: Path, uri: str, **options: Any) -> TrainingRun:
    return open_training_run(folder, experiment="irlops", run_name="airl-tiny", tracking_uri=uri, **options)


def recorded(uri: str, run: TrainingRun) -> Any:
    return open_client(uri).get_run(run.run_id or "")


def test_parameters_metrics_and_the_end_of_a_job_are_recorded(uri: str, tmp_path: Path) -> None:
    with open_run(tmp_path, uri) as run:
        run.log_params({"critic": {"gamma": 0.9}, "kind": "airl"})
        run.log_metrics({"reward/mean": 0.25, "kl": math.nan}, step=1)
        run.log_metrics({"reward/mean": 0.5}, step=2)
    found = recorded(uri, run)
    assert found.data.params == {"critic.gamma": "0.9", "kind": "airl"}
    assert (found.data.metrics["reward/mean"], math.isnan(found.data.metrics["kl"])) == (0.5, True)
    history = open_client(uri).get_metric_history(found.info.run_id, "reward/mean")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.25), (2, 0.5)]
    assert (found.info.status, found.info.run_name) == ("FINISHED", "airl-tiny")


def test_the_config_is_kept_without_its_secrets(uri: str, tmp_path: Path) -> None:
    with open_run(tmp_path / "run", uri) as run:
        run.log_config({"hub": {"hf_token": "hush"}, "seed": 3})
    found = recorded(uri, run)
    config = Path(found.info.artifact_uri, "config.yaml").read_text()
    assert "hush" not in config + str(found.data.params)
    assert "seed: 3" in config


def test_a_dataset_is_recorded_by_its_digest(uri: str, tmp_path: Path) -> None:
    digest = "sha256:" + "ab" * 32
    with open_run(tmp_path, uri) as run:
        run.log_dataset("gsm8k", digest, source="openai/gsm8k", num_rows=7473, context="train")
    found = recorded(uri, run)
    dataset = found.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("gsm8k", ("ab" * 32)[:36])
    assert json.loads(dataset.profile) == {"num_rows": 7473, "digest": digest}
    assert found.data.tags["data_digest.train"] == digest


def test_files_and_folders_are_kept_beside_the_run(uri: str, tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots/reward.png").write_bytes(b"png")
    (tmp_path / "report.html").write_text("<html>")
    with open_run(tmp_path / "run", uri) as run:
        run.log_artifact(tmp_path / "plots", "evaluation")
        run.log_artifact(tmp_path / "report.html")
    artifacts = Path(recorded(uri, run).info.artifact_uri)
    assert (artifacts / "evaluation/reward.png").read_bytes() == b"png"
    assert (artifacts / "report.html").exists()


def test_a_restarted_job_goes_on_in_the_same_run(uri: str, tmp_path: Path) -> None:
    first = open_run(tmp_path, uri)
    first.log_params({"seed": 1, "rounds": 10})
    first.log_metrics({"loss": 1.0}, step=1)
    with pytest.raises(PreemptedError), first:
        raise PreemptedError("asked to stop")
    assert recorded(uri, first).info.status == "KILLED"
    with open_run(tmp_path, uri) as second:
        assert recorded(uri, second).info.status == "RUNNING"
        second.log_params({"seed": 1, "rounds": 20})  # MLflow never changes a parameter
        second.log_metrics({"loss": 0.5}, step=2)
    found = recorded(uri, second)
    assert second.run_id == first.run_id
    assert (found.data.params["rounds"], found.data.tags["resumed.rounds"]) == ("10", "20")
    assert (found.data.metrics["loss"], found.info.status) == (0.5, "FINISHED")


def test_a_failed_job_says_why(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_run(tmp_path, uri) as run:
        _ = 1 / 0
    found = recorded(uri, run)
    assert (found.info.status, found.data.tags["error"]) == ("FAILED", "ZeroDivisionError: division by zero")


def test_a_run_that_the_server_lost_begins_anew(uri: str, tmp_path: Path) -> None:
    (tmp_path / "mlflow-run.json").write_text(json.dumps({"run_id": "0" * 32}))
    with open_run(tmp_path, uri) as run:
        pass
    assert run.run_id != "0" * 32
    assert recorded(uri, run).info.status == "FINISHED"


def test_a_server_that_is_down_at_the_start_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"127.0.0.1:9 does not answer\. Start it, or correct"):
        open_run(tmp_path, "http://127.0.0.1:9")


def test_without_a_tracking_uri_nothing_is_recorded_and_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    caplog.set_level(logging.INFO, logger="irlops")
    with open_training_run(tmp_path, experiment="irlops", run_name="x") as run:
        run.log_config({"a": 1})
        run.log_metrics({"loss": 1.0}, step=1)
    assert (run.is_recording, run.run_id, list(tmp_path.iterdir())) == (False, None, [])
    assert len(caplog.messages) == 1
    assert "MLFLOW_TRACKING_URI is not set" in caplog.messages[0]


def test_only_rank_zero_records(uri: str, tmp_path: Path) -> None:
    with open_run(tmp_path, uri, rank=1) as run:
        run.log_metrics({"loss": 1.0}, step=1)
    assert not run.is_recording
    assert open_client(uri).get_experiment_by_name("irlops") is None
