"""A pipeline on a real API server, with whatever controllers run there; pods are played (support.real_cluster says how)."""

import time

import pytest

from irlops.registry.pairs import PairRegistry
from support.kube_world import pipeline
from support.mlflow_server import mlflow_server  # noqa: F401 - a fixture
from support.pair_folders import evaluation_body, write_pair
from support.real_cluster import Players, gateway, operator_process

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:mlflow")

KIND = "reasoningpipelines.irlops.dev"


@pytest.fixture(scope="module")
def registry(mlflow_server):  # noqa: F811
    return PairRegistry(mlflow_server.uri)


@pytest.fixture(scope="module")
def players(cluster, registry, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")

    def register(run):
        """What the registration's pod does, with other weights for each run."""
        if all(pair.lineage.run_name != run for pair in registry.list()):
            write_pair(folder / run, weights=len(registry.list()))
            uris = {f"{half}_uri": f"pvc://tiny-state/{run}/{half}" for half in ("policy", "critic")}
            lineage = registry.known_run(lineage_of(folder / run, run))
            registry.register(
                folder / run / "policy", folder / run / "critic", evaluation=evaluation_body(), lineage=lineage, **uris
            )

    with Players(cluster, register) as players:
        yield players


def lineage_of(folder, run):
    from irlops.registry.run_folders import lineage_of_run

    return lineage_of_run(folder).model_copy(update={"run_name": run})


@pytest.fixture(scope="module")
def operator(cluster, mlflow_server, tmp_path_factory):  # noqa: F811
    with (
        gateway(cluster) as url,
        operator_process(
            cluster,
            tmp_path_factory.mktemp("operator"),
            MLFLOW_TRACKING_URI=mlflow_server.uri,
            IRLOPS_OPERATOR_GATEWAY_URL=url,
        ) as process,
    ):
        yield process


def wait_for(cluster, phase, *, timeout_s=300, true=lambda status: True):
    """The status once the pipeline is in ``phase``."""
    deadline = time.monotonic() + timeout_s
    status = {}
    while time.monotonic() < deadline:
        found = cluster.find(KIND, "tiny")
        status = (found or {}).get("status", {})
        if status.get("phase") == phase and true(status):
            return status
        time.sleep(1)
    raise AssertionError(f"the pipeline never became {phase}: {status}")


def test_a_pipeline_is_driven_to_a_pair_that_serves(cluster, operator, players):
    body = pipeline(serving={"rollout": {"timeoutSeconds": 120, "healthCheckSeconds": 2}})
    del body["metadata"]["uid"]
    cluster.apply(body)
    status = wait_for(cluster, "Ready", true=lambda status: bool(status.get("pairs")))
    assert status["pairs"]["serving"]["policyVersion"] == "1"
    names = {each["metadata"]["name"] for each in cluster.objects("inferenceservices.serving.kserve.io")}
    assert names == {"tiny-policy-v1", "tiny-critic-v1"}
    assert operator.poll() is None


def test_the_printed_columns_say_where_it_is(cluster, operator, players):
    printed = cluster.kubectl("get", "rpl", "tiny").splitlines()
    assert printed[0].split() == ["NAME", "PHASE", "STAGE", "POLICY", "CRITIC", "READY", "REASON", "AGE"]
    assert "Serving" in printed[1]


def test_events_tell_the_story(cluster, operator, players):
    reasons = {each["reason"] for each in cluster.objects("events") if each["involvedObject"]["name"] == "tiny"}
    assert {"JobStarted", "Promoted", "RolledOut"} <= reasons


def test_a_pair_that_never_becomes_ready_is_taken_back(cluster, operator, players, registry):
    players.unready = {"tiny-policy-v2"}
    cluster.kubectl("patch", KIND, "tiny", "--type=merge", "-p", '{"spec": {"data": {"seed": 7}}}')
    status = wait_for(
        cluster, "RolledBack", timeout_s=400, true=lambda status: "candidate" not in status.get("pairs", {})
    )
    assert status["pairs"]["serving"]["policyVersion"] == "1"
    assert registry.resolve("champion").policy.version == 1
    names = {each["metadata"]["name"] for each in cluster.objects("inferenceservices.serving.kserve.io")}
    assert {"tiny-policy-v1", "tiny-critic-v1"} <= names


def test_a_deleted_pipeline_takes_its_objects_with_it(cluster, operator, players):
    cluster.kubectl("delete", KIND, "tiny")
    if cluster.objects("pytorchjobs.kubeflow.org"):
        # Garbage collection is the controller manager's, which an API server alone doesn't have.
        owners = [each["metadata"]["ownerReferences"] for each in cluster.objects("pytorchjobs.kubeflow.org")]
        assert all(owner[0]["kind"] == "ReasoningPipeline" for owner in owners)
