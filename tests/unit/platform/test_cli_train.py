"""``irlops train`` refuses what can't work before it starts a process."""

from pathlib import Path

from typer.testing import CliRunner

from irlops.cli.main import app

MANIFEST = Path(__file__).parents[3] / "manifests" / "training" / "sft-tiny.yaml"


def test_a_tracking_server_that_is_down_ends_the_command_before_any_worker_starts(tmp_path: Path):
    state_dir = tmp_path / "state"
    options = ["--file", str(MANIFEST), "--state-dir", str(state_dir), "--tracking-uri", "http://127.0.0.1:9"]
    result = CliRunner().invoke(app, ["train", *options])
    assert result.exit_code == 200
    assert "The MLflow server at http://127.0.0.1:9 does not answer. Start it, or correct" in result.output
    assert not state_dir.exists()
