"""The serving manifests are what KServe takes, and what our servers and the gateway expect."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import kserve
import kubernetes.client
import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator

from irlops_serving.vllm_server import is_installed

REPOSITORY = Path(__file__).parents[3]
SERVING = REPOSITORY / "manifests" / "serving"
CRDS = REPOSITORY.parent / "shared" / "crds"
FLAVOURS = ("gpu", "cpu")
ROLES = ("policy", "critic")
FILES = sorted(SERVING.rglob("*.yaml"))
CRD_OF = {"InferenceService": "inferenceservices", "ServingRuntime": "servingruntimes"}
MODEL_OF = {"InferenceService": "V1beta1InferenceService", "ServingRuntime": "V1alpha1ServingRuntime"}

every_half = pytest.mark.parametrize(("flavour", "role"), [(f, r) for f in FLAVOURS for r in ROLES])
KSERVE_FILES = [path for path in FILES if path.parent.name in FLAVOURS and path.name != "kustomization.yaml"]
every_kserve_file = pytest.mark.parametrize("path", KSERVE_FILES, ids=lambda path: f"{path.parent.name}/{path.name}")


def _load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def _service(flavour: str, role: str) -> dict[str, Any]:
    return _load(SERVING / flavour / f"{role}.yaml")


def _runtime(flavour: str, role: str) -> dict[str, Any]:
    return _load(SERVING / flavour / f"{role}-runtime.yaml")


def _container(flavour: str, role: str) -> dict[str, Any]:
    (container,) = _runtime(flavour, role)["spec"]["containers"]
    return container


class _Answer:
    """What the SDK's deserializer takes: an HTTP response."""

    def __init__(self, body: Any) -> None:
        self.data = json.dumps(body)


@pytest.fixture
def whole_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """KServe's deserializer looks for Kubernetes' own models among its models, where its wheel does not put them."""
    known = vars(kubernetes.client.models)
    models = {name: model for name, model in known.items() if name.startswith("V")}
    models["K8sIoApiAppsV1DeploymentStrategy"] = known["V1DeploymentStrategy"]
    for name in models.keys() - vars(kserve.models).keys():
        monkeypatch.setattr(kserve.models, name, models[name], raising=False)


@every_kserve_file
@pytest.mark.usefixtures("whole_sdk")
def test_the_sdk_reads_every_field_and_writes_it_back(path: Path):
    manifest = _load(path)
    client = kserve.ApiClient()
    model = client.deserialize(_Answer(manifest), MODEL_OF[manifest["kind"]])
    written = client.sanitize_for_serialization(model)
    if manifest["kind"] == "InferenceService":
        assert written["spec"]["predictor"]["model"].pop("name") == ""  # the SDK's own default
    # A field the SDK does not know would be dropped on the way.
    assert written == manifest


@every_kserve_file
def test_the_crd_takes_it_without_an_unknown_field(path: Path):
    manifest = _load(path)
    crd = CRDS / f"serving.kserve.io_{CRD_OF[manifest['kind']]}.yaml"
    if not crd.exists():
        pytest.skip("KServe's CRDs are not beside the repository")
    version, validator = _crd(crd)
    assert manifest["apiVersion"] == f"serving.kserve.io/{version}"
    assert [error.message for error in validator.iter_errors(manifest)] == []


@cache  # two megabytes of YAML
def _crd(path: Path) -> tuple[str, Draft202012Validator]:
    version = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]["versions"][0]
    return version["name"], Draft202012Validator(_strict(version["schema"]["openAPIV3Schema"]))


def _strict(schema: Any) -> Any:
    """The schema with every listed object closed: the API server would drop what it does not know."""
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    closed = {key: _strict(value) for key, value in schema.items() if key not in ("properties", "format", "pattern")}
    if "properties" in schema:
        closed["properties"] = {name: _strict(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields") and schema["properties"].keys() != {"name"}:
            closed.setdefault("additionalProperties", False)
    return closed


def test_strictness_catches_a_field_that_nobody_knows():
    schema = _strict({"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {}, "c": {}}}}})
    assert not Draft202012Validator(schema).is_valid({"a": {"d": 1}})


@pytest.mark.parametrize("name", ["service-account.yaml", "network-policy.yaml"])
def test_kubernetes_takes_what_both_flavours_share(name: str):
    # Raises at what it doesn't take; says which version's schema it read.
    assert kubernetes_validate.validate(_load(SERVING / "shared" / name), "1.31", strict=True) == "1.31"


@pytest.mark.parametrize("flavour", ["shared", *FLAVOURS])
def test_a_flavour_applies_every_file_of_its_folder(flavour: str):
    folder = SERVING / flavour
    named = {name for name in _load(folder / "kustomization.yaml")["resources"] if not name.startswith("..")}
    assert named == {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}


@every_half
def test_a_service_names_the_runtime_that_takes_its_format(flavour: str, role: str):
    model, runtime = _service(flavour, role)["spec"]["predictor"]["model"], _runtime(flavour, role)
    assert model["runtime"] == runtime["metadata"]["name"]
    (taken,) = runtime["spec"]["supportedModelFormats"]
    assert (taken["name"], taken["version"]) == (model["modelFormat"]["name"], model["modelFormat"]["version"])
    assert taken["autoSelect"] is False
    assert model.get("protocolVersion", "v1") in runtime["spec"].get("protocolVersions", ["v1"])


@every_half
def test_nothing_is_left_to_a_clusters_defaults(flavour: str, role: str):
    service = _service(flavour, role)
    annotations, predictor = service["metadata"]["annotations"], service["spec"]["predictor"]
    assert annotations["serving.kserve.io/deploymentMode"] == "Standard"
    assert annotations["serving.kserve.io/autoscalerClass"] == {"gpu": "none", "cpu": "hpa"}[flavour]
    assert service["metadata"]["labels"]["networking.kserve.io/visibility"] == "cluster-local"
    assert predictor["timeout"] >= 60
    assert predictor["minReplicas"] >= 1
    assert {"maxSurge", "maxUnavailable"} == set(predictor["deploymentStrategy"]["rollingUpdate"])


@pytest.mark.parametrize("role", ROLES)
def test_a_full_gpu_pool_never_blocks_an_update(role: str):
    update = _service("gpu", role)["spec"]["predictor"]["deploymentStrategy"]["rollingUpdate"]
    assert update == {"maxSurge": 0, "maxUnavailable": 1}


def test_keda_gets_its_threshold_where_kserve_reads_it():
    patch = _load(REPOSITORY / "manifests" / "overlays" / "keda" / "autoscaling.yaml")
    [metric] = patch["spec"]["predictor"]["autoScaling"]["metrics"]
    # Its webhook refuses an External metric without a query or a value; averageValue is not read at all.
    assert metric["external"]["metric"]["query"].startswith("sum(vllm:num_requests_waiting")
    assert metric["external"]["target"] == {"type": "Value", "value": "16"}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_both_halves_come_from_one_run(flavour: str):
    claims = [_service(flavour, role)["spec"]["predictor"]["model"]["storageUri"] for role in ROLES]
    folders = [uri.removeprefix("pvc://").rsplit("/", 1) for uri in claims]
    assert folders[0][0] == folders[1][0]
    assert [folder[1] for folder in folders] == list(ROLES)


@every_half
def test_pods_pass_the_restricted_security_standard(flavour: str, role: str):
    pod = _service(flavour, role)["spec"]["predictor"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    security = _container(flavour, role)["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["readOnlyRootFilesystem"] is True


@every_half
def test_a_container_is_pinned_bounded_and_probed(flavour: str, role: str):
    container = _container(flavour, role)
    image, tag = container["image"].rsplit(":", 1)
    assert "/" in image
    assert tag not in ("latest", "")
    assert set(container["resources"]["limits"]) == set(container["resources"]["requests"]) >= {"cpu", "memory"}
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)


@every_half
def test_the_network_policy_covers_the_pod(flavour: str, role: str):
    (rule,) = _load(SERVING / "shared" / "network-policy.yaml")["spec"]["podSelector"]["matchExpressions"]
    labels = _service(flavour, role)["spec"]["predictor"]["labels"]
    assert labels[rule["key"]] in rule["values"]


@pytest.mark.parametrize("role", ROLES)
def test_our_servers_take_their_arguments(role: str):
    container = _container("cpu", role)
    module = import_module(f"{container['command'][2]}.__main__")
    given = module._parse(container["args"])
    assert (str(given.model_dir), given.model_name, given.port) == ("/mnt/models", role, 8080)


@pytest.mark.slow
@pytest.mark.skipif(not is_installed(), reason="vLLM is not installed")
def test_vllm_takes_its_arguments():
    # In one process of its own: importing vLLM takes ten seconds.
    program = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
given = [parser.parse_args(arguments) for arguments in json.loads(sys.argv[1])]
print(json.dumps([[each.model, each.port, each.served_model_name, each.runner] for each in given]))
"""
    arguments = json.dumps([_container("gpu", role)["args"] for role in ROLES])
    ended = subprocess.run([sys.executable, "-c", program, arguments], capture_output=True, text=True, timeout=250)
    assert ended.returncode == 0, ended.stderr[-2000:]
    policy, critic = json.loads(ended.stdout.splitlines()[-1])
    assert policy == ["/mnt/models", 8080, ["policy"], "auto"]
    assert critic == ["/mnt/models", 8080, ["critic"], "pooling"]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for entry in value.values():
            yield from _strings(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _strings(entry)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_code_of_a_model_is_ever_trusted(path: Path):
    assert not any("trust-remote-code" in text or "trust_remote_code" in text for text in _strings(_load(path)))


def test_the_critic_runs_in_the_precision_and_activation_it_was_calibrated_in():
    command = shlex.join(_container("gpu", "critic")["args"])
    assert "--dtype=float32" in command
    assert '"use_activation": false' in command
    assert "--runner=pooling" in command
