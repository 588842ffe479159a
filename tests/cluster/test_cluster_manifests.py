"""The manifests on a real API server, applied by kubectl into a restricted namespace without the charts."""

import time

import pytest

from support.played_pods import JOBS, SERVICES
from support.real_cluster import REPOSITORY

MANIFESTS = REPOSITORY / "manifests"
CONTROLLER_S = 45.0
JOB_FILES = sorted(path.name for path in (MANIFESTS / "training").glob("*-*.yaml"))
OVERLAYS = sorted(path.name for path in (MANIFESTS / "overlays").iterdir())


def eventually(look, what):
    """What ``look`` returns once it is something; the test is skipped where nobody does that part."""
    deadline = time.monotonic() + CONTROLLER_S
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(1)
    return pytest.skip(f"within {CONTROLLER_S:.0f} s {what}: its controller does not run on this cluster")


@pytest.mark.parametrize("name", JOB_FILES)
def test_a_training_manifest_is_admitted_without_an_unknown_field(bare, name):
    bare.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", str(MANIFESTS / "training" / name))


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_admitted(bare, name):
    if name == "kueue" and ("kueue.x-k8s.io/v1beta1", "LocalQueue") not in bare.kinds():
        pytest.skip("this cluster has no Kueue")
    bare.kubectl("apply", "--dry-run=server", "--validate=strict", "-k", str(MANIFESTS / "overlays" / name))


def test_an_applied_job_gets_its_pods_in_a_restricted_namespace(bare):
    bare.kubectl("apply", "-f", str(MANIFESTS / "training" / "airl-tiny.yaml"))
    selected = ("-l", "training.kubeflow.org/job-name=airl-tiny")
    both = eventually(lambda: len(bare.objects("pods", *selected)) == 2, "no pod of airl-tiny turned up")
    assert both
    for pod in bare.objects("pods", *selected):
        assert "initContainers" not in pod["spec"]
        [environment] = [each["env"] for each in pod["spec"]["containers"]]
        given = {each["name"]: each.get("value") for each in environment}
        assert (given["PET_NNODES"], given["PET_NPROC_PER_NODE"], given["PET_RDZV_BACKEND"]) == ("2", "1", "c10d")
    assert {each["type"] for each in bare.find(JOBS, "airl-tiny")["status"]["conditions"]} >= {"Created"}


def test_an_applied_pair_gets_servers_that_nothing_outside_reaches(bare):
    bare.kubectl("apply", "-k", str(MANIFESTS))
    bare.kubectl("apply", "-k", str(MANIFESTS))  # again: nothing immutable is touched
    assert {each["metadata"]["name"] for each in bare.objects(SERVICES)} == {"irlops-policy", "irlops-critic"}
    for name in ("irlops-policy-predictor", "irlops-critic-predictor"):
        deployment = eventually(lambda name=name: bare.find("deployments.apps", name), f"there is no Deployment {name}")
        pod = deployment["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["serviceAccountName"] == "irlops-serving"
    assert bare.objects("ingresses.networking.k8s.io") == []


def test_the_pair_on_gpus_is_admitted(bare):
    bare.kubectl("apply", "--dry-run=server", "--validate=strict", "-k", str(MANIFESTS / "serving" / "gpu"))
