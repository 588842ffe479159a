"""The custom resource's rules, evaluated as an API server does: on its defaults, and on what each of them is there to refuse."""

import pytest

from irlops.contracts.pipeline_crd import pipeline_crd
from support.custom_resources import broken_rules, with_defaults
from support.kube_world import pipeline

ROOT = pipeline_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def refusals(body):
    return broken_rules(ROOT, with_defaults(ROOT, body))


def defaults(schema, path=""):
    """Every default with the schema that it has to satisfy."""
    if "default" in schema:
        yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from defaults(part, f"{path}.{name}")
    if isinstance(schema.get("items"), dict):
        yield from defaults(schema["items"], f"{path}[]")


def test_every_default_keeps_the_rules_beside_it_before_anything_is_filled_in():
    found = dict(defaults(ROOT))
    assert ".spec.serving.policy.autoscaling" in found
    for path, schema in found.items():
        assert broken_rules(schema, schema["default"]) == [], path
        assert with_defaults(schema, schema["default"]) == schema["default"], path


def test_a_default_that_leaves_fields_to_be_filled_in_would_break_a_rule():
    autoscaling = ROOT["properties"]["spec"]["properties"]["serving"]["properties"]["policy"]["properties"][
        "autoscaling"
    ]
    assert "minReplicas is above maxReplicas" in broken_rules(autoscaling, {})


def test_a_plain_pipeline_breaks_no_rule():
    assert refusals(pipeline()) == []


def serving(**autoscaling):
    return {"serving": {"policy": {"autoscaling": autoscaling}}}


def job(**template):
    return {"jobTemplate": {"stateVolume": {"size": "1Gi", "accessMode": "ReadWriteMany"}} | template}


def gate(**bounds):
    return {"gates": [{"metric": "critic.auroc"} | bounds]}


REFUSED = {
    "minReplicas is above maxReplicas": serving(minReplicas=3, maxReplicas=2),
    "only keda scales to zero; set minReplicas to 1 or more": serving(minReplicas=0),
    "keda needs metrics (KServe's autoScaling.metrics)": serving(**{"class": "keda"}),
    "stateVolume takes claimName (yours) or size (the operator makes one)": job(stateVolume={}),
    "replicas lies outside elastic.minReplicas..maxReplicas": job(replicas=5, elastic={"maxReplicas": 4}),
    "several replicas share the state volume: set stateVolume.accessMode to ReadWriteMany": job(
        replicas=2, stateVolume={"size": "1Gi"}
    ),
    "a gate needs minimum, maximum, maxDrop or maxRise": gate(),
    "minimum is above maximum: nothing can pass": gate(minimum=0.9, maximum=0.8),
}
NAMES = {
    "the name may have 40 characters: jobs and services are called after it": "a" * 41,
    "the name must start with a letter and hold only a-z, 0-9 and -: jobs are called after it": "2.tiny",
}


def sentences(schema):
    yield from (rule["message"] for rule in schema.get("x-kubernetes-validations", []))
    for part in [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]:
        yield from sentences(part)


def test_every_sentence_of_the_resource_is_reached_here():
    assert set(sentences(ROOT)) == REFUSED.keys() | NAMES.keys()


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_a_rule_is_there_for_is_refused(sentence):
    assert refusals(pipeline(**REFUSED[sentence])) == [sentence]


@pytest.mark.parametrize("sentence", NAMES)
def test_a_name_that_jobs_could_not_take_is_refused(sentence):
    assert refusals(pipeline(NAMES[sentence])) == [sentence]


def test_an_elastic_job_is_held_to_both_of_its_bounds():
    assert refusals(pipeline(**job(replicas=2, elastic={"minReplicas": 3, "maxReplicas": 2}))) == [
        "replicas lies outside elastic.minReplicas..maxReplicas",
        "minReplicas is above maxReplicas",
    ]
