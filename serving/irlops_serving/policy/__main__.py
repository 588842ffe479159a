"""``python -m irlops_serving.policy --model-dir DIR --port P [--backend auto|vllm|transformers]``: serve a policy."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from irlops.contracts.exit_codes import exit_code_for
from irlops.errors import IrlopsError
from irlops_serving.cores import usable_cores
from irlops_serving.vllm_server import is_installed, vllm_command


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m irlops_serving.policy", description="Serve a policy over OpenAI's API."
    )
    parser.add_argument("--model-dir", type=Path, required=True, help="checkpoint folder (AutoModelForCausalLM)")
    parser.add_argument("--model-name", default="policy", help="name in requests (default: policy)")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (default: every one)")  # noqa: S104 - a pod is reached from outside
    parser.add_argument("--port", type=int, default=8080, help="HTTP port (default: 8080)")
    parser.add_argument(
        "--backend",
        choices=["auto", "vllm", "transformers"],
        default="auto",
        help="auto takes vLLM where it is installed (default)",
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: the cores this process may use)")
    parser.add_argument("--max-length", type=int, help="prompt plus answer in tokens (default: the model's context)")
    parser.add_argument(
        "--dtype", default="checkpoint", help="of the weights in memory (default: as in the checkpoint)"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Serve until asked to stop; the exit code says whether another try could work."""
    options = _parse(arguments)
    options.threads = options.threads or usable_cores()
    use_vllm = options.backend == "vllm" or (options.backend == "auto" and is_installed())
    try:
        (_become_vllm if use_vllm else _serve_transformers)(options)
    except IrlopsError as error:
        print(f"The policy server did not start: {error}", file=sys.stderr)
        return exit_code_for(error)
    return 0


def _become_vllm(options: argparse.Namespace) -> None:
    command = vllm_command(
        options.model_dir,
        runner="generate",
        served_name=options.model_name,
        host=options.host,
        port=options.port,
        threads=options.threads,
        environment=os.environ,
        max_length=options.max_length,
        dtype=options.dtype,
    )
    # Replaced, not wrapped: signals reach vLLM itself, and no idle Python stays behind.
    os.execve(command.arguments[0], command.arguments, command.environment)  # noqa: S606 - a fixed program


def _serve_transformers(options: argparse.Namespace) -> None:
    import torch
    import uvicorn
    from transformers.utils.logging import disable_progress_bar

    from irlops_serving.policy.app import PolicyRoutes
    from irlops_serving.policy.checkpoint import load_policy
    from irlops_serving.policy.engine import Engine
    from irlops_serving.tracing import make_server_tracer

    disable_progress_bar()
    torch.set_num_threads(options.threads)
    dtype = "auto" if options.dtype == "checkpoint" else options.dtype
    engine = Engine(load_policy(options.model_dir, dtype=dtype, max_length=options.max_length))
    app = PolicyRoutes(engine, options.model_name, make_server_tracer("irlops-policy")).app()
    print(f"Serving {options.model_name} on http://{options.host}:{options.port}", flush=True)
    uvicorn.run(
        app,
        host=options.host,
        port=options.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=10,
    )
    engine.stop()


if __name__ == "__main__":
    sys.exit(main())
