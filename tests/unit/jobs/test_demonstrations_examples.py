"""``python -m irlops_jobs.demonstrations``: a look at what a job would learn from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from irlops_jobs.demonstrations.__main__ import main


def job_file(folder: Path, **data: object) -> Path:
    job = {"kind": "sft", "run_name": "sft-tiny", "model": {}, "num_steps": 1, "optimizer": {"learning_rate": 0.1}}
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump({**job, "data": data}))
    return file


def test_every_split_is_counted_and_shown_from_its_start(tmp_path: Path) -> None:
    file = job_file(tmp_path, name="arithmetic", num_train=9, num_dev=8, num_test=3)
    assert main([str(file), "--output", str(tmp_path / "data.json"), "--examples", "2"]) == 0
    shown = json.loads((tmp_path / "data.json").read_text())
    assert shown["num_rows"] == {"train": 9, "dev": 8, "test": 3}
    assert [row["source"] for row in shown["examples"]["test"]] == ["arithmetic/test:0", "arithmetic/test:1"]
    assert set(shown["examples"]["train"][0]) == {"question", "solution", "answer", "source"}


def test_data_that_is_not_there_is_one_message_and_a_permanent_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = job_file(tmp_path, name="gsm8k", source=str(tmp_path / "nowhere"))
    assert main([str(file), "--output", str(tmp_path / "data.json")]) == 2
    assert capsys.readouterr().err.startswith("Error: ")
    assert not (tmp_path / "data.json").exists()
