"""Training on a cluster: what is created and in which order, whose lines arrive, and what is said when the API refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from irlops.cli.main import app
from irlops.cli.status import age
from irlops.cluster.job_states import job_state
from irlops.cluster.training import TrainingCluster
from irlops.contracts.training_manifest import TrainingManifest, read_training_manifest
from irlops.errors import ConfigError, IrlopsError, PermanentError, UnavailableError
from support.training_cluster import CORE, JOBS, PIPELINES, Cluster, Pod, training_cluster, with_conditions
from support.training_manifests import config_map, pytorchjob, worker

MANIFESTS = Path(__file__).parents[3] / "manifests" / "training"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Cluster, Path]]:
    with training_cluster(tmp_path) as served:
        yield served


@pytest.fixture
def cluster(served) -> Cluster:
    return served[0]


@pytest.fixture
def training(served) -> TrainingCluster:
    return TrainingCluster.connect(served[1], None)


def tiny() -> TrainingManifest:
    return read_training_manifest(MANIFESTS / "airl-tiny.yaml")


def irlops(command: str, *arguments: str, kubeconfig: Path):
    return CliRunner().invoke(app, [command, *arguments, "--kubeconfig", str(kubeconfig)], env={"COLUMNS": "200"})


def test_the_job_is_created_last_and_as_it_is_written(cluster: Cluster, training: TrainingCluster):
    job = training.submit(tiny())
    assert (job.name, job.namespace) == ("airl-tiny", "training")
    created = [path for method, path in cluster.requests if method == "POST"]
    assert created == [f"{CORE}/configmaps", f"{CORE}/persistentvolumeclaims", JOBS]
    [written] = [document for document in tiny().documents if document["kind"] == "PyTorchJob"]
    found = cluster.objects[JOBS]["airl-tiny"]
    assert found["spec"] == written["spec"]
    assert found["metadata"] == {**written["metadata"], "namespace": "training"}


def test_an_older_config_is_replaced_and_a_claim_is_kept(cluster: Cluster, training: TrainingCluster):
    cluster.add(f"{CORE}/configmaps", config_map("airl-tiny", job_yaml="kind: old"))
    claim = {"metadata": {"name": "irlops-state"}, "spec": {"of": "somebody"}}
    cluster.add(f"{CORE}/persistentvolumeclaims", claim)
    training.submit(tiny())
    document = yaml.safe_load(cluster.objects[f"{CORE}/configmaps"]["airl-tiny"]["data"]["job.yaml"])
    assert document["kind"] == "airl"
    assert cluster.objects[f"{CORE}/persistentvolumeclaims"]["irlops-state"] == claim


def test_a_job_that_is_there_already_is_left_alone(cluster: Cluster, training: TrainingCluster):
    cluster.add(JOBS, with_conditions(pytorchjob(name="airl-tiny"), ("Running", "2026-11-23T10:00:00Z")))
    with pytest.raises(
        PermanentError, match=r"airl-tiny is already in training \(Running\).*kubectl delete pytorchjob"
    ):
        training.submit(tiny())
    assert {method for method, _ in cluster.requests} == {"GET"}


@pytest.mark.parametrize(
    ("refusal", "error", "told"),
    [
        ((401, "Unauthorized"), PermanentError, r"answered 401 \(Unauthorized\). Log in to the cluster again"),
        ((403, "pytorchjobs is forbidden"), PermanentError, r"answered 403 \(pytorchjobs is forbidden\). Ask whoever"),
        ((409, "already exists"), PermanentError, "Look at what is there with `irlops status`"),
        ((422, "spec.x is invalid"), PermanentError, r"\(spec.x is invalid\). Correct the manifest"),
        ((429, "slow down"), UnavailableError, r"answered 429 \(slow down\). Try again"),
        ((500, "etcd is gone"), UnavailableError, r"answered 500 \(etcd is gone\). Try again"),
    ],
    ids=["not logged in", "no right", "somebody was quicker", "invalid", "too many requests", "broken"],
)
def test_a_refusal_says_what_was_tried_what_was_said_and_what_to_do(
    cluster: Cluster, training: TrainingCluster, refusal, error: type[IrlopsError], told: str
):
    cluster.refusals["POST", JOBS] = refusal
    with pytest.raises(
        error, match="Could not create the PyTorchJob airl-tiny in training: the Kubernetes API .*" + told
    ):
        training.submit(tiny())


def test_a_cluster_without_the_training_operator_names_the_command_that_installs_it(
    cluster: Cluster, training: TrainingCluster
):
    cluster.unknown.add(JOBS)
    with pytest.raises(
        PermanentError, match=r"knows no pytorchjobs\.kubeflow\.org\. Install what runs them: kubectl apply"
    ):
        training.submit(tiny())


def test_a_cluster_that_is_away_is_named(tmp_path: Path):
    with training_cluster(tmp_path) as (_, kubeconfig):
        training = TrainingCluster.connect(kubeconfig, None)
    with pytest.raises(UnavailableError, match=r"the Kubernetes API at http://127.0.0.1:\d+ does not answer"):
        training.submit(tiny())


def test_a_kubeconfig_that_is_missing_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"The kubeconfig .*nowhere can't be used .*or train here with --local"):
        TrainingCluster.connect(tmp_path / "nowhere", None)


@pytest.mark.parametrize(
    ("conditions", "phase"),
    [
        ([], "Pending"),
        ([("Created", "10:00:00"), ("Running", "10:00:05")], "Running"),
        ([("Restarting", "10:00:09"), ("Running", "10:00:05")], "Restarting"),
        ([("Running", "10:00:05"), ("Failed", "10:00:05")], "Failed"),
        ([("Succeeded", "10:00:05"), ("Running", "10:00:09")], "Succeeded"),
        ([("Created", "10:00:00"), ("Suspended", "10:00:00")], "Suspended"),
    ],
    ids=["nobody looked", "the newest", "whatever their order", "an end counts", "also when it is older", "same second: the later"],
)  # fmt: skip
def test_a_jobs_phase_is_its_newest_true_condition(conditions, phase: str):
    assert job_state(with_conditions(pytorchjob(), *conditions)).phase == phase


def running(name: str, **fields) -> Pod:
    return Pod(f"job-{name}", {"training.kubeflow.org/job-name": "job"}, **fields)


def follow(training: TrainingCluster, lines: dict[str, list[str]] | None = None) -> tuple[str, dict[str, list[str]]]:
    lines = {} if lines is None else lines
    state = training.follow("job", on_line=lambda who, line: lines.setdefault(who, []).append(line), poll_s=0.05)
    return state.phase, lines


class Story:
    """What happens at each look at the job, the last of it not before it ``may_end``; then all stays as it is."""

    def __init__(self, cluster: Cluster, *steps, may_end=lambda: True) -> None:
        self._steps, self._may_end = list(steps), may_end
        cluster.on_look = self

    def __call__(self) -> None:
        if self._steps and (len(self._steps) > 1 or self._may_end()):
            self._steps.pop(0)()


def test_lines_of_all_workers_arrive_also_those_of_a_pod_that_comes_later(cluster: Cluster, training: TrainingCluster):
    job = pytorchjob(workers=worker(replicas=2))
    cluster.add(JOBS, with_conditions(job, ("Running", "10:00:00"), active=1))
    first, second = running("worker-0", lines=["one"]), running("worker-1", lines=["late"], phase="Pending")
    cluster.pods = [first, second]

    def second_begins() -> None:
        second.phase = "Running"
        first.lines.append("two")

    def all_end() -> None:
        first.phase = second.phase = "Succeeded"
        cluster.add(JOBS, with_conditions(job, ("Succeeded", "10:00:09")))

    Story(cluster, lambda: None, second_begins, lambda: None, all_end)
    assert follow(training) == ("Succeeded", {"worker-0": ["one", "two"], "worker-1": ["late"]})


def test_a_pod_that_replaces_a_killed_one_is_followed_as_well(cluster: Cluster, training: TrainingCluster):
    job = pytorchjob()
    cluster.add(JOBS, with_conditions(job, ("Running", "10:00:00")))
    cluster.pods = [running("worker-0", lines=["before"], uid="first")]

    def replace() -> None:
        cluster.pods[0].phase = "Failed"
        cluster.pods = [running("worker-0", lines=["after"], uid="second", phase="Failed")]
        cluster.add(JOBS, with_conditions(job, ("Failed", "10:00:09")))

    lines: dict[str, list[str]] = {}
    Story(cluster, lambda: None, replace, may_end=lambda: bool(lines))
    assert follow(training, lines) == ("Failed", {"worker-0": ["before", "after"]})


def test_a_broken_connection_loses_and_repeats_no_line(cluster: Cluster, training: TrainingCluster):
    cluster.add(JOBS, with_conditions(pytorchjob(), ("Succeeded", "10:00:00")))
    cluster.pods = [running("worker-0", lines=["one", "two", "three"], breaks_after=1, phase="Succeeded")]
    assert follow(training) == ("Succeeded", {"worker-0": ["one", "two", "three"]})


def test_following_a_job_that_is_deleted_ends_with_the_reason(cluster: Cluster, training: TrainingCluster):
    cluster.add(JOBS, with_conditions(pytorchjob(), ("Running", "10:00:00")))
    Story(cluster, lambda: None, cluster.objects[JOBS].clear)
    with pytest.raises(PermanentError, match="There is no PyTorchJob job in training"):
        follow(training)


def test_train_submits_with_settings_and_says_how_to_follow(served, tmp_path: Path):
    cluster, kubeconfig = served
    file = str(MANIFESTS / "airl-tiny.yaml")
    result = irlops("train", "-f", file, "--cluster", "--set", "seed=7", kubeconfig=kubeconfig)
    assert (result.exit_code, result.exception) == (0, None)
    assert "airl-tiny submitted to training" in result.output
    assert "irlops logs airl-tiny --follow --namespace training" in result.output
    config = cluster.objects[f"{CORE}/configmaps"]["airl-tiny"]
    assert yaml.safe_load(config["data"]["job.yaml"])["seed"] == 7


def test_logs_show_each_line_behind_its_worker(served):
    cluster, kubeconfig = served
    cluster.add(JOBS, with_conditions(pytorchjob(), ("Succeeded", "10:00:00")))
    cluster.pods = [
        running("worker-1", lines=["b"], phase="Succeeded"),
        running("worker-0", lines=["a"], phase="Succeeded"),
    ]
    once, followed = (irlops("logs", "job", *flags, kubeconfig=kubeconfig) for flags in ([], ["--follow"]))
    assert once.output == "worker-0 | a\nworker-1 | b\n"
    assert sorted(line for line in followed.output.splitlines() if "|" in line) == ["worker-0 | a", "worker-1 | b"]
    assert followed.exit_code == 0


def test_following_a_job_that_fails_ends_with_a_failure(served):
    cluster, kubeconfig = served
    cluster.add(JOBS, with_conditions(pytorchjob(), ("Failed", "10:00:00"), message="worker-0 exited with 2"))
    result = irlops("logs", "job", "-f", kubeconfig=kubeconfig)
    assert result.exit_code == 1
    assert "job ended as Failed (0 of 1 pods run): worker-0 exited with 2" in result.output


def test_logs_of_a_pipeline_are_those_of_all_its_jobs(served):
    cluster, kubeconfig = served
    cluster.add(
        PIPELINES, {"metadata": {"name": "tiny"}, "spec": {}, "status": {"phase": "Ready", "message": "Serving."}}
    )
    labels = {"irlops.dev/pipeline": "tiny"}
    cluster.pods = [Pod(f"tiny-{stage}-worker-0", labels, [stage], "Succeeded") for stage in ("airl", "sft")]
    result = irlops("logs", "tiny", "--follow", kubeconfig=kubeconfig)
    assert (result.exit_code, result.exception) == (0, None)
    assert {"tiny-airl-worker-0 | airl", "tiny-sft-worker-0 | sft"} <= set(result.output.splitlines())


def test_logs_of_nothing_name_what_was_looked_for(served):
    result = irlops("logs", "nobody", kubeconfig=served[1])
    assert result.exit_code == 2
    assert "neither a PyTorchJob nor a ReasoningPipeline called nobody" in result.output


def test_status_lists_pipelines_before_jobs(served):
    cluster, kubeconfig = served
    pair = {"serving": {"policyVersion": "3", "criticVersion": "2"}}
    status = {"phase": "Training", "message": "Learning.", "run": {"stage": "airl"}, "pairs": pair}
    cluster.add(
        PIPELINES, {"metadata": {"name": "tiny", "creationTimestamp": "2026-11-23T10:00:00Z"}, "status": status}
    )
    job = with_conditions(
        pytorchjob(workers=worker(replicas=2)), ("Restarting", "10:00:00"), active=1, message="pod failed"
    )
    cluster.add(JOBS, job)
    rows = json.loads(irlops("status", "--json", kubeconfig=kubeconfig).output)
    assert [(row["kind"], row["name"], row["phase"], row["progress"], row["message"]) for row in rows] == [
        ("ReasoningPipeline", "tiny", "Training", "stage airl, serves policy 3, critic 2", "Learning."),
        ("PyTorchJob", "job", "Restarting", "1/2 pods", "pod failed"),
    ]
    table = irlops("status", kubeconfig=kubeconfig).output
    assert [line.split()[:3] for line in table.splitlines() if "tiny" in line or "Restarting" in line] == [
        ["ReasoningPipeline", "tiny", "Training"],
        ["PyTorchJob", "job", "Restarting"],
    ]


def test_status_of_a_cluster_that_knows_jobs_only_lists_them(served):
    cluster, kubeconfig = served
    cluster.unknown.add(PIPELINES)
    assert "Nothing in training yet" in irlops("status", kubeconfig=kubeconfig).output
    cluster.unknown.add(JOBS)
    failed = irlops("status", kubeconfig=kubeconfig)
    assert failed.exit_code == 2
    assert "knows neither PyTorchJobs nor ReasoningPipelines" in failed.output


@pytest.mark.parametrize(
    ("created", "said"),
    [("2026-11-23T10:00:00Z", "40s"), ("2026-11-23T09:55:00Z", "5m"), ("2026-11-21T08:00:00Z", "2d"), ("", "")],
)
def test_ages_are_said_as_kubectl_says_them(created: str, said: str):
    assert age(created, datetime(2026, 11, 23, 10, 0, 40, tzinfo=UTC)) == said
