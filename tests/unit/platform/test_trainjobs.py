"""The same job for Kubeflow Trainer v2."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from irlops.cli.main import app
from irlops.cluster.trainjobs import as_trainjob
from irlops.contracts.training_manifest import read_training_manifest
from irlops.errors import ManifestError
from support.training_cluster import CORE, training_cluster
from support.training_manifests import pytorchjob, worker, write_manifest

MANIFESTS = Path(__file__).parents[3] / "manifests" / "training"
TRAINER = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/training"


def rendered(file: Path):
    documents = {document["kind"]: document for document in as_trainjob(read_training_manifest(file))}
    return documents["TrainingRuntime"], documents["TrainJob"]


def node_job(runtime):
    [node] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert node["name"] == "node"
    return node["template"]


@pytest.mark.parametrize("file", sorted(MANIFESTS.glob("*-*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_job_runs_as_a_trainjob(file: Path):
    runtime, job = rendered(file)
    written = read_training_manifest(file).job
    assert job["apiVersion"] == runtime["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
    assert job["spec"]["runtimeRef"] == {
        "apiGroup": "trainer.kubeflow.org",
        "kind": "TrainingRuntime",
        "name": runtime["metadata"]["name"],
    }
    # Trainer tells pods of each other only when the TrainJob has this section.
    assert job["spec"]["trainer"] == {
        "numNodes": written.spec.pytorch_replica_specs.Worker.replicas,
        "numProcPerNode": int(written.spec.nproc_per_node),
    }
    assert job["spec"]["activeDeadlineSeconds"] == written.spec.run_policy.active_deadline_seconds


def test_the_pod_is_the_same_but_for_names():
    runtime, _ = rendered(MANIFESTS / "airl-tiny.yaml")
    template = node_job(runtime)["spec"]["template"]
    [container] = template["spec"]["containers"]
    written = read_training_manifest(MANIFESTS / "airl-tiny.yaml").documents[-1]
    original = written["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    [before] = original["spec"]["containers"]
    assert (container["name"], template["spec"]["restartPolicy"], "ports" in container) == ("node", "Never", False)
    assert {key: container[key] for key in before if key not in ("name", "ports")} == {
        key: value for key, value in before.items() if key not in ("name", "ports")
    }
    assert template["metadata"] == original["metadata"]
    [term] = template["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["labelSelector"]["matchLabels"] == {"jobset.sigs.k8s.io/jobset-name": "airl-tiny"}


def test_what_may_pass_starts_all_nodes_again_and_what_is_final_ends_the_job():
    runtime, _ = rendered(MANIFESTS / "airl-tiny.yaml")
    job = node_job(runtime)
    assert job["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert job["spec"]["backoffLimit"] == 0
    [rule] = job["spec"]["podFailurePolicy"]["rules"]
    assert rule == {
        "action": "FailJob",
        "onExitCodes": {"containerName": "node", "operator": "In", "values": [1, 2, 126, 127]},
    }
    failure = runtime["spec"]["template"]["spec"]["failurePolicy"]
    assert failure["maxRestarts"] == 6
    assert failure["rules"] == [{"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]


def test_processes_that_are_no_number_are_left_to_the_runtime(tmp_path: Path):
    runtime, job = rendered(write_manifest(tmp_path, pytorchjob(nprocPerNode="gpu")))
    assert job["spec"]["trainer"] == {"numNodes": 1}
    assert runtime["spec"]["mlPolicy"] == {"numNodes": 1, "torch": {"numProcPerNode": "gpu"}}


def test_a_queue_and_a_pause_belong_to_the_job(tmp_path: Path):
    document = pytorchjob(runPolicy={"suspend": True, "ttlSecondsAfterFinished": 60})
    document["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "team", "app": "x"}
    runtime, job = rendered(write_manifest(tmp_path, document))
    assert job["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team", "app": "x"}
    assert runtime["metadata"]["labels"] == {"app": "x"}
    assert job["spec"]["suspend"] is True
    assert runtime["spec"]["template"]["spec"]["ttlSecondsAfterFinished"] == 60


@pytest.mark.parametrize(
    ("job", "told"),
    [
        (pytorchjob(master=worker(), workers=worker()), "has a Master; a TrainJob's nodes are all alike"),
        (
            pytorchjob(workers=worker(replicas=2), elasticPolicy={"minReplicas": 1, "maxReplicas": 4}),
            "runs on 1 to 4 nodes, and a TrainJob on a fixed number",
        ),
    ],
    ids=["a master", "elastic"],
)
def test_what_a_trainjob_cannot_say_is_refused(tmp_path: Path, job, told: str):
    with pytest.raises(ManifestError, match=told):
        as_trainjob(read_training_manifest(write_manifest(tmp_path, job)))


def test_train_prints_the_trainjob_for_kubectl():
    result = CliRunner().invoke(
        app, ["train", "-f", str(MANIFESTS / "sft-tiny.yaml"), "--as", "trainjob", "--set", "seed=7"]
    )
    assert result.exit_code == 0, result.output
    documents = list(yaml.safe_load_all(result.output))
    assert [one["kind"] for one in documents] == ["ConfigMap", "PersistentVolumeClaim", "TrainingRuntime", "TrainJob"]
    assert yaml.safe_load(documents[0]["data"]["job.yaml"])["seed"] == 7


def test_train_submits_the_trainjob_when_a_cluster_is_meant(tmp_path: Path):
    with training_cluster(tmp_path) as (cluster, kubeconfig):
        for plural in ("trainingruntimes", "trainjobs"):
            cluster.objects[f"{TRAINER}/{plural}"] = {}
        arguments = [
            "-f",
            str(MANIFESTS / "sft-tiny.yaml"),
            "--as",
            "trainjob",
            "--cluster",
            "--kubeconfig",
            str(kubeconfig),
        ]
        result = CliRunner().invoke(app, ["train", *arguments])
        assert result.exit_code == 0, result.output
        again = CliRunner().invoke(app, ["train", *arguments])
    created = [path for method, path in cluster.requests if method == "POST"][:4]
    assert created == [
        f"{CORE}/configmaps",
        f"{CORE}/persistentvolumeclaims",
        f"{TRAINER}/trainingruntimes",
        f"{TRAINER}/trainjobs",
    ]
    assert "kubectl logs" in result.output
    assert again.exit_code == 2
    assert "sft-tiny is already in training" in again.output
