"""The chart's Role holds exactly the verbs that the operator uses."""

import pytest

from support.charts import find, render
from support.kube_world import START, World, pipeline

NOT_IN_STORIES = {
    # kopf's watches, and the Lease's loop: tests/local/test_operator_process.py runs them.
    ("watch", "irlops.dev/reasoningpipelines", ""),
    ("list", "irlops.dev/reasoningpipelines", ""),
    ("watch", "kubeflow.org/pytorchjobs", ""),
    ("watch", "serving.kserve.io/inferenceservices", ""),
    ("get", "coordination.k8s.io/leases", ""),
    ("create", "coordination.k8s.io/leases", ""),
    ("update", "coordination.k8s.io/leases", ""),
    # Admission asks for it where an owner reference blocks deletion; no call shows it.
    ("update", "irlops.dev/reasoningpipelines", "finalizers"),
}


def granted(values=None):
    role = find(render(values), "Role", "irlops-operator")
    return {
        (verb, f"{group}/{resource.partition('/')[0]}", resource.partition("/")[2])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


async def every_call():
    """A story that touches everything: trains, fails, serves, is taken back, is suspended, starts over."""
    world = World()
    body = world.api.put(
        pipeline(jobTemplate={"stateVolume": {"size": "1Gi"}}, retries={"limit": 1, "backoffSeconds": 1})
    )
    await world.look()
    world.api.put(body | {"spec": body["spec"] | {"suspend": True}})
    await world.look()
    world.job_ends = {"sft": {"exitCode": 137}}
    world.api.put(body)
    await world.run()
    world.job_ends = {}
    world.api.put(body | {"spec": body["spec"] | {"data": {"name": "gsm8k", "claimName": "data"}}})
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}, "spec": {}}
    await world.run()
    world.api.put(claim)
    await world.run()
    world.registry.register("by-hand")
    world.registry.alias["champion"] = 2
    world.unready = {"tiny-policy-v2"}
    await world.run()
    assert world.now > START
    return {call for call in world.api.calls if call[1] != "/events" or call[0] == "create"}


async def test_the_role_holds_exactly_the_verbs_that_are_used():
    assert granted() == await every_call() | NOT_IN_STORIES


@pytest.mark.parametrize("group", ["", "rbac.authorization.k8s.io", "apps"])
def test_the_role_reads_no_secret_and_grants_nothing(group):
    assert not {
        right for right in granted() if right[1] in (f"{group}/secrets", f"{group}/roles", f"{group}/deployments")
    }
