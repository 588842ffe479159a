"""The three images: linted, locked, non-root, nothing that builds in what runs."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.charts import REPOSITORY

DOCKERFILES = [REPOSITORY / root / "Dockerfile" for root in ("platform", "jobs", "serving")]
every_dockerfile = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)


def stages(path):
    """The text of each stage, in order."""
    return re.split(r"^FROM ", path.read_text(), flags=re.MULTILINE)[1:]


@every_dockerfile
def test_hadolint_finds_nothing(path):
    linter = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint is not installed")
    linted = subprocess.run([linter, str(path)], capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout


@every_dockerfile
def test_what_runs_is_not_what_builds(path):
    build, final = stages(path)
    assert "uv pip install" in build
    assert "COPY --from=build" in final
    assert not re.search(r"pip install|apt-get|gcc|COPY (?!--from=build)", final)
    assert "pip uninstall --yes pip setuptools wheel" in final


@every_dockerfile
def test_the_image_runs_as_a_numbered_user_that_is_not_root(path):
    assert re.findall(r"^USER (.+)$", stages(path)[1], flags=re.MULTILINE) == ["10001:10001"]


@every_dockerfile
def test_the_base_image_is_one_release_of_python(path):
    assert re.search(r"^ARG PYTHON_IMAGE=\S+:3\.\d+\.\d+-slim-\w+$", path.read_text(), flags=re.MULTILINE)
    assert "latest" not in path.read_text()


@every_dockerfile
def test_every_dependency_comes_from_a_lock_with_hashes(path):
    [build, _] = stages(path)
    installs = [line for line in build.splitlines() if "uv pip install" in line]
    for line in installs:
        ours, locked, torch = line.rstrip("; \\").endswith(" ."), "--require-hashes" in line, "torch==" in line
        assert "--no-deps" in line
        assert ours or locked or torch, line


@every_dockerfile
def test_the_locks_that_an_image_names_exist_and_are_in_the_build_context(path):
    context = (REPOSITORY / ".dockerignore").read_text()
    named = set(re.findall(r"requirements/image-[a-z-]+\.txt", path.read_text()))
    assert named
    assert all((REPOSITORY / name).exists() for name in named)
    assert "!requirements/image-*.txt" in context


@pytest.mark.parametrize("lock", sorted(REPOSITORY.glob("requirements/image-*.txt")), ids=lambda path: path.stem)
def test_an_images_lock_has_the_versions_that_the_tests_run_with(lock):
    tested, shipped = pins(REPOSITORY / "requirements" / "cpu.txt"), pins(lock)
    differing = {name for name, versions in shipped.items() if name in tested and not versions <= tested[name]}
    assert differing == set(), "run: sh requirements/lock-images.sh"


def pins(path):
    """Name -> versions; a universal lock has one for each range of Python versions."""
    found = {}
    for name, version in re.findall(r"^([\w.-]+)==([\w.+-]+)", path.read_text(), flags=re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


def test_only_the_images_that_need_torch_lock_it():
    text = (REPOSITORY / "requirements" / "image-platform.txt").read_text()
    assert not re.search(r"^(torch|transformers|vllm)==", text, flags=re.MULTILINE)
