"""The custom resource: generated from the contract, acceptable to an API server, and true to the job files."""

import pytest
import yaml

from irlops.contracts.jobs import DataConfig, parse_job
from irlops.contracts.pipeline import PipelineData, PipelineGate, parse_pipeline_spec
from irlops.contracts.pipeline_crd import crd_yaml, pipeline_crd
from irlops.contracts.pipeline_jobs import evaluation_document, training_document
from irlops.contracts.pipeline_status import PipelineStatus
from irlops.errors import ManifestError
from support.charts import CHARTS, kubernetes_faults, render

SPEC = {
    "data": {"name": "gsm8k", "claimName": "gsm8k"},
    "baseModels": {"preset": "tiny", "maxLength": 512},
    "stages": [
        {"name": "sft", "kind": "sft", "settings": {"num_steps": 100, "optimizer": {"learning_rate": 0.001}}},
        {"name": "airl", "kind": "airl", "settings": {"num_rounds": 50}},
    ],
    "jobTemplate": {"stateVolume": {"size": "10Gi"}, "replicas": 1},
    "gates": [{"metric": "critic.auroc", "minimum": 0.7}],
    "serving": {"policy": {"autoscaling": {"class": "hpa", "minReplicas": 1, "maxReplicas": 3}}},
}


def test_the_shipped_crd_is_the_contract():
    shipped = (CHARTS / "irlops-crds" / "templates" / "reasoningpipelines.yaml").read_text()
    assert shipped == crd_yaml(), (
        "run: python -m irlops.contracts.pipeline_crd > charts/irlops-crds/templates/reasoningpipelines.yaml"
    )


def test_the_crd_chart_renders_the_crd_and_keeps_it_when_uninstalled():
    [crd] = render(name="irlops-crds")
    assert crd == pipeline_crd()
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_kubernetes_accepts_the_crd():
    assert kubernetes_faults(pipeline_crd()) == []


def schemas(part, path="") -> list[tuple[str, dict]]:
    """Every schema inside a structural schema with its path."""
    found = [(path, part)]
    for name, inner in part.get("properties", {}).items():
        found += schemas(inner, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(part.get(key), dict):
            found += schemas(part[key], f"{path}[]")
    return found


ROOT = pipeline_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def test_the_schema_is_structural():
    forbidden = {"$ref", "$defs", "const", "title", "definitions", "patternProperties", "prefixItems"}
    for path, schema in schemas(ROOT):
        assert not forbidden & schema.keys(), path
        assert "type" in schema or schema.get("x-kubernetes-int-or-string"), path
        assert not ("properties" in schema and "additionalProperties" in schema), path
        assert schema.get("default", 0) is not None, path


def test_lists_merged_by_key_have_that_key_required_and_a_bound():
    for path, schema in schemas(ROOT):
        if schema.get("x-kubernetes-list-type") == "map":
            assert set(schema["x-kubernetes-list-map-keys"]) <= set(schema["items"]["required"]), path
            assert "maxItems" in schema, path


def test_lists_with_rules_inside_are_bounded_so_that_their_cost_is():
    for path, schema in schemas(ROOT):
        if schema.get("type") == "array" and "x-kubernetes-validations" in str(schema["items"]):
            assert "maxItems" in schema, path


def test_every_rule_has_a_sentence():
    validations = [rule for _, schema in schemas(ROOT) for rule in schema.get("x-kubernetes-validations", [])]
    assert len(validations) >= 10
    assert all(len(rule["message"]) > 15 for rule in validations)


def test_status_is_a_subresource_and_columns_say_where_it_is_and_why():
    version = pipeline_crd()["spec"]["versions"][0]
    columns = [column["name"] for column in version["additionalPrinterColumns"]]
    assert version["subresources"] == {"status": {}}
    assert {"Phase", "Policy", "Critic", "Ready", "Reason", "Age"} <= set(columns)
    status = ROOT["properties"]["status"]["properties"]
    assert {"observedGeneration", "conditions", "phase", "pairs", "history"} <= status.keys()


def test_a_columns_path_leads_to_a_field():
    paths = {path for path, _ in schemas(ROOT)}
    for column in pipeline_crd()["spec"]["versions"][0]["additionalPrinterColumns"]:
        path = column["jsonPath"].split("[?")[0]
        assert path in paths or path.startswith(".metadata"), column


def test_a_pipeline_becomes_job_files_that_the_jobs_accept():
    spec = parse_pipeline_spec(SPEC, origin="gsm8k")
    sft = parse_job(training_document(spec, 0, "gsm8k-1"), origin="sft")
    airl = parse_job(training_document(spec, 1, "gsm8k-1"), origin="airl")
    evaluate = parse_job(evaluation_document(spec, "gsm8k-1"), origin="evaluate")
    assert (sft.kind, sft.run_name, sft.model.policy_from) == ("sft", "gsm8k-1-sft", None)
    assert (airl.model.policy_from, airl.model.critic_from) == ("gsm8k-1-sft/policy", "policy")
    assert (evaluate.model.policy_from, evaluate.model.critic_from) == ("gsm8k-1-airl/policy", "gsm8k-1-airl/critic")
    assert evaluate.samples_per_problem == 16


def test_a_pipelines_data_has_the_fields_of_a_job_files_data():
    ours, theirs = PipelineData.model_fields, DataConfig.model_fields
    assert set(ours) ^ set(theirs) == {"claim_name", "sub_path", "source"}  # a claim takes the place of a folder
    for name in set(ours) & set(theirs):
        assert ours[name].is_required() == theirs[name].is_required(), name
        assert ours[name].is_required() or ours[name].default == theirs[name].default, name


@pytest.mark.parametrize("taken", ["data", "model", "run_name", "kind"])
def test_settings_that_the_pipeline_makes_itself_are_refused(taken):
    stage = {"name": "sft", "kind": "sft", "settings": {taken: "mine"}}
    spec = parse_pipeline_spec({**SPEC, "stages": [stage]}, origin="gsm8k")
    with pytest.raises(ManifestError, match=f"hold {taken}, which the pipeline sets itself"):
        training_document(spec, 0, "gsm8k-1")


def test_a_mistyped_key_is_named():
    with pytest.raises(ManifestError, match=r"stages\.0\.kindd"):
        parse_pipeline_spec({**SPEC, "stages": [{"name": "sft", "kind": "sft", "kindd": 1}]}, origin="gsm8k")


def test_a_gate_against_the_champion_takes_the_stricter_bound():
    gate = PipelineGate(metric="pass_at_k.1", minimum=0.2, max_drop=0.05)
    assert gate.against({"pass_at_k.1": 0.4}).minimum == pytest.approx(0.35)  # 0.4 - 0.05 is above 0.2
    assert gate.against({"pass_at_k.1": 0.1}).minimum == 0.2
    assert gate.against(None).minimum == 0.2


def test_a_gate_on_a_number_that_should_be_small_bounds_its_rise():
    gate = PipelineGate(metric="critic.ece", max_rise=0.02)
    assert gate.against({"critic.ece": 0.08}).maximum == pytest.approx(0.10)
    assert gate.against(None).maximum is None


def test_status_goes_over_the_wire_in_camel_case():
    status = PipelineStatus.model_validate(
        {"observedGeneration": 3, "pairs": {"lastGood": {"policyVersion": "7", "criticVersion": "5"}}}
    )
    assert status.pairs.last_good.policy_version == "7"
    assert yaml.safe_load(status.model_dump_json(by_alias=True, exclude_none=True))["observedGeneration"] == 3
