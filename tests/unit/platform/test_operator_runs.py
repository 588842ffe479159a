"""A pipeline from nothing to a served pair, with everybody but the operator played."""

import pytest

from support.kube_world import World, pipeline


@pytest.fixture
def world():
    return World()


async def test_a_pipeline_ends_with_a_pair_that_serves(world):
    world.api.put(pipeline())
    status = await world.run()
    assert (status["phase"], world.reason()) == ("Ready", "Serving")
    assert status["pairs"]["serving"] == {"policyVersion": "1", "criticVersion": "1"}
    assert sorted(world.api.of_kind("InferenceService")) == ["tiny-critic-v1", "tiny-policy-v1"]
    assert world.registry.alias == {"champion": 1}
