"""The critic on KServe's real server: ready when loaded, V2 in and out, clear refusals, a clean end."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from irlops.contracts.exit_codes import ExitCode
from support.servers import running_server
from support.tiny_models import save_tiny_critic, save_tiny_policy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def critic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("critic")
    command = [
        sys.executable,
        "-m",
        "irlops_serving.critic",
        "--model-dir",
        str(save_tiny_critic(folder)),
        "--threads",
        "1",
    ]
    with (
        running_server(command, folder / "critic.log", ready_path="/v2/models/critic/ready") as (url, process),
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        yield client
        process.guard_process.send_signal(signal.SIGTERM)
        assert process.guard_process.wait(15) == ExitCode.OK, process.last_lines()


def _body(token_ids: list[int], lengths: list[int], **parameters: Any) -> dict[str, Any]:
    inputs = [
        {"name": "token_ids", "datatype": "INT64", "shape": [len(token_ids)], "data": token_ids},
        {"name": "lengths", "datatype": "INT64", "shape": [len(lengths)], "data": lengths},
    ]
    return {"inputs": inputs, "parameters": parameters}


def _infer(client: httpx.Client, *args: Any, **kwargs: Any) -> httpx.Response:
    return client.post("/v2/models/critic/infer", json=_body(*args, **kwargs))


def test_every_token_of_every_item_gets_a_reward(critic: httpx.Client):
    (output,) = _infer(critic, [1, 3, 50, 60, 1, 3], [4, 2]).json()["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("rewards", "FP32", [6])
    # Both items begin with the tokens 1 and 3, and rewards only look back.
    assert output["data"][:2] == pytest.approx(output["data"][4:], abs=1e-5)


def test_binary_output_holds_the_same_numbers(critic: httpx.Client):
    plain = _infer(critic, [1, 3, 50], [3]).json()["outputs"][0]["data"]
    binary = _infer(critic, [1, 3, 50], [3], binary_data_output=True)
    header = int(binary.headers["inference-header-content-length"])
    assert json.loads(binary.content[:header])["outputs"][0]["shape"] == [3]
    assert struct.unpack("<3f", binary.content[header:]) == pytest.approx(plain)


def test_concurrent_requests_each_get_their_own_rewards(critic: httpx.Client):
    asked = [[1, 3, token] for token in range(5, 45)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda ids: _infer(critic, ids, [3]).json()["outputs"][0]["data"], asked))
    for ids, rewards in zip(asked[::10], answers[::10], strict=True):
        assert rewards == pytest.approx(_infer(critic, ids, [3]).json()["outputs"][0]["data"], abs=1e-5)


@pytest.mark.parametrize(
    ("body", "status", "complaint"),
    [
        (_body([1, 3, 999], [3]), 400, "Token id 999 (position 2) is outside the critic's vocabulary of 261"),
        (_body([5] * 257, [257]), 400, "more than the critic's context of 256"),
        ({"inputs": []}, 400, "takes token_ids and lengths"),
        ({"inputs": "none"}, 422, "inputs"),
    ],
    ids=["an unknown token", "too long an item", "no tensors", "no V2 request at all"],
)
def test_bad_input_is_refused_with_the_reason(critic: httpx.Client, body: Any, status: int, complaint: str):
    answer = critic.post("/v2/models/critic/infer", json=body)
    assert (answer.status_code, complaint in answer.text) == (status, True), answer.text


def test_the_model_describes_its_tensors(critic: httpx.Client):
    described = critic.get("/v2/models/critic").json()
    assert [tensor["name"] for tensor in described["inputs"] + described["outputs"]] == [
        "token_ids",
        "lengths",
        "rewards",
    ]


def test_an_unknown_model_is_not_found(critic: httpx.Client):
    assert critic.post("/v2/models/other/infer", json=_body([1], [1])).status_code == 404


def test_measured_requests_show_in_the_metrics(critic: httpx.Client):
    _infer(critic, [1, 3], [2])
    assert 'request_predict_seconds_count{model_name="critic"}' in critic.get("/metrics").text


def test_a_policy_is_not_served_as_a_critic(tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "irlops_serving.critic",
        "--model-dir",
        str(save_tiny_policy(tmp_path)),
        "--port",
        "0",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == ExitCode.BAD_INPUT
    assert "is no critic" in ended.stderr
    assert "Traceback" not in ended.stderr
