"""A pipeline from nothing to a served pair, with everybody but the operator played."""

import pytest

from support.kube_world import World, pipeline


@pytest.fixture
def world():
    return World()


def stages_of(world):
    jobs = world.api.of_kind("PyTorchJob").values()
    return [job["metadata"]["labels"]["irlops.dev/stage"] for job in jobs]


async def test_a_pipeline_ends_with_a_pair_that_serves(world):
    world.api.put(pipeline())
    status = await world.run()
    assert (status["phase"], world.reason()) == ("Ready", "Serving")
    assert status["pairs"]["serving"] == {"policyVersion": "1", "criticVersion": "1"}
    assert sorted(world.api.of_kind("InferenceService")) == ["tiny-critic-v1", "tiny-policy-v1"]
    assert world.registry.alias == {"champion": 1}
    assert stages_of(world) == ["sft", "airl", "evaluation", "registration"]


async def test_a_pipeline_passes_through_its_phases_in_order(world):
    world.api.put(pipeline())
    phases = list[str]()
    for _ in range(30):
        world.now = world.now.replace(microsecond=0)
        await world.look()
        world.others_act()
        phase = world.status()["phase"]
        if phases[-1:] != [phase]:
            phases.append(phase)
        if phase == "RollingOut":
            break
    assert phases == ["Training", "Evaluating", "Registering", "Ready", "RollingOut"]


async def test_a_finished_pipeline_is_never_written_again(world):
    world.api.put(pipeline())
    await world.run()
    world.api.calls.clear()
    for _ in range(5):
        await world.look()
    assert world.api.writes() == []


async def test_an_api_server_that_keeps_conditions_in_an_order_of_its_own_is_not_written_to_for_ever(world):
    world.api.put(pipeline())
    status = await world.run()
    assert len(status["conditions"]) >= 2
    world.api.set_status("ReasoningPipeline", "tiny", status | {"conditions": status["conditions"][::-1]})
    num_writes = len(world.api.writes())
    await world.look()
    assert len(world.api.writes()) == num_writes


async def test_each_stage_starts_in_the_look_that_sees_the_one_before_succeed(world):
    world.api.put(pipeline())
    await world.look()
    world.others_act()  # runs
    world.others_act()  # succeeds
    await world.look()
    assert stages_of(world) == ["sft", "airl"]


async def test_suspending_stops_the_running_job_and_resuming_lets_it_go_on(world):
    body = world.api.put(pipeline())
    await world.look()
    world.api.put(body | {"spec": body["spec"] | {"suspend": True}})
    await world.look()
    [job] = world.api.of_kind("PyTorchJob").values()
    assert job["spec"]["runPolicy"]["suspend"] is True
    assert world.status()["phase"] == "Suspended"
    world.api.put(body)
    await world.look()
    [job] = world.api.of_kind("PyTorchJob").values()
    assert job["spec"]["runPolicy"]["suspend"] is False
    assert (await world.run())["phase"] == "Ready"


async def test_a_suspended_pipeline_keeps_serving_what_it_serves(world):
    body = world.api.put(pipeline())
    await world.run()
    seed = body["spec"]["data"] | {"seed": 7}
    world.api.put(body | {"spec": body["spec"] | {"suspend": True, "data": seed}})
    status = await world.run()
    assert status["phase"] == "Suspended"
    assert world.reason(kind="Serving") == "Serving"
    assert len(world.api.of_kind("InferenceService")) == 2


async def test_another_seed_trains_another_pair_and_replaces_the_first(world):
    body = world.api.put(pipeline())
    await world.run()
    world.api.put(body | {"spec": body["spec"] | {"data": {"name": "arithmetic", "seed": 7}}})
    status = await world.run()
    assert status["pairs"]["serving"]["policyVersion"] == "2"
    assert sorted(world.api.of_kind("InferenceService")) == ["tiny-critic-v2", "tiny-policy-v2"]
    assert [entry["outcome"] for entry in status["history"]] == ["Promoted", "Promoted"]


async def test_a_change_of_resources_trains_nothing_again(world):
    body = world.api.put(pipeline())
    await world.run()
    template = body["spec"]["jobTemplate"] | {"resources": {"limits": {"memory": "8Gi"}}}
    world.api.put(body | {"spec": body["spec"] | {"jobTemplate": template}})
    await world.run()
    assert len(world.registry.pairs) == 1


async def test_another_number_of_servers_starts_no_pod_anew(world):
    body = world.api.put(pipeline(serving={"rollout": {"healthCheckSeconds": 0}}))
    await world.run()
    before = world.api.objects["InferenceService", "tiny-policy-v1"]
    serving = body["spec"]["serving"] | {"policy": {"autoscaling": {"maxReplicas": 3}}}
    world.api.put(world.api.objects["ReasoningPipeline", "tiny"] | {"spec": body["spec"] | {"serving": serving}})
    await world.run()
    after = world.api.objects["InferenceService", "tiny-policy-v1"]
    digest = "irlops.dev/applied"
    assert after["metadata"]["annotations"][digest] != before["metadata"]["annotations"][digest]
    # What KServe copies into pods: the predictor's annotations, over those of the service.
    assert after["spec"]["predictor"] == before["spec"]["predictor"] | {"maxReplicas": 3}


async def test_an_alias_moved_in_the_registry_is_rolled_out(world):
    world.api.put(pipeline())
    await world.run()
    world.registry.register("by-hand")
    world.registry.alias["champion"] = 2
    status = await world.run()
    assert (
        status["pairs"] == {"serving": two, "lastGood": two}
        if (two := {"policyVersion": "2", "criticVersion": "2"})
        else 0
    )
    assert status["history"][0]["run"] == "v2"


async def test_without_auto_promotion_a_passing_pair_waits_for_a_person(world):
    world.api.put(pipeline(serving={"autoPromote": False}))
    status = await world.run()
    assert (status["phase"], world.reason()) == ("Ready", "AwaitingPromotion")
    assert "irlops pairs promote v1" in status["message"]
    assert world.registry.alias == {}
    world.registry.alias["champion"] = 1
    assert (await world.run())["pairs"]["serving"]["policyVersion"] == "1"


async def test_without_serving_a_pipeline_ends_with_a_registered_pair(world):
    world.api.put(pipeline(serving=None))
    status = await world.run()
    assert (status["phase"], world.reason()) == ("Ready", "Registered")
    assert "pairs" not in status


async def test_in_place_the_old_pair_stops_before_the_new_one_starts(world):
    body = world.api.put(pipeline(serving={"rollout": {"strategy": "InPlace", "healthCheckSeconds": 0}}))
    await world.run()
    world.api.put(body | {"spec": body["spec"] | {"data": {"name": "arithmetic", "seed": 7}}})
    most = 0
    for _ in range(40):
        await world.look()
        world.others_act()
        most = max(most, len(world.api.of_kind("InferenceService")))
    assert most == 2
    assert world.status()["pairs"]["serving"]["policyVersion"] == "2"


async def test_servers_that_kserve_is_still_taking_away_count_as_gone_and_are_asked_once_to_go(world):
    world.api.put(pipeline(serving={"rollout": {"strategy": "InPlace", "healthCheckSeconds": 0}}))
    await world.run()
    body = world.api.objects["ReasoningPipeline", "tiny"]
    world.api.put(body | {"spec": body["spec"] | {"data": {"name": "arithmetic", "seed": 7}}})
    await until_stopping(world)
    num_writes = len(world.api.writes())
    await world.look()
    # No deletion again, and no new server beside a leaving one: the status tells of it, once.
    assert world.api.writes()[num_writes:] == [("patch", "irlops.dev/reasoningpipelines", "status")]
    assert world.reason(kind="Serving") == "StoppingFirst"  # although both still carry Ready=True
    world.others_act()
    await world.look()
    assert sorted(world.api.of_kind("InferenceService")) == ["tiny-critic-v2", "tiny-policy-v2"]


async def until_stopping(world):
    """The old pair's servers are marked as deleted, and KServe hasn't let go of them."""
    for _ in range(60):
        await world.look()
        if any("deletionTimestamp" in each["metadata"] for each in world.api.of_kind("InferenceService").values()):
            return
        world.others_act()
    raise AssertionError(world.status())


async def test_a_deleted_inference_service_comes_back(world):
    world.api.put(pipeline())
    await world.run()
    world.api.remove("InferenceService", "tiny-policy-v1")
    await world.run()
    assert sorted(world.api.of_kind("InferenceService")) == ["tiny-critic-v1", "tiny-policy-v1"]


async def test_deleting_a_pipeline_takes_everything_but_the_weights_with_it(world):
    world.api.put(pipeline())
    await world.run()
    world.api.remove("ReasoningPipeline", "tiny")
    world.others_act()
    kinds = {kind for kind, _ in world.api.objects}
    assert kinds == {"ConfigMap", "PersistentVolumeClaim", "Event"}
    assert list(world.api.of_kind("ConfigMap")) == ["irlops-gateway-pair"]  # the chart's
