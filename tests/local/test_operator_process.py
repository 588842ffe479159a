"""The operator as its pod runs it: kopf's watches, the Lease, probes and signals, over HTTP."""

import asyncio
import time

import pytest

from support.kube_api import KubeApi
from support.kube_world import pair_config_map, pipeline
from support.operator_process import running_operator

pytestmark = pytest.mark.slow


async def until(true, seconds=20.0):
    """Seconds until ``true()``."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, "it never came true"
        await asyncio.sleep(0.02)
    return time.monotonic() - began


def finish(api, stage):
    [name] = [
        name
        for name, job in api.of_kind("PyTorchJob").items()
        if job["metadata"]["labels"]["irlops.dev/stage"] == stage
    ]
    api.set_status("PyTorchJob", name, {"conditions": [{"type": "Succeeded", "status": "True"}]})


def stages(api):
    return {job["metadata"]["labels"]["irlops.dev/stage"] for job in api.of_kind("PyTorchJob").values()}


@pytest.fixture
def api():
    api = KubeApi("training")
    api.put(pair_config_map())
    return api


async def test_from_a_finished_job_to_the_started_evaluation_it_takes_less_than_five_seconds(api, tmp_path):
    async with running_operator(api, tmp_path):
        await until(lambda: ("Lease", "irlops-operator") in api.objects, 60)
        api.put(pipeline())
        await until(lambda: "sft" in stages(api))
        finish(api, "sft")
        await until(lambda: "airl" in stages(api))
        finish(api, "airl")
        assert await until(lambda: "evaluation" in stages(api)) < 5


async def test_an_operator_that_is_there_before_its_custom_resource_waits_for_it(api, tmp_path):
    api.kinds.discard("ReasoningPipeline")
    async with running_operator(api, tmp_path) as operator:
        await until(lambda: ("list", "irlops.dev/reasoningpipelines", "") in api.calls, 60)
        assert await operator.is_healthy()
        api.kinds.add("ReasoningPipeline")
        api.put(pipeline())
        await until(lambda: "sft" in stages(api))
        assert operator.process.returncode is None


async def test_the_operator_is_watched_and_leaves_the_lease_behind_when_told_to_go(api, tmp_path):
    api.put(pipeline())
    async with running_operator(api, tmp_path) as operator:
        await until(lambda: "sft" in stages(api), 60)
        assert await operator.is_healthy()
        series = await operator.metrics()
        assert series["irlops_operator_is_leader"] == 1
        assert series["irlops_operator_registry_up"] == 1
        assert series['irlops_operator_api_writes_total{kind="PyTorchJob"}'] == 1
        assert await operator.stop() == 0
    assert api.objects["Lease", "irlops-operator"]["spec"]["holderIdentity"] == ""


async def test_a_second_operator_stands_by_until_the_first_one_is_gone(api, tmp_path):
    (tmp_path / "b").mkdir()
    async with running_operator(api, tmp_path, identity="first") as first:
        await until(lambda: ("Lease", "irlops-operator") in api.objects, 60)
        async with running_operator(api, tmp_path / "b", identity="second") as second:
            await second.until_healthy()
            assert (await second.metrics())["irlops_operator_is_leader"] == 0
            first.process.kill()  # without a word
            api.put(pipeline())
            await until(lambda: "sft" in stages(api), 40)
            assert api.objects["Lease", "irlops-operator"]["spec"]["holderIdentity"] == "second"
