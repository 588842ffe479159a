"""``python -m irlops_serving.gateway --config gateway.yaml``: serve until SIGTERM, then drain."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from irlops.contracts.exit_codes import exit_code_for
from irlops.errors import IrlopsError


def main(arguments: list[str] | None = None) -> int:
    """Run the gateway; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m irlops_serving.gateway", description="Serve the irlops gateway.")
    parser.add_argument("--config", type=Path, help="YAML settings (default: $IRLOPS_GATEWAY_CONFIG_FILE)")
    parser.add_argument("--host", help="address to bind (default: the settings', 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to bind; 0 picks a free one (default: the settings', 8080)")
    options = parser.parse_args(arguments)
    overrides: dict[str, Any] = {
        name: value for name in ("host", "port") if (value := getattr(options, name)) is not None
    }
    try:
        from irlops_serving.gateway.server import serve

        return serve(options.config, overrides)
    except IrlopsError as error:
        print(f"irlops gateway: {error}", file=sys.stderr)
        return int(exit_code_for(error))


if __name__ == "__main__":
    sys.exit(main())
