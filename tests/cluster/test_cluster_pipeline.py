"""A pipeline on a real API server, with whatever controllers run there; its pods are played (support.played_pods says how).

The tests tell one story, in this order.
"""

import json
import time

import pytest

from irlops.registry.pairs import PairRegistry
from irlops.registry.run_folders import lineage_of_run
from support.kube_world import pipeline
from support.mlflow_server import mlflow_server  # noqa: F401 - a fixture
from support.pair_folders import evaluation_body, write_pair
from support.played_pods import JOBS, SERVICES, Players, true_conditions, unscheduled
from support.real_cluster import Operator, gateway

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:mlflow")

KIND = "reasoningpipelines.irlops.dev"
ROLLOUT = {"timeoutSeconds": 120, "healthCheckSeconds": 2}


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
            lineage = registry.known_run(lineage_of_run(folder / run).model_copy(update={"run_name": run}))
            registry.register(
                folder / run / "policy", folder / run / "critic", evaluation=evaluation_body(), lineage=lineage, **uris
            )

    with Players(cluster, register) as players:
        yield players


@pytest.fixture(scope="module")
def operator(cluster, mlflow_server, tmp_path_factory):  # noqa: F811
    with gateway(cluster) as url:
        operator = Operator(
            cluster,
            tmp_path_factory.mktemp("operator"),
            MLFLOW_TRACKING_URI=mlflow_server.uri,
            IRLOPS_OPERATOR_GATEWAY_URL=url,
        )
        yield operator
        operator.stop()


def until(look, players, *, timeout_s=300):
    """What ``look`` returns once it is something."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert players.failure is None, f"the players stopped: {players.failure!r}"
        if found := look():
            return found
        time.sleep(1)
    return None


def wait_for(cluster, players, phase, *, name="tiny", timeout_s=400, true=lambda status: True):
    """The status once the pipeline is in ``phase``."""

    def look():
        status = (cluster.find(KIND, name) or {}).get("status", {})
        return status if status.get("phase") == phase and true(status) else None

    found = until(look, players, timeout_s=timeout_s)
    assert found is not None, f"{name} never became {phase}: {json.dumps(cluster.find(KIND, name))}"
    return found


def change(cluster, spec, name="tiny"):
    cluster.kubectl("patch", KIND, name, "--type=merge", "-p", json.dumps({"spec": spec}))


def job_of(cluster, stage, name="tiny"):
    jobs = cluster.objects(JOBS, "-l", f"irlops.dev/pipeline={name},irlops.dev/stage={stage}")
    return jobs[-1] if jobs else None


def test_a_suspended_pipeline_stops_its_job_and_goes_on_with_it_afterwards(cluster, operator, players):
    players.held = {"sft"}
    cluster.apply(unscheduled(pipeline(serving={"rollout": ROLLOUT}, retries={"limit": 3, "backoffSeconds": 1})))
    assert until(lambda: job_of(cluster, "sft"), players), "no job was started"
    change(cluster, {"suspend": True})
    wait_for(cluster, players, "Suspended")
    assert until(lambda: job_of(cluster, "sft")["spec"]["runPolicy"].get("suspend"), players, timeout_s=60)
    change(cluster, {"suspend": False})
    wait_for(cluster, players, "Training")
    assert until(lambda: not job_of(cluster, "sft")["spec"]["runPolicy"].get("suspend"), players, timeout_s=60)


def test_a_job_deleted_under_the_operators_feet_is_started_again(cluster, operator, players):
    name = job_of(cluster, "sft")["metadata"]["name"]
    cluster.kubectl("delete", JOBS, name)
    again = until(lambda: (job := job_of(cluster, "sft")) and job["metadata"]["name"] != name and job, players)
    assert again, "the job was not started again"
    assert again["metadata"]["name"] == f"{name}-2"


def test_an_operator_that_is_killed_meanwhile_drives_it_to_a_pair_that_serves(cluster, operator, players):
    operator.killed()
    players.held = set()
    assert until(lambda: job_of(cluster, "airl"), players), "the operator's successor did not go on"
    operator.killed()
    wait_for(cluster, players, "RollingOut")
    operator.killed()
    status = wait_for(cluster, players, "Ready", true=lambda status: "lastGood" in status.get("pairs", {}))
    assert status["pairs"] == {
        "serving": {"policyVersion": "1", "criticVersion": "1"},
        "lastGood": {"policyVersion": "1", "criticVersion": "1"},
    }
    assert {each["metadata"]["name"] for each in cluster.objects(SERVICES)} == {"tiny-policy-v1", "tiny-critic-v1"}
    assert operator.is_running


def test_a_pipeline_that_is_done_is_not_written_again(cluster, operator, players):
    time.sleep(3)  # the last event of the roll-out
    versions = {cluster.find(KIND, "tiny")["metadata"]["resourceVersion"]}
    for _ in range(5):  # two looks and more, at 10 s each
        time.sleep(5)
        versions.add(cluster.find(KIND, "tiny")["metadata"]["resourceVersion"])
    assert len(versions) == 1


def test_the_printed_columns_say_where_it_is(cluster, operator, players):
    printed = cluster.kubectl("get", "rpl", "tiny").splitlines()
    assert printed[0].split() == ["NAME", "PHASE", "STAGE", "POLICY", "CRITIC", "READY", "REASON", "AGE"]
    assert printed[1].split()[:7] == ["tiny", "Ready", "registration", "1", "1", "True", "Serving"]


def test_events_tell_the_story(cluster, operator, players):
    reasons = {each["reason"] for each in cluster.objects("events") if each["involvedObject"]["name"] == "tiny"}
    assert {"JobStarted", "JobDeleted", "Promoted", "RolledOut"} <= reasons


def test_a_pair_that_never_becomes_ready_is_taken_back(cluster, operator, players, registry):
    players.unready = {"tiny-policy-v2"}
    change(cluster, {"data": {"seed": 7}})
    status = wait_for(
        cluster, players, "RolledBack", timeout_s=600, true=lambda status: "candidate" not in status.get("pairs", {})
    )
    assert status["pairs"]["serving"]["policyVersion"] == "1"
    assert registry.resolve("champion").policy.version == 1
    served = {"tiny-policy-v1", "tiny-critic-v1"}
    left = until(lambda: {each["metadata"]["name"] for each in cluster.objects(SERVICES)} == served, players)
    assert left, "the servers of the pair that was taken back are still there"


def test_a_job_that_refuses_its_input_ends_the_run_with_its_own_words(cluster, operator, players):
    if "training operator" in players.absent:
        pytest.skip("without a training operator there are no pods that could say why")
    players.ends[("refused", "airl")] = {"exitCode": 2, "reason": "Error", "message": "data.name: there is no gsm9k"}
    body = pipeline("refused", stages=[{"name": "airl", "kind": "airl", "settings": {"num_rounds": 2}}])
    del body["spec"]["serving"]
    cluster.apply(unscheduled(body))
    status = wait_for(cluster, players, "Failed", name="refused")
    assert "exit code 2: data.name: there is no gsm9k" in status["message"]
    [ready] = [each for each in status["conditions"] if each["type"] == "Ready"]
    assert ready["reason"] == "JobRefused"
    assert [each["type"] for each in true_conditions(job_of(cluster, "airl", "refused"))].count("Failed") == 1


def test_a_deleted_pipeline_takes_its_objects_with_it(cluster, operator, players):
    [owner] = job_of(cluster, "airl")["metadata"]["ownerReferences"]
    assert owner["uid"] == cluster.find(KIND, "tiny")["metadata"]["uid"]
    assert (owner["kind"], owner["controller"]) == ("ReasoningPipeline", True)
    assert "ownerReferences" not in cluster.find("configmap", "irlops-gateway-pair")["metadata"]  # the release's
    cluster.kubectl("delete", KIND, "tiny")
    if not cluster.has_controller_manager:
        pytest.skip("nobody collects garbage here: an API server alone has no controller manager")
    mine = ("-l", "irlops.dev/pipeline=tiny")
    gone = until(
        lambda: not cluster.objects(JOBS, *mine) and not cluster.objects(SERVICES, *mine), players, timeout_s=120
    )
    assert gone, "jobs or servers of the deleted pipeline are still there"
    assert cluster.find("persistentvolumeclaim", "tiny-state") is not None  # weights outlive their pipeline
