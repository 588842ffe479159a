"""What the critic takes, and the one message it gives for everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kserve import InferInput, InferRequest
from kserve.errors import InvalidInput

from irlops_serving.critic.server import CriticModel, CriticServerSettings
from support.tiny_models import CONTEXT_TOKENS, save_tiny_critic


@pytest.fixture(scope="module")
def critic(tmp_path_factory: pytest.TempPathFactory) -> CriticModel:
    model = CriticModel(
        CriticServerSettings(model_dir=save_tiny_critic(tmp_path_factory.mktemp("critic")), max_items=3)
    )
    model.load()
    return model


def _request(token_ids: Any, lengths: Any, datatype: str = "INT64", shape: list[int] | None = None) -> InferRequest:
    inputs = [
        InferInput("token_ids", shape or [len(token_ids)], datatype, token_ids),
        InferInput("lengths", [len(lengths)], "INT64", lengths),
    ]
    return InferRequest("critic", inputs)


async def test_rewards_come_back_one_per_token_in_the_order_of_the_items(critic: CriticModel):
    both = await critic.predict(_request([1, 3, 50, 9, 8], [3, 2]))
    second = await critic.predict(_request([9, 8], [2]))
    assert both.outputs[0].shape == [5]
    assert both.outputs[0].data[3:] == pytest.approx(second.outputs[0].data, abs=2e-5)


async def test_integers_may_come_as_binary_tensors(critic: CriticModel):
    request = _request([1, 3, 50], [3])
    plain = await critic.predict(request)
    for tensor in request.inputs:
        tensor.set_data_from_numpy(np.array(tensor.data, dtype=np.int64), binary_data=True)
    assert (await critic.predict(request)).outputs[0].data == pytest.approx(plain.outputs[0].data)


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (_request([1, 2, 3], [2]), "lengths add up to 2, but token_ids holds 3"),
        (_request([1, 2, 3], [3, 0]), "Item 1 has length 0"),
        (_request([1], []), "0 entries; a request takes 1 to 3"),
        (_request([1, 2, 3, 4], [1, 1, 1, 1]), "4 entries; a request takes 1 to 3"),
        (_request([1, 261], [2]), "Token id 261 .position 1. is outside the critic's vocabulary of 261"),
        (_request([1, -1], [2]), "Token id -1 "),
        (_request([5] * (CONTEXT_TOKENS + 1), [CONTEXT_TOKENS + 1]), "Item 0 has 257 tokens, more than .* 256"),
        (_request([1.5, 2.0], [2]), "not one flat list of integers"),
        (_request([[1, 2]], [2], shape=[1, 2]), "not one flat list of integers"),
        (_request([[1], [2, 3]], [3]), "token_ids is not one list of integers"),
        (_request(["a"], [1]), "not one flat list of integers"),
        (_request([1, 2], [2], datatype="FP32"), "datatype FP32"),
        (_request([1, 2], [2], shape=[3]), "says shape .3., but holds 2"),
        (InferRequest("critic", [InferInput("ids", [1], "INT64", [1])]), "inputs are .'ids'.; the critic takes"),
    ],
    ids=[
        "lengths that add up to less",
        "an empty item",
        "no items",
        "too many items",
        "an id beyond the vocabulary",
        "a negative id",
        "an item longer than the context",
        "fractions",
        "a nested list",
        "a ragged list",
        "text",
        "another datatype",
        "a shape that lies",
        "other tensors",
    ],
)
async def test_bad_input_is_refused_with_what_was_seen(critic: CriticModel, request_: InferRequest, complaint: str):
    with pytest.raises(InvalidInput, match=complaint):
        await critic.predict(request_)


async def test_the_old_protocol_is_refused(critic: CriticModel):
    with pytest.raises(InvalidInput, match="V2 protocol only"):
        await critic.predict({"instances": [[1, 2]]})


def test_a_critic_is_not_ready_before_its_weights_are_there(tmp_path: Path):
    model = CriticModel(CriticServerSettings(model_dir=tmp_path))
    model.start()
    assert not model.ready
