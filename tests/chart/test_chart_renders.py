"""Every case of values renders, fast, into objects that Kubernetes and the CRDs know."""

import json
import time
from functools import cache

import helm_python
import pytest
import yaml

from support.charts import CASES, CHARTS, SHARED_CRDS, chart, find, kubernetes_faults, notes, render

BUILT_IN = {"v1", "apps/v1", "policy/v1", "autoscaling/v2", "networking.k8s.io/v1", "rbac.authorization.k8s.io/v1"}
IMMUTABLE = CHARTS.parent / "tests" / "chart" / "immutable_fields.json"

every_case = pytest.mark.parametrize("values", CASES.values(), ids=CASES.keys())


@pytest.mark.parametrize("name", ["irlops", "irlops-crds"])
def test_charts_lint_without_a_warning(name):
    report = helm_python.lint(CHARTS / name, {}, strict=True)
    assert [m for m in report["messages"] if m["severity"] > 1] == []
    assert report["errors"] == []


@every_case
@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_every_built_in_object_is_valid_for_kubernetes(values, version):
    built_in = [each for each in render(values) if each["apiVersion"] in BUILT_IN]
    assert [fault for each in built_in for fault in kubernetes_faults(each, version)] == []


def test_the_validator_finds_a_mistyped_field():
    service = find(render(), "Service", "irlops-gateway")
    service["spec"]["portz"] = service["spec"].pop("ports")
    assert "portz" in kubernetes_faults(service)[0]


@every_case
def test_serving_runtimes_are_valid_for_kserve(values):
    schema = crd_schema("serving.kserve.io_servingruntimes")
    for runtime in (each for each in render(values) if each["kind"] == "ServingRuntime"):
        assert unknown_fields(runtime["spec"], schema["properties"]["spec"], "spec") == []


@cache
def crd_schema(name):
    crd = SHARED_CRDS / f"{name}.yaml"
    if not crd.exists():
        pytest.skip("KServe's CRDs are not beside the checkout")
    return yaml.load(crd.read_text(), yaml.CSafeLoader)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def unknown_fields(value, schema, path):
    """Paths in ``value`` that a structural schema would prune or that have another type."""
    if schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-int-or-string"):
        return []
    if isinstance(value, dict):
        known, rest = schema.get("properties", {}), schema.get("additionalProperties")
        found = [f"{path}.{key}" for key in value if key not in known and rest is None]
        for key, part in value.items():
            inner = known.get(key, rest if isinstance(rest, dict) else None)
            found += unknown_fields(part, inner, f"{path}.{key}") if inner else []
        return found
    if isinstance(value, list):
        return [fault for part in value for fault in unknown_fields(part, schema.get("items", {}), f"{path}[]")]
    types = {str: "string", bool: "boolean", int: "integer", float: "number"}
    return [] if schema.get("type") in (None, types[type(value)], "number") else [f"{path}: {value!r}"]


def test_names_are_unique_within_their_kind():
    for values in CASES.values():
        names = [(each["kind"], each["metadata"]["name"]) for each in render(values)]
        assert len(names) == len(set(names))


@every_case
def test_no_object_names_a_namespace_of_its_own(values):
    assert [each["metadata"]["name"] for each in render(values) if "namespace" in each["metadata"]] == []


def test_rendering_takes_less_than_a_second():
    started = time.perf_counter()
    with helm_python.Chart.load(CHARTS / "irlops") as fresh:
        fresh.render(CASES["production"], name="irlops", namespace="team-a")
    assert time.perf_counter() - started < 1.0


@pytest.mark.parametrize("release", ["irlops", "a-release-with-a-very-long-name-of-fifty-three-chars-x"])
def test_names_and_labels_stay_within_63_characters(release):
    for each in render(CASES["production"], release=release):
        assert len(each["metadata"]["name"]) <= 63
        assert all(len(value) <= 63 for value in each["metadata"].get("labels", {}).values())


def test_what_kubernetes_never_lets_change_is_what_was_released():
    seen = {}
    for each in render(CASES["default"]):
        name = f"{each['kind']}/{each['metadata']['name']}"
        if each["kind"] == "Deployment":
            seen[name] = each["spec"]["selector"]
        elif each["kind"] == "PersistentVolumeClaim":
            seen[name] = each["spec"]
        elif each["kind"] == "RoleBinding":
            seen[name] = each["roleRef"]
        elif each["kind"] == "Service":
            seen[name] = {"type": each["spec"]["type"], "clusterIP": each["spec"].get("clusterIP")}
    assert seen == json.loads(IMMUTABLE.read_text()), "helm upgrade would fail on clusters with the released chart"


def test_an_upgrade_renders_what_an_installation_renders():
    values = {"mlflow": {"auth": {"existingSecret": "login"}}}
    first = chart().render(values, name="irlops", namespace="team-a", is_install=True)
    later = chart().render(values, name="irlops", namespace="team-a", is_upgrade=True, revision=2)
    assert first == later


def test_the_only_thing_that_differs_between_two_renders_is_the_made_up_password():
    first, second = (chart().render({}, name="irlops", namespace="team-a") for _ in range(2))
    assert [path for path in first if first[path] != second[path]] == ["irlops/templates/mlflow/secret.yaml"]


def test_notes_name_three_next_commands():
    text = notes(CASES["trial"])
    assert [f"  {n}. " in text for n in (1, 2, 3)] == [True, True, True]
    assert "gateway.keys" in text
    assert "irlops ask" in text


def test_a_tag_is_the_charts_own_version_and_a_digest_wins_over_it():
    plain = find(render(), "Deployment", "irlops-operator")
    digest = "sha256:" + "0" * 64
    pinned = find(render({"images": {"platform": {"digest": digest}}}), "Deployment", "irlops-operator")
    assert plain["spec"]["template"]["spec"]["containers"][0]["image"] == "localhost/irlops-platform:0.1.0"
    assert pinned["spec"]["template"]["spec"]["containers"][0]["image"] == f"localhost/irlops-platform@{digest}"


def test_a_global_registry_stands_before_every_image():
    objects = render(CASES["production"])
    images = [
        c["image"]
        for each in objects
        if each["kind"] == "Deployment"
        for c in each["spec"]["template"]["spec"]["containers"]
    ]
    assert {image.split("/")[0] for image in images} == {"registry.example.com"}


def test_the_operator_chooses_the_runtimes_of_the_default_kind():
    config = find(render(CASES["trial"]), "ConfigMap", "irlops-operator")["data"]
    assert config["IRLOPS_OPERATOR_POLICY_RUNTIME"] == "irlops-policy-cpu"
    assert config["IRLOPS_OPERATOR_CRITIC_PROTOCOL"] == "v2"


def test_both_default_runtimes_are_rendered():
    for values in (CASES["default"], CASES["trial"], CASES["production"]):
        objects = render(values)
        config = find(objects, "ConfigMap", "irlops-operator")["data"]
        runtimes = {each["metadata"]["name"] for each in objects if each["kind"] == "ServingRuntime"}
        assert {config["IRLOPS_OPERATOR_POLICY_RUNTIME"], config["IRLOPS_OPERATOR_CRITIC_RUNTIME"]} <= runtimes


def test_a_kept_volume_is_never_opened_by_two_pods_at_once():
    deployment = find(render(), "Deployment", "irlops-mlflow")["spec"]
    assert (deployment["strategy"]["type"], deployment["replicas"]) == ("Recreate", 1)


def test_a_gateway_pod_outlives_its_drain():
    values = {"gateway": {"settings": {"timeouts": {"drain_s": 300, "drain_delay_s": 10}}}}
    pod = find(render(values), "Deployment", "irlops-gateway")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 325  # 300 + 10 + a margin of 15


def test_an_autoscaled_gateway_leaves_its_replicas_to_the_autoscaler():
    assert "replicas" not in find(render(CASES["production"]), "Deployment", "irlops-gateway")["spec"]
