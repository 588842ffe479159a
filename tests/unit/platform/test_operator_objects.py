"""What the operator writes is what the API servers of Kubernetes, Kubeflow and KServe take."""

import json

import pytest
import yaml

from irlops.contracts.jobs import parse_job
from irlops.contracts.pytorchjob import PyTorchJob
from irlops.operator.names import service_name
from irlops_serving.gateway.settings import PairSettings
from support.charts import CHARTS, SHARED_CRDS, kubernetes_faults
from support.custom_resources import validator_for
from support.kube_world import World, pipeline

PIPELINE_CRD = CHARTS / "irlops-crds" / "templates" / "reasoningpipelines.yaml"


@pytest.fixture(scope="module")
async def world():
    world = World()
    world.registry.register("earlier", calibration={"schema": 1, "aggregation": "last", "temperature": 2.0})
    template = {
        "stateVolume": {"size": "1Gi", "storageClassName": "fast", "accessMode": "ReadWriteMany"},
        "replicas": 2,
        "elastic": {"minReplicas": 1, "maxReplicas": 4},
        "queueName": "team",
        "priorityClassName": "low",
        "resources": {"requests": {"cpu": "2"}, "limits": {"memory": "3Gi"}},
        "env": [{"name": "NCCL_DEBUG", "value": "WARN"}, {"name": "HOME", "value": "/var/lib/irlops"}],
        "podTemplate": {
            "spec": {"nodeSelector": {"pool": "gpu"}, "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}]}
        },
    }
    serving = {
        "policy": {
            "autoscaling": {"class": "hpa", "maxReplicas": 3},
            "resources": {"limits": {"memory": "2Gi"}},
            "podTemplate": {"metadata": {"annotations": {"team": "a"}}, "spec": {"nodeSelector": {"pool": "gpu"}}},
        },
        "critic": {
            "autoscaling": {"class": "keda", "minReplicas": 0, "metrics": [{"type": "Resource"}]},
            "args": ["--dtype=float32"],
        },
    }
    world.api.put(pipeline(jobTemplate=template, serving=serving))
    await world.run()
    world.registry.alias["champion"] = 1
    await world.run()
    return world


def of_kind(world, kind):
    return list(world.api.of_kind(kind).values())


CRDS = {"PyTorchJob": "kubeflow.org_pytorchjobs.yaml", "InferenceService": "serving.kserve.io_inferenceservices.yaml"}


@pytest.mark.parametrize("kind", CRDS)
async def test_owned_objects_are_valid_by_their_crds(world, kind):
    if not (SHARED_CRDS / CRDS[kind]).exists():
        pytest.skip("the CRDs of Kubeflow and KServe are not beside this checkout")
    for body in of_kind(world, kind):
        kept = {**body, "metadata": {}, "status": {}}
        assert list(validator_for(SHARED_CRDS / CRDS[kind]).iter_errors(kept)) == []


async def test_the_status_is_valid_by_our_own_crd(world):
    for body in of_kind(world, "ReasoningPipeline"):
        assert [error.message for error in validator_for(PIPELINE_CRD).iter_errors({**body, "metadata": {}})] == []


@pytest.mark.parametrize("kind", ["ConfigMap", "PersistentVolumeClaim", "Event"])
async def test_built_in_objects_are_valid_by_kubernetes_own_schemas(world, kind):
    assert of_kind(world, kind)
    assert [fault for body in of_kind(world, kind) for fault in kubernetes_faults(body)] == []


async def test_the_training_operators_webhook_admits_every_job(world):
    for body in of_kind(world, "PyTorchJob"):
        job = PyTorchJob.model_validate(body)
        longest_pod = f"{job.metadata.name}-worker-1023"
        assert len(longest_pod) <= 63


async def test_job_pods_satisfy_the_restricted_profile(world):
    for body in of_kind(world, "PyTorchJob"):
        pod = body["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
        [container] = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert pod["automountServiceAccountToken"] is False


async def test_every_mount_has_its_volume_and_the_users_are_added(world):
    for body in of_kind(world, "PyTorchJob"):
        pod = body["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} <= volumes
        assert "shm" in volumes
        environment = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
        assert environment["HOME"] == "/var/lib/irlops"  # the user's wins


async def test_the_priority_class_reaches_the_pods_with_and_without_a_gang_scheduler(world):
    for body in of_kind(world, "PyTorchJob"):
        assert body["spec"]["runPolicy"]["schedulingPolicy"] == {"priorityClass": "low"}
        assert body["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["priorityClassName"] == "low"


async def test_job_files_are_job_files(world):
    files = [body["data"]["job.yaml"] for body in of_kind(world, "ConfigMap") if "job.yaml" in body["data"]]
    kinds = [parse_job(yaml.safe_load(text), origin="the job file").kind for text in files]
    assert kinds == ["sft", "airl", "evaluate"]


async def test_a_changed_alias_reaches_the_gateway_with_its_calibration(world):
    config = world.api.objects["ConfigMap", "irlops-gateway-pair"]["data"]["gateway.yaml"]
    pair = PairSettings.model_validate(yaml.safe_load(config)["pair"])
    assert pair.policy.url == "http://tiny-policy-v1-predictor.team-a.svc"
    assert (pair.policy_version, pair.critic_version) == ("1", "1")
    assert (pair.calibration.aggregation, pair.calibration.temperature) == ("last", 2.0)


async def test_served_halves_are_cluster_local_standard_and_immutable(world):
    for body in of_kind(world, "InferenceService"):
        assert body["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Standard"
        assert body["metadata"]["labels"]["networking.kserve.io/visibility"] == "cluster-local"
        assert body["spec"]["predictor"]["model"]["storageUri"].startswith("pvc://tiny-state/earlier/")
        assert "models:/" not in json.dumps(body)


@pytest.mark.parametrize("namespace", ["a", "team-a", "n" * 39])
async def test_the_longest_allowed_name_still_fits_everywhere(namespace):
    name = "p" * 40
    world = World(namespace=namespace)
    world.operator.owner = lambda: name
    world.api.put(pipeline(name))
    await world.run(name)
    for kind, each in world.api.objects:
        limit = {"PyTorchJob": 51}.get(kind, 63 if kind != "Event" else 253)
        assert len(each) <= limit, (kind, each)
    services = world.api.of_kind("InferenceService")
    assert len(services) == 2
    for each in services:  # KServe's label and its host name's first part
        assert max(len(f"isvc.{each}-predictor"), len(f"{each}-predictor-{namespace}")) <= 63


def test_halves_differ_by_name_where_the_namespace_leaves_little_room():
    names = {service_name("tiny", role, 7, namespace="n" * 63) for role in ("policy", "critic")}
    assert len(names) == 2
    assert {len(name) for name in names} == {13}


async def test_the_gateways_config_map_outlives_the_pipelines_that_serve_by_it(world):
    config = world.api.objects["ConfigMap", "irlops-gateway-pair"]
    assert "tiny-policy-v1" in config["data"]["gateway.yaml"]
    assert "ownerReferences" not in config["metadata"]
