"""What ``irlops doctor`` says of this machine."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from irlops.cli import machine_checks
from irlops.cli.main import app


def test_every_finding_that_is_not_fine_says_how_to_mend_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    result = CliRunner().invoke(app, ["doctor", "--json"])
    findings = json.loads(result.stdout)
    assert {finding["area"] for finding in findings} == {"machine", "packages", "data"}
    assert [f["name"] for f in findings if f["status"] == "missing" and not f["fix"]] == []
    assert result.exit_code == (2 if any(finding["status"] == "missing" for finding in findings) else 0)


def test_this_environment_has_what_the_project_asks_for() -> None:
    assert [finding.found for finding in machine_checks.package_findings() if finding.status == "missing"] == []


def test_too_little_memory_or_disk_is_missing() -> None:
    assert machine_checks._memory(3.0).status == "missing"
    assert machine_checks._memory(4.0).status == "ok"
    assert machine_checks._disk(1.0).status == "missing"


@pytest.mark.parametrize(
    ("machine", "flags", "status"),
    [("x86_64", {"avx512f"}, "ok"), ("x86_64", {"avx2"}, "optional"), ("aarch64", set(), "ok")],
)
def test_an_x86_without_avx512_is_told_to_sample_with_transformers(machine: str, flags: set[str], status: str) -> None:
    assert machine_checks._processor(machine, flags).status == status


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert machine_checks._port(port).found == f"{port} is in use"


def test_gsm8k_is_counted(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}\n" * 7473)
    (tmp_path / "test.jsonl").write_text("{}\n" * 1319)
    assert machine_checks._gsm8k(str(tmp_path)).status == "ok"
    (tmp_path / "test.jsonl").write_text("{}\n" * 3)
    finding = machine_checks._gsm8k(str(tmp_path))
    assert (finding.status, "test.jsonl: 3 rows" in finding.found) == ("missing", True)


def test_a_tracking_server_that_is_down_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hush@127.0.0.1:9")
    finding = machine_checks._tracking()
    assert (finding.status, "hush" in finding.found) == ("missing", False)


def test_a_package_of_a_wrong_version_is_named() -> None:
    from packaging.specifiers import SpecifierSet

    assert machine_checks._wrong("pytest", SpecifierSet("<1")).startswith("pytest ")  # type: ignore[union-attr]
    assert machine_checks._wrong("no-such-package-here", SpecifierSet()) == "no-such-package-here is not installed"
