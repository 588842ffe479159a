"""The training manifests: every one is a job that our reader, Kubeflow's SDK and the API server take, and that its nodes can hold."""

import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import yaml
from kubeflow.training import ApiClient

from irlops.contracts.jobs import parse_job
from irlops.contracts.training_manifest import read_training_manifest
from irlops.local.machine import parse_quantity
from irlops.local.overrides import check_job_file
from irlops_jobs.models.memory_plan import plan_memory
from support.charts import REPOSITORY, SHARED_CRDS, find, render
from support.custom_resources import validator_for

MANIFESTS = REPOSITORY / "manifests"
TRAINING = sorted((MANIFESTS / "training").glob("*-*.yaml"))
PAIRS_OF_THE_PAPER = ("llama3.1-8b", "llama3.2-3b", "qwen2.5-7b", "qwen2.5-3b")
OVERLAYS = ("several-nodes", "elastic", "gpu-nodes", "queued")
every_manifest = pytest.mark.parametrize("file", TRAINING, ids=lambda file: file.stem)


def pytorchjob_of(documents):
    [job] = [document for document in documents if document["kind"] == "PyTorchJob"]
    return job


def pod_of(job):
    return job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]


def built(overlay):
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl, which carries kustomize, is not installed")
    result = subprocess.run([kubectl, "kustomize", MANIFESTS / overlay], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return list(yaml.safe_load_all(result.stdout))


def test_every_kind_of_job_and_size_of_model_has_its_manifest():
    assert {file.stem for file in TRAINING} == {
        f"{kind}-{model}" for kind in ("sft", "airl", "grpo", "evaluate") for model in ("tiny", *PAIRS_OF_THE_PAPER)
    } | {f"{kind}-smollm2-135m" for kind in ("sft", "airl", "evaluate")}


@every_manifest
def test_a_manifest_holds_a_valid_job_that_is_named_like_the_file(file):
    manifest = read_training_manifest(file)
    job = check_job_file(manifest)
    assert job is not None
    assert f"{job.kind}-" == file.stem[: len(job.kind) + 1]
    assert job.run_name == file.stem
    assert manifest.job.metadata.name == file.stem.replace(".", "-")  # a dot is not allowed in a PyTorchJob's name


@every_manifest
def test_kubeflows_sdk_reads_a_manifest_and_gives_back_the_same(file):
    job = pytorchjob_of(read_training_manifest(file).documents)
    client = ApiClient()
    model = client.deserialize(SimpleNamespace(data=json.dumps(job)), "KubeflowOrgV1PyTorchJob")
    assert client.sanitize_for_serialization(model) == job


@every_manifest
def test_the_api_server_takes_a_manifest(file):
    crd = SHARED_CRDS / "kubeflow.org_pytorchjobs.yaml"
    if not crd.exists():
        pytest.skip("the training operator's CRD is not beside the checkout")
    job = pytorchjob_of(read_training_manifest(file).documents)
    assert [error.message for error in validator_for(crd).iter_errors(job)] == []


@every_manifest
def test_a_job_ends_frees_its_pods_and_is_tried_again_only_where_that_helps(file):
    spec = read_training_manifest(file).job.spec
    assert spec.nproc_per_node.isdigit()  # `auto` would start one process for each core
    assert (spec.run_policy.clean_pod_policy, spec.pytorch_replica_specs.Master) == ("Running", None)
    assert spec.run_policy.active_deadline_seconds
    assert spec.run_policy.ttl_seconds_after_finished
    worker = spec.pytorch_replica_specs.Worker
    assert worker.restart_policy == "ExitCode"
    # Fixed unless an overlay says otherwise, so that a run is repeatable.
    assert spec.elastic_policy.min_replicas == spec.elastic_policy.max_replicas == worker.replicas


@every_manifest
def test_a_pod_satisfies_the_restricted_standard_and_bounds_what_it_takes(file):
    pod = pod_of(pytorchjob_of(read_training_manifest(file).documents))
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"]
    [container] = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys() & container["resources"]["limits"].keys()
    assert not re.search(r":latest$|^[^:]+$", container["image"])


@every_manifest
def test_pods_that_may_land_on_two_nodes_share_a_claim_that_allows_it(file):
    documents = read_training_manifest(file).documents
    [claim] = [document for document in documents if document["kind"] == "PersistentVolumeClaim"]
    job = pytorchjob_of(documents)
    several = job["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"] > 1
    if several and claim["spec"]["accessModes"] == ["ReadWriteOnce"]:
        [term] = pod_of(job)["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert term["topologyKey"] == "kubernetes.io/hostname"
        assert term["labelSelector"]["matchLabels"] == {"training.kubeflow.org/job-name": job["metadata"]["name"]}


def test_claims_of_one_name_ask_for_the_same_so_that_one_manifest_can_follow_another():
    asked = {}
    for file in TRAINING:
        for document in read_training_manifest(file).documents:
            if document["kind"] == "PersistentVolumeClaim":
                asked.setdefault(document["metadata"]["name"], []).append(document["spec"])
    assert all(spec == specs[0] for specs in asked.values() for spec in specs)


@every_manifest
def test_a_job_starts_from_models_that_another_manifest_leaves_in_the_same_claim(file):
    manifest = read_training_manifest(file)
    job = check_job_file(manifest)
    named = [job.model.policy_from, job.model.critic_from, *getattr(job, "compare", {}).values()]
    for run_name in {name.split("/")[0] for name in named if name and "/" in name}:
        source = read_training_manifest(MANIFESTS / "training" / f"{run_name}.yaml")
        assert source.claims == manifest.claims


@pytest.mark.parametrize("server", ["cpu/policy", "cpu/critic", "gpu/policy", "gpu/critic"])
def test_what_is_served_is_what_a_job_leaves_in_its_claim(server):
    service = yaml.safe_load((MANIFESTS / "serving" / f"{server}.yaml").read_text())
    scheme, _, claim, run_name, half = service["spec"]["predictor"]["model"]["storageUri"].split("/")
    manifest = read_training_manifest(MANIFESTS / "training" / f"{run_name}.yaml")
    assert (scheme, half) == ("pvc:", server.split("/")[1])
    assert manifest.claims == (claim,)


@pytest.mark.parametrize("file", [file for file in TRAINING if "tiny" not in file.stem], ids=lambda file: file.stem)
def test_a_job_fits_into_the_memory_it_asks_for(file):
    manifest = read_training_manifest(file)
    job, [(_, worker)] = check_job_file(manifest), manifest.job.spec.replicas()
    num_processes = int(manifest.job.spec.nproc_per_node)
    resources = worker.template.spec.pytorch.resources
    # An 80 GB device has 79 GiB for its users; a process without one shares the pod's memory.
    on_gpu = "nvidia.com/gpu" in resources.limits
    available = 79.0 if on_gpu else parse_quantity(resources.limits["memory"]) / 2**30 / num_processes
    plan = plan_memory(job, num_ranks=num_processes * worker.replicas, device_gib=available)
    assert plan.fits, str(plan)


@pytest.mark.parametrize("pair", PAIRS_OF_THE_PAPER)
def test_vllm_gets_room_for_its_weights_and_for_the_sequences_it_decodes_at_once(pair):
    job = check_job_file(read_training_manifest(MANIFESTS / "training" / f"airl-{pair}.yaml"))
    plan = plan_memory(job, num_ranks=8, device_gib=79)
    needed = sum(part.num_bytes for part in plan.parts if part.what.startswith(("vLLM", "rollouts"))) / 2**30
    share = job.rollouts.gpu_memory_fraction * 79
    assert needed + 3 < share  # 3 GiB for the activations of a prefill
    rest = plan.total_bytes / 2**30 - needed
    assert rest + share < 79


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_leaves_a_job_that_is_still_valid(overlay):
    documents = built(f"overlays/{overlay}")
    job = pytorchjob_of(documents)
    [config] = [document for document in documents if document["kind"] == "ConfigMap"]
    parse_job(yaml.safe_load(config["data"]["job.yaml"]), origin=overlay)
    crd = SHARED_CRDS / "kubeflow.org_pytorchjobs.yaml"
    if crd.exists():
        assert [error.message for error in validator_for(crd).iter_errors(job)] == []


def test_the_overlays_change_what_they_are_named_after():
    several, elastic = (built(f"overlays/{name}") for name in ("several-nodes", "elastic"))
    bounds = [pytorchjob_of(documents)["spec"]["elasticPolicy"] for documents in (several, elastic)]
    assert [(policy["minReplicas"], policy["maxReplicas"]) for policy in bounds] == [(2, 2), (1, 4)]
    assert pytorchjob_of(several)["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"] == 2
    queued = pytorchjob_of(built("overlays/queued"))
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "irlops"
    assert queued["spec"]["runPolicy"]["suspend"] is True
    [toleration] = pod_of(pytorchjob_of(built("overlays/gpu-nodes")))["tolerations"]
    assert (toleration["key"], toleration["operator"]) == ("nvidia.com/gpu", "Exists")


def test_the_whole_folder_installs_the_servers_for_cpus():
    kinds = [document["kind"] for document in built(".")]
    assert sorted(kinds) == sorted(["ServiceAccount", "NetworkPolicy", *["ServingRuntime", "InferenceService"] * 2])


@every_manifest
def test_a_job_in_the_charts_namespace_finds_mlflow_and_its_password(file):
    objects = render()
    variables = {
        one["name"]: one.get("valueFrom", {})
        for one in pod_of(pytorchjob_of(read_training_manifest(file).documents))["containers"][0]["env"]
    }
    uri = variables["MLFLOW_TRACKING_URI"]["configMapKeyRef"]
    assert find(objects, "ConfigMap", uri["name"])["data"][uri["key"]] == "http://irlops-mlflow.team-a.svc:5000"
    for name in ("USERNAME", "PASSWORD"):
        login = variables[f"MLFLOW_TRACKING_{name}"]["secretKeyRef"]
        assert login["key"] in find(objects, "Secret", login["name"])["data"]


def test_pods_carry_the_labels_by_which_the_chart_lets_them_reach_each_other():
    [policy] = [one for one in render() if one["kind"] == "NetworkPolicy" and one["metadata"]["name"] == "irlops-job"]
    wanted = policy["spec"]["podSelector"]["matchLabels"]
    for file in TRAINING:
        worker = pytorchjob_of(read_training_manifest(file).documents)["spec"]["pytorchReplicaSpecs"]["Worker"]
        assert wanted.items() <= worker["template"]["metadata"]["labels"].items()
