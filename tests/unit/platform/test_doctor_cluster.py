"""What ``irlops doctor`` says of a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from irlops.cli.main import app
from irlops.cluster.survey import cluster_findings
from irlops.contracts.findings import Finding
from irlops.errors import ConfigError, UnavailableError
from support.surveyed_cluster import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    KINDS,
    NODES,
    REVIEWS,
    STORAGE,
    deployment,
    kserve_config,
    surveyed_cluster,
    whole_cluster,
    write_kubeconfig,
)


def survey(folder: Path, **changes: Any) -> dict[str, Finding]:
    with surveyed_cluster(whole_cluster() | changes, folder) as kubeconfig:
        return {finding.name: finding for finding in cluster_findings(kubeconfig)}


def test_a_whole_cluster_lacks_nothing_needed(tmp_path: Path) -> None:
    findings = survey(tmp_path)
    assert {finding.status for finding in findings.values()} <= {"ok", "optional"}
    assert findings["training operator"].found.startswith("ghcr.io/kubeflow/training-v1/training-operator:v1.9.4")
    assert findings["GPUs"].found == "2 on 1 nodes"
    assert findings["create pytorchjobs"].found == "allowed in training"


@pytest.mark.parametrize(
    ("changes", "name", "found", "fix"),
    [
        ({KINDS: []}, "pytorchjobs.kubeflow.org", "not installed", "ref=v1.9.4"),
        ({KINDS: []}, "inferenceservices.serving.kserve.io", "not installed", "helm install kserve"),
        ({DEPLOYMENTS: []}, "training operator", "no Deployment is called training-operator", "kubectl apply"),
        (
            {DEPLOYMENTS: [deployment("training-operator", "x", ready=0)]},
            "training operator",
            "system/training-operator has no ready pod",
            "kubectl describe deployment -n system training-operator",
        ),
        (
            {CONFIG_MAPS: [kserve_config(headless=True)]},
            "KServe's Services",
            "port 80 leads nowhere",
            "kubectl edit configmap -n kserve inferenceservice-config",
        ),
        ({STORAGE: []}, "storage class", "checkpoints have no volume", "provisioner"),
        ({REVIEWS: False}, "create pytorchjobs", "not allowed in training", "kubectl create role"),
        ({"/version": whole_cluster()["/version"] | {"minor": "24"}}, "Kubernetes", "needs 1.29", "Upgrade"),
    ],
)
def test_what_is_missing_comes_with_the_command_that_fixes_it(
    tmp_path: Path, changes: dict[str, Any], name: str, found: str, fix: str
) -> None:
    finding = survey(tmp_path, **changes)[name]
    assert finding.status == "missing"
    assert found in finding.found
    assert fix in (finding.fix or "")


def test_a_storage_class_without_a_default_gets_the_command_that_makes_it_one(tmp_path: Path) -> None:
    finding = survey(tmp_path, **{STORAGE: [{"metadata": {"name": "slow"}, "provisioner": "x"}]})["storage class"]
    assert finding.fix == "kubectl annotate storageclass slow storageclass.kubernetes.io/is-default-class=true"


def test_a_kserve_whose_settings_say_nothing_of_services_is_not_judged(tmp_path: Path) -> None:
    silent = kserve_config(headless=False) | {"data": {"deploy": "{}"}}
    assert "KServe's Services" not in survey(tmp_path, **{CONFIG_MAPS: [silent]})


def test_what_may_not_be_read_is_said_and_hides_nothing_else(tmp_path: Path) -> None:
    findings = survey(tmp_path, **{NODES: 403})
    assert (findings["nodes"].status, "answered 403" in findings["nodes"].found) == ("optional", True)
    assert findings["storage class"].status == "ok"


def test_a_cluster_that_is_away_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"Kubernetes API at http://127.0.0.1:9 does not answer"):
        cluster_findings(write_kubeconfig(tmp_path, "http://127.0.0.1:9"))


def test_a_kubeconfig_that_is_none_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text("- not a kubeconfig")
    with pytest.raises(ConfigError, match="can't be used"):
        cluster_findings(tmp_path / "kubeconfig")


def test_doctor_looks_at_the_cluster_of_kubeconfig_and_exits_with_2_when_something_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with surveyed_cluster(whole_cluster() | {KINDS: []}, tmp_path) as kubeconfig:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        result = CliRunner().invoke(app, ["doctor", "--json"])
    missing = [finding["name"] for finding in json.loads(result.stdout) if finding["status"] == "missing"]
    assert (result.exit_code, "pytorchjobs.kubeflow.org" in missing) == (2, True)


def test_a_cluster_that_is_away_does_not_hide_what_was_found_here(tmp_path: Path) -> None:
    kubeconfig = write_kubeconfig(tmp_path, "http://127.0.0.1:9")
    result = CliRunner().invoke(app, ["doctor", "--kubeconfig", str(kubeconfig)])
    assert (result.exit_code, "Python" in result.output, "Missing: connection" in result.output) == (2, True, True)
