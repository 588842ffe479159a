"""``irlops demo`` before anything starts: what it is told is checked first, and nothing is touched when it is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from irlops.cli.demo import stage_overrides
from irlops.cli.main import app
from irlops.contracts.jobs import AirlJob, EvaluateJob, SftJob
from irlops.demo.jobs import find_manifests, plan_job
from irlops.errors import ConfigError


def demo(*arguments: str, home: Path) -> Any:
    return CliRunner().invoke(app, ["demo", *arguments], env={"IRLOPS_HOME": str(home)})


def test_the_shipped_manifests_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"sft-tiny.yaml", "airl-tiny.yaml", "evaluate-tiny.yaml"} <= {
        file.name for file in find_manifests(None).iterdir()
    }


@pytest.mark.parametrize(("name", "kind"), [("sft", SftJob), ("airl", AirlJob), ("evaluate", EvaluateJob)], ids=str)
def test_a_stage_runs_its_manifest_with_this_runs_seed(name: str, kind: Any) -> None:
    planned = plan_job(find_manifests(None) / f"{name}-tiny.yaml", {"seed": 7}, kind)
    assert (planned.job.seed, planned.job.data.seed) == (7, 0)  # seeds share their data


def test_two_local_workers_learn() -> None:
    assert plan_job(find_manifests(None) / "airl-tiny.yaml", {}, AirlJob).num_workers == 2


def test_the_evaluation_compares_what_the_table_shows() -> None:
    job = plan_job(find_manifests(None) / "evaluate-tiny.yaml", {}, EvaluateJob).job
    assert isinstance(job, EvaluateJob)
    assert (job.row, set(job.compare), job.samples_per_problem) == ("airl", {"untrained", "sft"}, 16)


def test_missing_manifests_are_an_error_that_names_the_option(tmp_path: Path) -> None:
    result = demo("--manifests-dir", str(tmp_path), "--output-dir", str(tmp_path / "out"), home=tmp_path / "home")
    assert (result.exit_code, "--manifests-dir manifests/training" in result.output) == (2, True)
    assert not (tmp_path / "out").exists()


def test_a_manifest_of_another_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sft-tiny.yaml runs sft; the demo needs an AirlJob"):
        plan_job(find_manifests(None) / "sft-tiny.yaml", {}, AirlJob)


def test_a_wrong_value_ends_it_before_an_earlier_demo_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".irlops-demo.json").write_text("{}")
    (tmp_path / "summary.json").write_text("{}")
    result = demo("--output-dir", str(tmp_path), "--set", "airl.num_rounds=0", home=tmp_path / "home")
    assert (result.exit_code, "num_rounds" in result.output, (tmp_path / "summary.json").exists()) == (2, True, True)


def test_a_folder_of_somebody_else_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    result = demo("--output-dir", str(tmp_path), home=tmp_path.parent / "home")
    assert (result.exit_code, "Choose another folder with --output-dir" in result.output) == (2, True)


def test_settings_are_sorted_by_stage() -> None:
    assert stage_overrides(["sft.num_steps=20", "airl.critic.warmup_rounds=1", "sft.data.num_train=null"]) == {
        "sft": {"num_steps": 20, "data.num_train": None},
        "airl": {"critic.warmup_rounds": 1},
    }
    with pytest.raises(ConfigError, match="names no stage"):
        stage_overrides(["num_steps=20"])
