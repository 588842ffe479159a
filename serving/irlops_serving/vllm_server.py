"""Stock vLLM's OpenAI server, with the settings that make it start and run well where we are.

Tried with vLLM 0.32's CPU build on two cores:

- ``python -m vllm.entrypoints.openai.api_server`` works for every build; the ``vllm`` console script of the CPU build stops
  with PackageNotFoundError, because its distribution has another name.
- ``--enforce-eager`` leaves out the compilation (about three minutes for a model of 135M parameters).
- ``VLLM_ENABLE_V1_MULTIPROCESSING=0`` keeps the worker inside the engine's process. The CPU build otherwise starts a third
  Python that imports torch and vLLM again (10 to 20 s, 0.8 GiB), only to bind its threads; the next setting does without.
- ``VLLM_CPU_OMP_THREADS_BIND=nobind``: with ``auto`` every vLLM on a machine binds the same first cores.
- ``--dtype`` as in the checkpoint: ``auto`` would turn float32 weights into float16.
- ``--generation-config vllm``: sampling defaults are OpenAI's, not what the model's folder says. Its end-of-text tokens
  are read all the same.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from irlops.errors import ConfigError, PairError
from irlops_serving.tracing import traces_url

CPU_DISTRIBUTION = "vllm-cpu"
DEFAULT_KV_CACHE_GIB = 1
"""On a CPU; vLLM's own default takes half of the machine's memory."""
MAX_LOGPROBS = 20

Runner = Literal["generate", "pooling"]


@dataclass(frozen=True)
class VllmCommand:
    """A server to become.

    Made by ``vllm_command``; consumed by ``os.execve``.
    Example: ``VllmCommand(arguments=("python", "-m", "vllm.…", "--port", "8101"), environment={"OMP_NUM_THREADS": "1"})``.
    """

    arguments: tuple[str, ...]
    environment: dict[str, str]
    """The whole environment of the server."""


def is_installed() -> bool:
    """Whether some build of vLLM is here; found without importing it."""
    return _is_cpu_build() or _has_distribution("vllm")


def vllm_command(
    model_dir: Path,
    *,
    runner: Runner,
    served_name: str,
    host: str,
    port: int,
    threads: int,
    environment: Mapping[str, str],
    max_length: int | None = None,
    dtype: str = "checkpoint",
) -> VllmCommand:
    """The command line and environment of a vLLM server.

    Args:
        model_dir: Hugging Face layout, safetensors.
        runner: ``generate`` for a policy, ``pooling`` for a critic.
        served_name: the model's name in requests.
        host: address to listen on.
        port: HTTP port.
        threads: CPU threads of the engine (CPU build only).
        environment: what to add to; its own vLLM settings win over ours.
        max_length: prompt plus answer, in tokens; None takes the model's context.
        dtype: ``checkpoint`` (a policy's own, float32 for a critic), or a name that vLLM knows.

    Raises:
        ConfigError: vLLM is not installed.
        PairError: the folder has no readable config.json.
    """
    if not is_installed():
        raise ConfigError(
            "vLLM is not installed here. Install irlops[vllm-cpu] or irlops[vllm], or use --backend transformers."
        )
    if dtype == "checkpoint":
        dtype = "float32" if runner == "pooling" else checkpoint_dtype(model_dir)
    arguments = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(model_dir), "--served-model-name", served_name, "--runner", runner),
        *("--host", host, "--port", str(port), "--dtype", dtype),
        *("--load-format", "safetensors", "--generation-config", "vllm"),
        *("--disable-uvicorn-access-log", "--no-enable-log-requests"),
    ]
    if max_length is not None:
        arguments += ["--max-model-len", str(max_length)]
    if runner == "pooling":
        # Rewards are raw logits, also for a client that forgets to say so.
        arguments += ["--pooler-config", json.dumps({"use_activation": False})]
    else:
        arguments += ["--max-logprobs", str(MAX_LOGPROBS)]
    if _is_cpu_build():
        arguments += ["--enforce-eager"]
    tracing = {}
    if url := traces_url(environment):
        arguments += ["--otlp-traces-endpoint", url]
        # vLLM speaks gRPC otherwise; the gateway's collector takes HTTP.
        tracing = {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf", "OTEL_SERVICE_NAME": f"irlops-{served_name}"}
    return VllmCommand(tuple(arguments), _environment({**tracing, **environment}, threads))


def checkpoint_dtype(model_dir: Path) -> str:
    """The precision that config.json names; float32 when it names none.

    Raises:
        PairError: config.json is missing or not JSON.
    """
    try:
        config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PairError(f"{model_dir / 'config.json'} can't be read ({error}). Is this a model folder?") from error
    named = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    return named if named in ("float32", "bfloat16", "float16") else "float32"


def _environment(given: Mapping[str, str], threads: int) -> dict[str, str]:
    ours = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if _is_cpu_build():
        ours |= {
            "VLLM_CPU_KVCACHE_SPACE": str(DEFAULT_KV_CACHE_GIB),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(threads),
        }
    return {**ours, **given}


def _is_cpu_build() -> bool:
    return _has_distribution(CPU_DISTRIBUTION)


def _has_distribution(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
