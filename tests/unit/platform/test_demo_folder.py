"""The demo's output folder: never somebody else's, and empty of an earlier demo when one begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from irlops.demo.folder import MARKER, claim_folder, only_demo
from irlops.errors import ConfigError


def test_a_folder_that_no_demo_made_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"no demo's \(thesis.tex"):
        claim_folder(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("exists", [True, False], ids=["an empty folder", "a folder that is not there yet"])
def test_a_demo_may_begin_in(tmp_path: Path, exists: bool) -> None:
    path = tmp_path if exists else tmp_path / "out" / "demo"
    assert (claim_folder(path).path / MARKER).is_file()


def test_what_an_earlier_demo_left_is_cleared_but_not_what_somebody_put_beside_it(tmp_path: Path) -> None:
    folder, results = claim_folder(tmp_path / "demo"), tmp_path / "evaluation"
    results.mkdir()
    for name in ("report.html", "heat.png", "evaluation.json"):
        (results / name).write_text("x")
    folder.publish(results)
    folder.write_summary("{}")
    (folder.state_dir / "airl-tiny").mkdir(parents=True)
    (folder.path / "notes.txt").write_text("mine")
    assert {file.name for file in folder.path.iterdir()} == {
        MARKER, "report.html", "heat.png", "summary.json", "state", "notes.txt"
    }  # fmt: skip
    claim_folder(folder.path)
    assert {file.name for file in folder.path.iterdir()} == {MARKER, "notes.txt"}


def test_a_marker_that_was_tampered_with_removes_nothing_outside_the_folder(tmp_path: Path) -> None:
    folder = claim_folder(tmp_path / "demo")
    (tmp_path / "precious").write_text("x")
    (folder.path / MARKER).write_text(json.dumps({"files": ["../precious", "..", "", 7]}))
    claim_folder(folder.path)
    assert (tmp_path / "precious").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        claim_folder(tmp_path / "out")


def test_a_second_demo_with_the_same_registry_is_refused(tmp_path: Path) -> None:
    with only_demo(tmp_path), pytest.raises(ConfigError, match="Another demo already runs"), only_demo(tmp_path):
        pass
    with only_demo(tmp_path):
        pass  # the first one has ended
