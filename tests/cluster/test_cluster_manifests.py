"""The manifests on a real API server, applied by kubectl into a restricted namespace without the charts."""

import time

import pytest
import yaml

from irlops.contracts.pytorchjob import PyTorchJob
from irlops.local.operator_environment import operator_environment
from support.played_pods import JOBS, SERVICES, is_attended, unscheduled_manifest
from support.real_cluster import REPOSITORY

MANIFESTS = REPOSITORY / "manifests"
CONTROLLER_S = 45.0
JOB_FILES = sorted(path.stem for path in (MANIFESTS / "training").glob("*-*.yaml"))
OVERLAYS = sorted(path.name for path in (MANIFESTS / "overlays").iterdir())
PAIR = {"inferenceservice.serving.kserve.io/irlops-policy", "inferenceservice.serving.kserve.io/irlops-critic"}
A_JOB = {"pytorchjob.kubeflow.org/airl-llama3-1-8b"}
WITH_OVERLAY = {"keda": PAIR, "kueue": {"localqueue.kueue.x-k8s.io/irlops"}}


def until(look):
    """What ``look`` returns once it is something; its last word after CONTROLLER_S."""
    deadline = time.monotonic() + CONTROLLER_S
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(1)
    return found


def skip_unless_attended(cluster, plural, name, controller):
    """What follows is for clusters where the controller runs; there, nothing of it may be missing."""
    if not until(lambda: is_attended(cluster.find(plural, name))):
        pytest.skip(f"no {controller} acted on {name} within {CONTROLLER_S:.0f} s")


def apply_unscheduled(cluster, text):
    """As it is written, but for the nodes."""
    bodies = [unscheduled_manifest(each) for each in yaml.safe_load_all(text)]
    cluster.kubectl("apply", "--validate=strict", "-f", "-", text=yaml.safe_dump_all(bodies))


@pytest.mark.parametrize("name", JOB_FILES)
def test_a_training_manifest_is_admitted_without_an_unknown_field(bare, name):
    admitted = bare.admits("-f", str(MANIFESTS / "training" / f"{name}.yaml"))
    job = name.replace(".", "-")
    assert {f"pytorchjob.kubeflow.org/{job}", f"configmap/{job}"} <= admitted


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_admitted(bare, name):
    if name == "kueue" and ("kueue.x-k8s.io/v1beta1", "LocalQueue") not in bare.kinds():
        pytest.skip("this cluster has no Kueue")
    assert WITH_OVERLAY.get(name, A_JOB) <= bare.admits("-k", str(MANIFESTS / "overlays" / name))


def test_the_pair_on_gpus_is_admitted(bare):
    assert bare.admits("-k", str(MANIFESTS / "serving" / "gpu")) >= PAIR


def test_an_applied_job_gets_its_pods_in_a_restricted_namespace(bare):
    text = (MANIFESTS / "training" / "airl-tiny.yaml").read_text()
    apply_unscheduled(bare, text)
    skip_unless_attended(bare, JOBS, "airl-tiny", "training operator")
    selected = ("-l", "training.kubeflow.org/job-name=airl-tiny")
    until(lambda: len(bare.objects("pods", *selected)) == 2)
    pods = bare.objects("pods", *selected)
    assert {each["metadata"]["name"] for each in pods} == {"airl-tiny-worker-0", "airl-tiny-worker-1"}
    [job] = [PyTorchJob.model_validate(each) for each in yaml.safe_load_all(text) if each["kind"] == "PyTorchJob"]
    for pod in pods:
        assert "initContainers" not in pod["spec"]
        [environment] = [each["env"] for each in pod["spec"]["containers"] if each["name"] == "pytorch"]
        given = {each["name"]: each.get("value") for each in environment}
        index = int(pod["metadata"]["labels"]["training.kubeflow.org/replica-index"])
        assert operator_environment(job, "Worker", index).items() <= given.items()
    assert {each["type"] for each in bare.find(JOBS, "airl-tiny")["status"]["conditions"]} >= {"Created"}


def test_an_applied_pair_gets_servers_that_nothing_outside_reaches(bare):
    text = bare.kubectl("kustomize", str(MANIFESTS))
    apply_unscheduled(bare, text)
    apply_unscheduled(bare, text)  # again: nothing immutable is touched
    assert {each["metadata"]["name"] for each in bare.objects(SERVICES)} == {"irlops-policy", "irlops-critic"}
    skip_unless_attended(bare, SERVICES, "irlops-policy", "KServe controller")
    for name in ("irlops-policy-predictor", "irlops-critic-predictor"):
        deployment = until(lambda name=name: bare.find("deployments.apps", name))
        assert deployment, f"KServe made no Deployment {name}"
        pod = deployment["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["serviceAccountName"] == "irlops-serving"
    assert bare.objects("ingresses.networking.k8s.io") == []
