"""Reading a training manifest: what is refused, and that the message says what was seen."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from irlops.contracts.training_manifest import read_training_manifest
from irlops.errors import ManifestError
from support.training_manifests import config_map, pytorchjob, worker, write_manifest


def test_a_file_holds_the_job_and_what_its_pods_mount(tmp_path: Path):
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "login"}}
    secret["data"] = {"token": base64.b64encode(b"s3cret").decode()}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "state"}, "spec": {}}
    manifest = read_training_manifest(
        write_manifest(tmp_path, config_map("job", job_yaml="kind: sft"), secret, claim, pytorchjob())
    )
    assert manifest.job.metadata.name == "job"
    assert manifest.config_maps == {"job": {"job.yaml": b"kind: sft"}}
    assert manifest.secrets == {"login": {"token": b"s3cret"}}
    assert manifest.claims == ("state",)


@pytest.mark.parametrize(
    ("documents", "told"),
    [
        ([], r"holds 0 PyTorchJobs \(seen: nothing\)"),
        ([config_map("a")], r"holds 0 PyTorchJobs \(seen: ConfigMap\)"),
        ([pytorchjob(), pytorchjob(name="other")], "holds 2 PyTorchJobs"),
        (
            [{"apiVersion": "kubeflow.org/v1", "kind": "TFJob"}],
            r"holds a TFJob \(kubeflow.org/v1\).*apply other kinds with kubectl",
        ),
        ([{"apiVersion": "kubeflow.org/v2", "kind": "PyTorchJob"}], r"holds a PyTorchJob \(kubeflow.org/v2\)"),
        ([{"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService"}], "holds an InferenceService"),
        ([{"some": "thing"}], "no Kubernetes object"),
    ],
    ids=["nothing", "no job", "two jobs", "another kind", "another version", "a vowel", "no object"],
)
def test_a_file_with_anything_but_one_job_is_refused(tmp_path: Path, documents, told: str):
    with pytest.raises(ManifestError, match=told):
        read_training_manifest(write_manifest(tmp_path, *documents))


@pytest.mark.parametrize(
    ("job", "told"),
    [
        (pytorchjob(nprocPerNodes="1"), r"spec.nprocPerNodes: unknown key, did you mean nprocPerNode\? \(seen: '1'\)"),
        (pytorchjob(nprocPerNode=2), r"spec.nprocPerNode: Input should be a valid string \(seen: 2\)"),
        (pytorchjob(name="airl-llama3.1"), "metadata.name: String should match"),
        (pytorchjob(pytorchReplicaSpecs={}), "neither a Master nor a Worker"),
        (pytorchjob(master=worker(replicas=2)), r"one Master, written as replicas: 1 \(seen: 2\)"),
        (pytorchjob(master={"template": worker()["template"]}), r"one Master.*\(seen: no number at all\)"),
        (pytorchjob(master=worker(), elasticPolicy={}), "elasticPolicy needs Worker replicas"),
        (pytorchjob(master=worker(), workers=worker(), elasticPolicy={}), "contradict each other; use Workers only"),
        (pytorchjob(workers=worker(name="main")), "Worker has no container called 'pytorch'"),
        (pytorchjob(workers=worker(image="")), "image: String should have at least 1 character"),
        (pytorchjob(workers=worker(restart_policy="ExitCodes")), "'Always', 'OnFailure', 'Never' or 'ExitCode'"),
        ({**pytorchjob(), "spec": {"pytorchReplicaSpecs": {"Worker": worker()}}}, "spec.runPolicy: Field required"),
    ],
    ids=["mistyped field", "number for a string", "name with a dot", "no replicas", "two masters", "a master without a number",
         "elastic without workers", "elastic beside a master", "another container", "no image", "unknown policy", "no runPolicy"],
)  # fmt: skip
def test_what_the_operator_would_refuse_is_refused_here(tmp_path: Path, job, told: str):
    with pytest.raises(ManifestError, match=told):
        read_training_manifest(write_manifest(tmp_path, job))


def test_a_missing_file_names_where_the_shipped_ones_lie(tmp_path: Path):
    with pytest.raises(ManifestError, match=r"No manifest at .*nowhere.yaml .*manifests/training"):
        read_training_manifest(tmp_path / "nowhere.yaml")


def test_a_file_that_is_no_yaml_is_named(tmp_path: Path):
    (tmp_path / "job.yaml").write_text("kind: [")
    with pytest.raises(ManifestError, match=r"job.yaml is not YAML"):
        read_training_manifest(tmp_path / "job.yaml")


def test_a_wrong_secret_is_never_shown(tmp_path: Path):
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "login"},
        "data": {"token": "hunter2 in clear"},
    }
    with pytest.raises(ManifestError, match="The Secret in") as refused:
        read_training_manifest(write_manifest(tmp_path, secret, pytorchjob()))
    assert "hunter2" not in str(refused.value)
