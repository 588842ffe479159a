"""The chart and manifests/ install the same servers, and the overlays build on what is there."""

import shutil
import subprocess

import pytest
import yaml

from support.charts import REPOSITORY, SHARED_CRDS, find, render

MANIFESTS = REPOSITORY / "manifests"


@pytest.mark.parametrize("kind", ["vllm", "cpu"])
@pytest.mark.parametrize("role", ["policy", "critic"])
def test_a_runtime_of_the_chart_starts_the_server_that_the_manifests_start(role, kind):
    file = MANIFESTS / "serving" / ("gpu" if kind == "vllm" else "cpu") / f"{role}-runtime.yaml"
    theirs = yaml.safe_load(file.read_text())
    ours = find(render(), "ServingRuntime", f"irlops-{role}-{kind}")
    assert ours["spec"]["supportedModelFormats"] == theirs["spec"]["supportedModelFormats"]
    [mine], [other] = ours["spec"]["containers"], theirs["spec"]["containers"]
    differing = {key for key in mine if mine[key] != other.get(key)}
    assert differing == {"imagePullPolicy"}, "the chart alone says how to pull; everything else is the same server"


@pytest.mark.parametrize("role", ["policy", "critic"])
def test_the_gateway_looks_where_the_manifests_serve(role):
    pair = yaml.safe_load(find(render(), "ConfigMap", "irlops-gateway-pair")["data"]["gateway.yaml"])["pair"]
    service = yaml.safe_load((MANIFESTS / "serving" / "gpu" / f"{role}.yaml").read_text())
    assert pair[role]["url"] == f"http://{service['metadata']['name']}-predictor.team-a.svc"


@pytest.mark.parametrize("overlay", sorted(path.name for path in (MANIFESTS / "overlays").iterdir()))
def test_an_overlay_builds(overlay):
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl, which carries kustomize, is not installed")
    built = subprocess.run([kubectl, "kustomize", MANIFESTS / "overlays" / overlay], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert all(each["kind"] for each in yaml.safe_load_all(built.stdout))


def test_the_keda_overlay_scales_the_policy_on_a_series_that_kserve_accepts():
    patch = yaml.safe_load((MANIFESTS / "overlays" / "keda" / "autoscaling.yaml").read_text())
    [metric] = patch["spec"]["predictor"]["autoScaling"]["metrics"]
    assert metric["external"]["metric"]["backend"] == "prometheus"
    crd = SHARED_CRDS / "serving.kserve.io_inferenceservices.yaml"
    if not crd.exists():
        pytest.skip("KServe's CRDs are not beside the checkout")
    schema = yaml.load(crd.read_text(), yaml.CSafeLoader)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    predictor = schema["properties"]["spec"]["properties"]["predictor"]["properties"]
    external = predictor["autoScaling"]["properties"]["metrics"]["items"]["properties"]["external"]["properties"]
    assert metric["external"].keys() <= external.keys()
    assert metric["external"]["metric"].keys() <= external["metric"]["properties"].keys()
    assert metric["external"]["target"]["type"] in external["target"]["properties"]["type"]["enum"]
