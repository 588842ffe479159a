"""``python -m irlops_serving.critic --model-dir DIR --port P``: the critic on KServe's model server."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from irlops.contracts.exit_codes import exit_code_for
from irlops.errors import IrlopsError


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m irlops_serving.critic", description="Serve a critic over the V2 protocol."
    )
    parser.add_argument(
        "--model-dir", type=Path, required=True, help="checkpoint folder (AutoModelForTokenClassification)"
    )
    parser.add_argument("--model-name", default="critic", help="name in the routes (default: critic)")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (default: every one)")  # noqa: S104 - see server.py
    parser.add_argument("--port", type=int, default=8080, help="HTTP port (default: 8080)")
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
    _tame_kserve()
    import torch
    from kserve.utils.utils import cpu_count
    from transformers.utils.logging import disable_progress_bar

    from irlops_serving.critic.server import CriticServerSettings, serve_critic

    # KServe's count knows a container's CPU limit; torch's own default is every core of the node.
    disable_progress_bar()
    torch.set_num_threads(options.threads or cpu_count())
    settings = CriticServerSettings(
        model_dir=options.model_dir,
        model_name=options.model_name,
        host=options.host,
        port=options.port,
        precision=options.dtype,
        max_length=options.max_length,
        max_batch_tokens=options.max_batch_tokens,
    )
    try:
        serve_critic(settings)
    except IrlopsError as error:
        print(f"The critic server did not start: {error}", file=sys.stderr)
        return exit_code_for(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
