"""``irlops pairs`` against a real MLflow store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from irlops.cli.main import app
from support.mlflow_store import empty_mlflow_database, tracking_uri  # noqa: F401 - fixtures
from support.pair_folders import WORDS, evaluation_body, write_critic, write_pair

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:mlflow")


@pytest.fixture
def irlops(tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: F811
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    return lambda *arguments: CliRunner().invoke(app, ["pairs", *map(str, arguments)])


def run_folder(tmp_path: Path, weights: int = 1) -> Path:
    folder = tmp_path / f"airl-{weights}"
    write_pair(folder, weights=weights)
    (folder / "evaluation").mkdir()
    (folder / "evaluation/evaluation.json").write_text(json.dumps(evaluation_body(pass_at_1=0.25)))
    return folder


def as_json(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_run_s_folder_is_registered_with_its_evaluation_and_listed(irlops: Any, tmp_path: Path) -> None:
    result = irlops("register", run_folder(tmp_path), "--as", "champion", "--base-model", "tiny")
    assert "Registered v1 (champion): policy v1, critic v1." in result.output
    line = next(line for line in irlops("list").output.splitlines() if line.startswith("v1"))
    assert line.split()[:6] == ["v1", "champion", "v1", "0.250", "0.250", "0.800"]


def test_a_pair_is_shown_with_what_it_was_made_from(irlops: Any, tmp_path: Path) -> None:
    irlops("register", run_folder(tmp_path), "--data-digest", "sha256:d0", "--base-model", "tiny")
    shown = irlops("show", "v1").output
    assert [fact in shown for fact in ("sha256:d0", "tiny", "airl-1", "critic.auroc")] == [True] * 4
    body = as_json(irlops("show", "1", "--json"))
    assert (body["policy"]["version"], body["lineage"]["data_digest"]) == (1, "sha256:d0")


def test_promote_and_rollback_say_what_is_served_now(irlops: Any, tmp_path: Path) -> None:
    for weights in (1, 2):
        irlops("register", run_folder(tmp_path, weights))
        promoted = irlops("promote", weights, "--gate", "critic.auroc>=0.75")
    assert "v2 (champion): policy v2 and critic v2 are champion." in promoted.output
    assert "v1 (champion) is champion again" in irlops("rollback").output
    assert as_json(irlops("list", "--json"))["pairs"][1]["aliases"] == ["champion"]


def test_a_failed_gate_leaves_the_champion_and_exits_with_2(irlops: Any, tmp_path: Path) -> None:
    irlops("register", run_folder(tmp_path), "--as", "champion")
    irlops("register", run_folder(tmp_path, 2))
    refused = irlops("promote", "2", "--gate", "critic.auroc>=0.99")
    assert (refused.exit_code, "critic.auroc is 0.8, below 0.99" in refused.output) == (2, True)
    assert as_json(irlops("show", "champion", "--json"))["policy"]["version"] == 1


def test_a_pair_of_two_tokenizers_is_refused_in_one_line(irlops: Any, tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    write_critic(folder / "critic", words=(*WORDS, "four"))
    refused = irlops("register", folder)
    assert (refused.exit_code, refused.output.count("\n")) == (2, 1)
    assert "different tokenizers" in refused.output


def test_an_unregistered_folder_is_shown_without_any_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("IRLOPS_HOME", str(tmp_path / "nothing"))
    result = CliRunner().invoke(app, ["pairs", "show", str(run_folder(tmp_path))])
    assert (result.exit_code, "policy weights" in result.output) == (0, True)


def test_no_registry_at_all_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("IRLOPS_HOME", str(tmp_path))
    result = CliRunner().invoke(app, ["pairs", "list"])
    assert (result.exit_code, "irlops demo" in result.output) == (2, True)


def test_a_tracking_server_that_is_down_exits_with_a_retryable_code() -> None:
    result = CliRunner().invoke(app, ["pairs", "list", "--tracking-uri", "http://127.0.0.1:9"])
    assert (result.exit_code, "http://127.0.0.1:9 does not answer" in result.output) == (200, True)


def test_an_empty_registry_says_how_to_make_a_pair(irlops: Any) -> None:
    result = irlops("list")
    assert (result.exit_code, "No pair is registered yet" in result.output) == (0, True)


def test_the_list_of_subcommands_cuts_no_sentence_short(irlops: Any) -> None:
    listed = irlops("--help").output.partition("Commands:\n")[2]
    assert [line for line in listed.splitlines() if line.rstrip().endswith("...")] == []
    assert listed.count("\n") == 6


def test_repair_says_when_nothing_was_torn(irlops: Any) -> None:
    assert irlops("repair").output == "Nothing was torn.\n"


@pytest.mark.parametrize(
    "arguments", [("promote", "1", "--as", "best"), ("promote", "1", "--gate", "auroc>1"), ("show", "x")]
)
def test_mistyped_arguments_exit_with_2(irlops: Any, arguments: tuple[str, ...]) -> None:
    assert irlops(*arguments).exit_code == 2
