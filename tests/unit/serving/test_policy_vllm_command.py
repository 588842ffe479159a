"""The command line that becomes stock vLLM's server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from irlops.errors import PairError
from irlops_serving.cores import usable_cores
from irlops_serving.vllm_server import checkpoint_dtype, is_installed, vllm_command

needs_vllm = pytest.mark.skipif(not is_installed(), reason="vLLM is not installed")


def _command(folder: Path, **changes):
    (folder / "config.json").write_text(json.dumps({"dtype": "bfloat16"}))
    settings = {"runner": "generate", "served_name": "policy", "host": "127.0.0.1", "port": 1, "threads": 2}
    return vllm_command(folder, **({"environment": {}} | settings | changes))


def _value(arguments: tuple[str, ...], name: str) -> str:
    return arguments[arguments.index(name) + 1]


@needs_vllm
def test_a_policy_runs_in_the_precision_of_its_checkpoint(tmp_path: Path):
    assert _value(_command(tmp_path).arguments, "--dtype") == "bfloat16"


@needs_vllm
def test_a_critic_runs_in_float32_and_gives_raw_logits(tmp_path: Path):
    arguments = _command(tmp_path, runner="pooling").arguments
    assert _value(arguments, "--dtype") == "float32"
    assert json.loads(_value(arguments, "--pooler-config")) == {"use_activation": False}


@needs_vllm
def test_a_users_own_vllm_settings_win(tmp_path: Path):
    command = _command(tmp_path, environment={"VLLM_LOGGING_LEVEL": "DEBUG", "PATH": "/bin"})
    assert (command.environment["VLLM_LOGGING_LEVEL"], command.environment["PATH"]) == ("DEBUG", "/bin")


@needs_vllm
@pytest.mark.parametrize(
    "environment",
    [
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/"},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"},
    ],
    ids=["all signals", "traces alone"],
)
def test_vllm_sends_its_spans_where_the_others_do(tmp_path: Path, environment: dict[str, str]):
    command = _command(tmp_path, environment=environment)
    assert _value(command.arguments, "--otlp-traces-endpoint") == "http://collector:4318/v1/traces"
    assert command.environment["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "http/protobuf"
    assert command.environment["OTEL_SERVICE_NAME"] == "irlops-policy"


@needs_vllm
def test_without_a_collector_vllm_is_told_of_none(tmp_path: Path):
    assert "--otlp-traces-endpoint" not in _command(tmp_path).arguments


@pytest.mark.parametrize(
    ("config", "dtype"),
    [({"torch_dtype": "float16"}, "float16"), ({"dtype": "torch.bfloat16"}, "bfloat16"), ({}, "float32")],
    ids=["the old key", "a qualified name", "none at all"],
)
def test_the_checkpoints_precision_is_read_from_its_config(tmp_path: Path, config: dict[str, str], dtype: str):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert checkpoint_dtype(tmp_path) == dtype


def test_a_folder_without_a_config_is_no_model(tmp_path: Path):
    with pytest.raises(PairError, match="Is this a model folder"):
        checkpoint_dtype(tmp_path)


@pytest.mark.parametrize(
    ("written", "most"),
    [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 10**6)],
    ids=["a core and a half", "half a core", "no limit"],
)
def test_threads_follow_the_containers_cpu_limit(tmp_path: Path, written: str, most: int):
    (tmp_path / "cpu.max").write_text(written)
    assert 1 <= usable_cores(tmp_path / "cpu.max") <= most


def test_without_a_limit_file_every_allowed_core_counts(tmp_path: Path):
    assert usable_cores(tmp_path / "absent") >= 1
