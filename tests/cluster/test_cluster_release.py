"""The chart on a real API server, with its admission; by the helm that people use."""

import json
import re

import pytest
import yaml

from support.charts import CASES
from support.kube_world import pipeline
from support.real_cluster import REPOSITORY

CHART = str(REPOSITORY / "charts" / "irlops")


def test_the_release_is_deployed(cluster):
    assert json.loads(cluster.helm("status", "irlops", "-o", "json"))["info"]["status"] == "deployed"
    assert cluster.find("deployments.apps", "irlops-gateway")["spec"]["replicas"] == 1
    assert {each["metadata"]["name"] for each in cluster.objects("servingruntimes.serving.kserve.io")} == {
        "irlops-policy-cpu",
        "irlops-critic-cpu",
    }


def test_an_upgrade_with_the_same_values_keeps_the_pair_that_was_rolled_out(cluster):
    rolled_out = "pair: {policy_version: '41', critic_version: '41'}\n"
    by_operator = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "irlops-gateway-pair"}}
    before = cluster.find("configmap", "irlops-gateway-pair")["data"]
    forced = ["apply", "--server-side", "--force-conflicts", "--field-manager=irlops-operator", "-f", "-"]
    cluster.kubectl(*forced, text=json.dumps(by_operator | {"data": {"gateway.yaml": rolled_out}}))
    cluster.install("upgrade")
    assert cluster.find("configmap", "irlops-gateway-pair")["data"]["gateway.yaml"] == rolled_out
    cluster.kubectl(*forced, text=json.dumps(by_operator | {"data": before}))


@pytest.mark.parametrize("case", CASES)
def test_every_object_of_every_render_is_admitted_without_an_unknown_field(cluster, case, tmp_path):
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump(CASES[case]))
    rendered = cluster.helm("template", "other", CHART, "-f", str(values))
    known = cluster.kinds()
    objects = [each for each in yaml.safe_load_all(rendered) if each and (each["apiVersion"], each["kind"]) in known]
    assert len(objects) >= 8
    for pod in (each for each in objects if each["kind"] == "Pod"):
        pod["spec"].pop("serviceAccountName", None)  # a dry run makes none, and pods may name only what is there
    cluster.kubectl(
        "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", text=yaml.safe_dump_all(objects)
    )


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        (("patch", "pytorchjobs.kubeflow.org"), True),
        (("patch", "reasoningpipelines.irlops.dev", "--subresource=status"), True),
        (("update", "leases.coordination.k8s.io/irlops-operator"), True),
        (("patch", "reasoningpipelines.irlops.dev"), False),
        (("update", "leases.coordination.k8s.io/another"), False),
        (("get", "secrets"), False),
        (("create", "pods"), False),
        (("get", "pods", "--subresource=log"), False),
        (("list", "nodes"), False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_the_operator_may_do_what_its_role_says_and_no_more(cluster, asked, allowed):
    assert cluster.may("irlops-operator", *asked) is allowed


def refusal(cluster, body):
    metadata = {"name": body["metadata"]["name"]}
    return cluster.refuses(
        "apply", "--dry-run=server", "--validate=strict", "-f", "-", text=json.dumps(body | {"metadata": metadata})
    )


def test_a_pipeline_with_an_unknown_key_is_refused(cluster):
    assert re.search(r'unknown field "(spec\.)?gate"', refusal(cluster, pipeline(gate=[])))


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (pipeline("p" * 41), "the name may have 40 characters"),
        (pipeline(jobTemplate={"stateVolume": {}}), "stateVolume takes claimName (yours) or size"),
        (pipeline(gates=[{"metric": "critic.auroc"}]), "a gate needs minimum, maximum, maxDrop or maxRise"),
        (
            pipeline(serving={"policy": {"autoscaling": {"minReplicas": 0}}}),
            "only keda scales to zero; set minReplicas to 1 or more",
        ),
    ],
    ids=["too long a name", "no state volume", "an empty gate", "to zero without keda"],
)
def test_a_pipeline_that_breaks_a_rule_is_refused_with_its_sentence(cluster, body, sentence):
    assert sentence in refusal(cluster, body)
