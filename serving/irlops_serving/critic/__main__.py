"""``python -m irlops_serving.critic --model-dir DIR --port P [--backend kserve|vllm]``: serve a critic."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

from irlops.contracts.exit_codes import exit_code_for
from irlops.errors import IrlopsError
from irlops_serving.cores import usable_cores
from irlops_serving.vllm_server import vllm_command


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m irlops_serving.critic", description="Serve a critic: token ids in, rewards out."
    )
    parser.add_argument(
        "--model-dir", type=Path, required=True, help="checkpoint folder (AutoModelForTokenClassification)"
    )
    parser.add_argument("--model-name", default="critic", help="name in the routes (default: critic)")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (default: every one)")  # noqa: S104 - see server.py
    parser.add_argument("--port", type=int, default=8080, help="HTTP port (default: 8080)")
    parser.add_argument(
        "--backend",
        choices=["kserve", "vllm"],
        default="kserve",
        help="kserve: V2 protocol on the CPU (default); vllm: stock vLLM's pooling server (POST /pooling)",
    )
    parser.add_argument("--threads", type=int, help="CPU threads of one forward pass (default: this container's cores)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights in memory")
    parser.add_argument("--max-length", type=int, help="longest item in tokens (default: the model's context)")
    parser.add_argument("--max-batch-tokens", type=int, default=8192, help="tokens in one forward pass")
    return parser.parse_args(arguments)


def _tame_kserve() -> None:
    # It parses sys.argv when it is imported, and would take our options for its own.
    sys.argv = sys.argv[:1]
    # Where vLLM is installed it imports all of it (7 s, 0.7 GiB), to find that a critic has no OpenAI routes.
    sys.modules["kserve.protocol.rest.openai.config"] = None  # pyright: ignore[reportArgumentType] - Python's "not there"
    warnings.filterwarnings("ignore", message="ORJSONResponse is deprecated")  # KServe's to change


def main(arguments: list[str] | None = None) -> int:
    """Serve until asked to stop; the exit code says whether another try could work."""
    options = _parse(arguments)
    options.threads = options.threads or usable_cores()
    try:
        (_become_vllm if options.backend == "vllm" else _serve_kserve)(options)
    except IrlopsError as error:
        print(f"The critic server did not start: {error}", file=sys.stderr)
        return exit_code_for(error)
    return 0


def _become_vllm(options: argparse.Namespace) -> None:
    command = vllm_command(
        options.model_dir,
        runner="pooling",
        served_name=options.model_name,
        host=options.host,
        port=options.port,
        threads=options.threads,
        environment=os.environ,
        max_length=options.max_length,
        dtype=options.dtype,
    )
    os.execve(command.arguments[0], command.arguments, command.environment)  # noqa: S606 - a fixed program


def _serve_kserve(options: argparse.Namespace) -> None:
    _tame_kserve()
    import torch
    from transformers.utils.logging import disable_progress_bar

    from irlops_serving.critic.server import CriticServerSettings, serve_critic

    disable_progress_bar()
    torch.set_num_threads(options.threads)
    settings = CriticServerSettings(
        model_dir=options.model_dir,
        model_name=options.model_name,
        host=options.host,
        port=options.port,
        precision=options.dtype,
        max_length=options.max_length,
        max_batch_tokens=options.max_batch_tokens,
    )
    serve_critic(settings)


if __name__ == "__main__":
    sys.exit(main())
