"""What things are called: it follows from the pipeline alone, whichever release of the operator asks."""

from irlops.contracts.pipeline import PipelineData, PipelineSpec
from irlops.operator.names import run_id
from support.kube_world import pipeline


class LaterData(PipelineData):
    """As a later release might have it."""

    curriculum: str | None = None


class LaterSpec(PipelineSpec):
    """Of a later release."""

    data: LaterData


def id_of(body, read=PipelineSpec):
    return run_id(body, read.model_validate(body["spec"]))


def test_a_release_that_adds_a_field_trains_no_pipeline_anew():
    assert id_of(pipeline(), LaterSpec) == id_of(pipeline())


def test_a_default_that_an_api_server_filled_in_is_no_other_run():
    assert id_of(pipeline(data={"name": "arithmetic", "numDev": 256, "onMalformed": "raise"})) == id_of(pipeline())


def test_what_would_teach_something_else_is_another_run():
    other = [
        pipeline(data={"name": "arithmetic", "seed": 7}),
        pipeline(baseModels={"preset": "tiny", "maxLength": 512}),
        pipeline(evaluation={"samplesPerProblem": 8}),
        pipeline(stages=[{"name": "airl", "kind": "airl"}]),
    ]
    assert len({id_of(body) for body in [pipeline(), *other]}) == 5


def test_more_pods_or_another_gate_is_the_same_run():
    body = pipeline(gates=[{"metric": "pass_at_k.1", "minimum": 0.1}], retries={"limit": 0})
    body["spec"]["stages"][0]["replicas"] = 2
    assert id_of(body) == id_of(pipeline())
