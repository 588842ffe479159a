"""The charts and the manifests on a real API server, with its admission."""

import pytest

from support.real_cluster import REPOSITORY


def test_the_release_is_deployed(cluster):
    assert '"status":"deployed"' in cluster.helm("status", "irlops", "-o", "json").replace(" ", "")


def test_an_upgrade_with_the_same_values_changes_nothing_that_is_immutable(cluster):
    trial = REPOSITORY / "charts" / "irlops" / "values-trial.yaml"
    cluster.helm("upgrade", "irlops", str(REPOSITORY / "charts" / "irlops"), "-f", str(trial))
    cluster.kubectl("scale", "deployment/irlops-operator", "--replicas=0")


@pytest.mark.parametrize("folder", ["manifests", "manifests/serving/cpu", "manifests/serving/gpu"])
def test_the_manifests_are_admitted(cluster, folder):
    cluster.kubectl("apply", "--server-side", "--dry-run=server", "-k", str(REPOSITORY / folder))


@pytest.mark.parametrize(
    ("verb", "resource", "allowed"),
    [
        ("patch", "pytorchjobs.kubeflow.org", "yes"),
        ("get", "secrets", "no"),
        ("create", "pods", "no"),
        ("list", "nodes", "no"),
    ],
)
def test_the_operator_may_do_what_its_role_says_and_no_more(cluster, verb, resource, allowed):
    account = f"system:serviceaccount:{cluster.namespace}:irlops-operator"
    asked = ["auth", "can-i", verb, resource, f"--as={account}"]
    import subprocess

    answer = subprocess.run(["kubectl", "-n", cluster.namespace, *asked], capture_output=True, text=True, check=False)
    assert answer.stdout.strip() == allowed


def test_a_pipeline_with_an_unknown_key_is_refused(cluster):
    body = """
apiVersion: irlops.dev/v1alpha1
kind: ReasoningPipeline
metadata: {name: wrong}
spec: {data: {name: arithmetic}, stages: [{name: airl, kind: airl}], jobTemplate: {stateVolume: {size: 1Gi}}, gate: []}
"""
    with pytest.raises(AssertionError, match="unknown field"):
        cluster.kubectl("apply", "--validate=strict", "-f", "-", text=body)
