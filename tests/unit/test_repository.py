"""What holds for the repository as a whole, whatever else changes."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
MAX_LINES = 430
UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX")) + r")\b")
HOME_FOLDER = re.compile(r"/(home|Users)/(?!me/|user/|runner/)\w+/|/ro{2}t/")


@cache
def _tracked() -> tuple[Path, ...]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout, so what belongs to the project can't be listed")
    return tuple(path for name in listed.stdout.split("\0") if name and (path := REPO / name).is_file())


def _texts():
    for path in _tracked():
        try:
            yield path.relative_to(REPO).as_posix(), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # pictures


def _lines_with(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in _texts()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_the_repository_never_hides_the_standard_platform_module():
    probe = "import platform, uuid; platform.system(); assert 'irlops' not in str(platform.__file__)"
    assert subprocess.run([sys.executable, "-c", probe], cwd=REPO).returncode == 0


def test_the_standard_platform_module_is_found_by_a_module_run_from_the_root():
    probe = [sys.executable, "-m", "platform"]
    assert "-" in subprocess.run(probe, cwd=REPO, capture_output=True, text=True, check=True).stdout


def test_no_python_file_lies_directly_in_platform():
    assert list((REPO / "platform").glob("*.py")) == []


def test_no_test_folder_is_a_package_called_platform():
    assert [path for path in _tracked() if path.parts[-2:] == ("platform", "__init__.py")] == []


def test_test_files_have_names_of_their_own():
    names = [path.name for path in _tracked() if path.name.startswith("test_") and path.suffix == ".py"]
    assert sorted(set(names)) == sorted(names)


def test_no_source_file_grows_too_long_to_read():
    too_long = {name: num for name, text in _texts() if name.endswith(".py") and (num := text.count("\n")) > MAX_LINES}
    assert too_long == {}


def test_nothing_is_left_to_be_done_later():
    assert _lines_with(UNFINISHED) == []


def test_no_file_names_a_folder_of_one_machine():
    here = re.escape(f"{REPO}/")
    assert _lines_with(re.compile(f"{here}|{HOME_FOLDER.pattern}")) == []


def test_links_between_documents_lead_somewhere():
    link = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(?:#[^)]*)?\)")
    dead = [
        f"{name} -> {target}"
        for name, text in _texts()
        if name.endswith(".md")
        for target in link.findall(text)
        if not (REPO / name).parent.joinpath(target).exists()
    ]
    assert dead == []


def test_scripts_that_people_start_can_be_started():
    scripts = [name for name, text in _texts() if text.startswith("#!")]
    assert [name for name in scripts if not (REPO / name).stat().st_mode & 0o100] == []
