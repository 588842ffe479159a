"""Everything that can be wrong ends in a condition with a reason and a next step, and the last good pair keeps serving."""

from dataclasses import replace
from datetime import timedelta

import pytest

from irlops.contracts.pair import EvaluationSummary
from support.kube_world import World, pipeline


@pytest.fixture
def world():
    return World()


@pytest.fixture
async def serving():
    """A world in which pair 1 serves."""
    world = World()
    world.api.put(pipeline())
    await world.run()
    return world


def spec_with(world, **changes):
    body = world.api.objects["ReasoningPipeline", "tiny"]
    world.api.put(body | {"spec": body["spec"] | changes})


async def test_an_unknown_dataset_is_refused_before_any_pod_starts(world):
    world.api.put(pipeline(data={"name": "no-such-data"}))
    status = await world.run()
    assert (status["phase"], world.reason()) == ("Failed", "UnknownDataset")
    assert "'arithmetic' or 'gsm8k'" in world.message()
    assert world.api.of_kind("PyTorchJob") == {}


async def test_a_claim_that_nobody_made_is_waited_for(world):
    world.api.put(pipeline(data={"name": "gsm8k", "claimName": "gsm8k-data"}))
    await world.run()
    assert world.reason() == "ClaimMissing"
    assert "Create it, or correct spec.data.claimName" in world.message()
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "gsm8k-data"}, "spec": {}}
    world.api.put(claim)
    assert (await world.run())["phase"] == "Ready"


async def test_wrong_settings_of_a_stage_are_refused_by_name(world):
    stages = [{"name": "airl", "kind": "airl", "settings": {"num_rounds": 2, "num_runds": 3}}]
    world.api.put(pipeline(stages=stages))
    await world.run()
    assert world.reason() == "JobInvalid"
    assert "num_runds" in world.message()


async def test_stages_that_leave_no_critic_are_refused(world):
    world.api.put(pipeline(stages=pipeline()["spec"]["stages"][:1]))
    await world.run()
    assert world.reason() == "NoCritic"


async def test_a_spec_that_is_none_is_refused(world):
    world.api.put(pipeline(stages=[]))
    await world.run()
    assert world.reason() == "SpecInvalid"
    assert "kubectl explain" in world.message()


async def test_a_gate_that_no_evaluation_has_lists_what_it_has(serving):
    spec_with(serving, data={"name": "arithmetic", "seed": 1}, gates=[{"metric": "critic.auprc", "minimum": 0.5}])
    status = await serving.run()
    assert (status["phase"], serving.reason()) == ("Failed", "GateMetricMissing")
    assert "it has critic.auroc, pass_at_k.1" in serving.message()
    assert serving.registry.alias == {"champion": 1}
    assert serving.reason(kind="Serving") == "Serving"


async def test_a_pair_below_its_gate_is_not_promoted_until_the_gate_changes(world):
    metrics = {"critic.auroc": 0.55}
    world.evaluation = {"evaluation": EvaluationSummary(dataset="arithmetic", metrics=metrics)}
    world.api.put(pipeline())
    status = await world.run()
    assert (status["phase"], world.reason()) == ("Failed", "GateFailed")
    assert "critic.auroc is 0.55, below 0.6" in world.message()
    spec_with(world, gates=[{"metric": "critic.auroc", "minimum": 0.5}])
    assert (await world.run())["phase"] == "Ready"
    assert len(world.registry.pairs) == 1  # judged anew, not trained anew


async def test_a_pair_that_is_worse_than_the_champion_by_more_than_allowed_is_not_promoted(serving):
    metrics = {"critic.auroc": 0.7, "pass_at_k.1": 0.44}
    serving.evaluation = {"evaluation": EvaluationSummary(dataset="arithmetic", metrics=metrics)}
    spec_with(serving, data={"name": "arithmetic", "seed": 1}, gates=[{"metric": "pass_at_k.1", "maxDrop": 0.05}])
    await serving.run()
    assert "pass_at_k.1 is 0.44, below 0.45" in serving.message()  # 0.5 - 0.05


async def test_weights_that_kserve_cannot_read_are_never_started_and_the_alias_returns(serving):
    serving.registry.register("by-hand", policy_uri="models:/irlops-policy/2")
    serving.registry.alias["champion"] = 2
    status = await serving.run()
    assert (status["phase"], serving.registry.alias) == ("RolledBack", {"champion": 1})
    assert "which KServe can't read" in serving.message()
    assert sorted(serving.api.of_kind("InferenceService")) == ["tiny-critic-v1", "tiny-policy-v1"]


async def test_halves_with_different_tokenizers_are_never_started(serving):
    serving.registry.register("by-hand", critic_tokenizer="sha256:b")
    serving.registry.alias["champion"] = 2
    status = await serving.run()
    assert status["phase"] == "RolledBack"
    assert "different tokenizers" in serving.message()


async def test_the_first_pair_that_cannot_be_served_says_so_and_rolls_nothing_back(world):
    world.evaluation = {"critic_tokenizer": "sha256:b"}
    world.api.put(pipeline())
    status = await world.run()
    assert (status["phase"], world.reason()) == ("Failed", "PairRefused")
    assert "no earlier pair to return to" in world.message()


async def test_a_deleted_job_is_started_again_after_a_while_and_not_for_ever(world):
    world.api.put(pipeline(retries={"limit": 1, "backoffSeconds": 40}))
    await world.look()
    world.api.remove("PyTorchJob", next(iter(world.api.of_kind("PyTorchJob"))))
    assert await world.look() == 40
    assert world.reason() == "JobDeleted"
    assert world.api.of_kind("PyTorchJob") == {}
    world.now = world.now.replace(minute=1)
    await world.look()
    [second] = world.api.of_kind("PyTorchJob")
    assert second.endswith("-2")
    world.api.remove("PyTorchJob", second)
    await world.look()
    assert (world.status()["phase"], world.reason()) == ("Failed", "JobDeleted")
    await world.look()
    assert world.api.of_kind("PyTorchJob") == {}


async def test_a_job_that_refuses_its_input_is_not_started_again(world):
    world.job_ends = {"sft": {"exitCode": 2, "message": "Error: row 7 has no answer. Correct it."}}
    world.api.put(pipeline())
    status = await world.run()
    assert (status["phase"], world.reason()) == ("Failed", "JobRefused")
    assert "row 7 has no answer. Correct it." in world.message()
    assert len(world.api.of_kind("PyTorchJob")) == 1


async def test_an_interrupted_job_is_started_again_with_growing_pauses(world):
    world.job_ends = {"sft": {"exitCode": 137}}
    world.api.put(pipeline(retries={"limit": 2, "backoffSeconds": 10}))
    status = await world.run()
    assert (status["phase"], world.reason()) == ("Failed", "JobInterrupted")
    assert len(world.api.of_kind("PyTorchJob")) == 3  # 1 + 2 retries
    assert "failed 3 times" in world.message()


async def test_after_a_failure_a_changed_spec_goes_on_with_the_same_run(world):
    world.job_ends = {"airl": {"exitCode": 2, "message": "too little memory"}}
    world.api.put(pipeline())
    failed = await world.run()
    world.job_ends = {}
    template = {"stateVolume": {"size": "1Gi"}, "resources": {"limits": {"memory": "8Gi"}}}
    spec_with(world, jobTemplate=template)
    status = await world.run()
    assert status["phase"] == "Ready"
    assert status["run"]["id"] == failed["run"]["id"]
    stages = [job["metadata"]["labels"]["irlops.dev/stage"] for job in world.api.of_kind("PyTorchJob").values()]
    assert stages.count("sft") == 1


async def test_a_pair_that_never_becomes_ready_is_taken_back(serving):
    serving.unready = {"tiny-policy-v2"}
    serving.registry.register("by-hand")
    serving.registry.alias["champion"] = 2
    status = await serving.run()
    assert (status["phase"], status["pairs"]["serving"]["policyVersion"]) == ("RolledBack", "1")
    assert "no GPU is free" in serving.message()
    assert "(after 600 s)" in serving.message()
    assert serving.registry.moves[-1] == ("champion", 1, True)
    assert sorted(serving.api.of_kind("InferenceService")) == ["tiny-critic-v1", "tiny-policy-v1"]


async def test_the_old_pair_serves_while_the_new_one_starts(serving):
    serving.unready = {"tiny-policy-v2"}
    serving.registry.register("by-hand")
    serving.registry.alias["champion"] = 2
    await serving.look()
    assert len(serving.api.of_kind("InferenceService")) == 4
    config = serving.api.objects["ConfigMap", "irlops-gateway-pair"]["data"]["gateway.yaml"]
    assert "tiny-policy-v1-predictor" in config


async def test_a_gateway_that_does_not_answer_with_the_new_pair_brings_the_old_one_back(serving):
    serving.gateway_is_up = False
    serving.registry.register("by-hand")
    serving.registry.alias["champion"] = 2
    status = await serving.run()
    assert status["phase"] == "RolledBack"
    assert "the gateway does not answer with it (refused)" in serving.message()
    config = serving.api.objects["ConfigMap", "irlops-gateway-pair"]["data"]["gateway.yaml"]
    assert "tiny-policy-v1-predictor" in config


async def test_a_pair_that_was_taken_back_may_be_promoted_again(serving):
    serving.unready = {"tiny-policy-v2"}
    serving.registry.register("by-hand")
    serving.registry.alias["champion"] = 2
    await serving.run()
    serving.unready = set()
    serving.registry.alias["champion"] = 2
    status = await serving.run()
    assert (status["phase"], status["pairs"]["serving"]["policyVersion"]) == ("Ready", "2")


@pytest.mark.parametrize("code", [409, 429, 500])
async def test_an_api_server_that_fails_is_asked_again_ever_more_slowly(world, code):
    world.api.put(pipeline())
    world.api.refuse = lambda verb, kind, name: code if kind == "PyTorchJob" and verb == "patch" else None
    pauses = [await world.look() for _ in range(4)]
    assert pauses == [1, 2, 4, 8]
    world.api.refuse = lambda verb, kind, name: None
    assert (await world.run())["phase"] == "Ready"


@pytest.mark.parametrize(
    ("refusal", "reason", "step"),
    [
        (403, "Forbidden", "The operator's Role or a policy of the namespace forbids it"),
        (
            (403, "pytorchjobs is forbidden: exceeded quota: team"),
            "QuotaExceeded",
            "Raise the namespace's ResourceQuota",
        ),
        (
            (403, 'admission webhook "validator.pytorchjob" denied the request: spec.nprocPerNode'),
            "Rejected",
            "correct the part of the spec that is named",
        ),
        ((422, "spec.elasticPolicy: Invalid value"), "Rejected", "correct the part of the spec that is named"),
    ],
    ids=["no right", "a full quota", "a webhook", "a schema"],
)
async def test_a_refusal_of_the_api_server_becomes_a_condition(world, refusal, reason, step):
    world.api.put(pipeline())
    world.api.refuse = lambda verb, kind, name: refusal if kind == "PyTorchJob" and verb == "patch" else None
    assert await world.look() == 60
    assert world.reason() == reason
    assert step in world.message()
    assert "It is tried again every minute." in world.message()


async def test_ten_minutes_without_mlflow_cost_nothing_but_time(serving):
    spec_with(serving, data={"name": "arithmetic", "seed": 1})
    serving.registry.is_down = True
    for _ in range(20):
        delay_s = await serving.look()
        if serving.reason() != "RegistryUnreachable":
            serving.registry.is_down = False
            serving.others_act()
            serving.registry.is_down = True
    assert delay_s == 30
    assert serving.reason() == "RegistryUnreachable"
    assert serving.reason(kind="Serving") == "Serving"
    assert len(serving.api.of_kind("InferenceService")) == 2
    serving.registry.is_down = False
    status = await serving.run()
    assert (status["phase"], status["pairs"]["serving"]["policyVersion"]) == ("Ready", "2")
    assert all(one["type"] != "RegistryReachable" for one in status["conditions"])


async def test_a_roll_out_is_taken_back_even_while_mlflow_is_down_and_the_alias_follows_later(serving):
    serving.unready = {"tiny-policy-v2"}
    serving.registry.register("by-hand")
    serving.registry.alias["champion"] = 2
    await serving.look()
    serving.registry.is_down = True
    serving.others_act()
    serving.now += timedelta(seconds=601)
    for _ in range(3):
        await serving.look()
        serving.others_act()
    assert serving.status()["phase"] == "RolledBack"
    assert sorted(serving.api.of_kind("InferenceService")) == ["tiny-critic-v1", "tiny-policy-v1"]
    assert serving.registry.alias == {"champion": 2}
    serving.registry.is_down = False
    await serving.run()
    assert serving.registry.alias == {"champion": 1}


async def test_an_alias_on_half_a_pair_changes_nothing_but_a_condition(serving):
    serving.registry.alias["champion"] = 9
    await serving.run()
    assert serving.reason() == "AliasTorn"
    assert serving.reason(kind="Serving") == "Serving"


async def test_a_cluster_without_pytorchjobs_says_what_to_install(world):
    world.api.kinds -= {"PyTorchJob"}
    world.api.put(pipeline())
    assert await world.look() == 60
    assert world.reason() == "JobsUnavailable"
    world.api.kinds |= {"PyTorchJob"}
    assert (await world.run())["phase"] == "Ready"


async def test_a_cluster_without_kserve_says_what_to_install(world):
    world.api.kinds -= {"InferenceService"}
    world.api.put(pipeline())
    await world.run()
    assert world.reason() == "ServingUnavailable"


async def test_a_second_pipeline_leaves_the_gateway_to_the_one_that_serves(serving):
    serving.api.put(pipeline("other") | {"spec": pipeline()["spec"] | {"data": {"name": "arithmetic", "seed": 3}}})
    status = await serving.run("other")
    assert (status["phase"], serving.reason("other")) == ("Ready", "ServedElsewhere")
    assert serving.registry.alias == {"champion": 2}
    assert (await serving.run())["pairs"]["serving"]["policyVersion"] == "2"


async def test_a_failed_pair_lookup_of_what_serves_takes_nothing_away(serving):
    serving.registry.pairs[1] = replace(serving.registry.pairs[1], policy_uri="models:/gone")
    await serving.run()
    assert len(serving.api.of_kind("InferenceService")) == 2
