"""Latency that the gateway adds over calling the policy directly, with a stub upstream that takes 200 ms.

    python -m benchmarks.gateway_latency [--seconds 10] [--rounds 3]

Direct and through the gateway take turns; the differences of the medians and of the 99th percentiles are what counts.
Connections begin spread over the upstream's time, as callers do, and once more all together: the upstream's constant time then
keeps them in step, and the last of each burst waits for all others on whatever core there is.
"""

from __future__ import annotations

import argparse
import statistics

from benchmarks.gateway_support import CHAT, Load, gateway, print_table, run_load, stub

PATH = "/v1/chat/completions"
RERANKED = {**CHAT, "model": "reranked", "rerank": {"candidates": 4, "selector": "reward"}}


def _median(loads: list[Load], field: str) -> float:
    return statistics.median(getattr(load, field) for load in loads)


def _compare(
    name: str, delay_s: float, connections: int, seconds: float, rounds: int, spread_s: float
) -> tuple[object, ...]:
    with stub(delay_s) as upstream, gateway(upstream) as (url, _):
        run_load(url, PATH, CHAT, connections, 1)
        direct: list[Load] = []
        through: list[Load] = []
        for _ in range(rounds):
            direct.append(run_load(upstream, PATH, CHAT, connections, seconds, spread_s=spread_s))
            through.append(run_load(url, PATH, CHAT, connections, seconds, spread_s=spread_s))
    errors = sum(load.num_errors for load in through)
    added = [_median(through, field) - _median(direct, field) for field in ("median_ms", "p99_ms")]
    return name, connections, _beginning(spread_s), _median(direct, "median_ms"), added[0], added[1], errors


def _compare_reranked(
    delay_s: float, connections: int, seconds: float, rounds: int, spread_s: float
) -> tuple[object, ...]:
    """The least a reranked answer takes is one sampling and one scoring, each ``delay_s``."""
    with stub(delay_s) as upstream, gateway(upstream, rerank={"overlap": False}) as (url, _):
        run_load(url, PATH, RERANKED, connections, 1)
        loads = [run_load(url, PATH, RERANKED, connections, seconds, spread_s=spread_s) for _ in range(rounds)]
    floor_ms = 2 * delay_s * 1000
    errors = sum(load.num_errors for load in loads)
    added = [_median(loads, field) - floor_ms for field in ("median_ms", "p99_ms")]
    return "reranked, 4 candidates", connections, _beginning(spread_s), floor_ms, added[0], added[1], errors


def _beginning(spread_s: float) -> str:
    return "spread" if spread_s else "together"


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows: list[tuple[object, ...]] = []
    for is_spread in (True, False):
        rows += [
            _compare("policy, upstream 200 ms", 0.2, 64, options.seconds, options.rounds, 0.2 * is_spread),
            _compare("policy, upstream 100 ms", 0.1, 16, options.seconds, options.rounds, 0.1 * is_spread),
            _compare_reranked(0.1, 16, options.seconds, options.rounds, 0.2 * is_spread),
        ]
    columns = ("request", "at once", "begin", "floor ms", "added median ms", "added p99 ms", "errors")
    print_table("Latency added by the gateway", columns, rows)
    print(
        "Wanted: at most 3 ms (median) and 15 ms (p99) at 64; at most 5 ms (median) at 16 with policy and critic 100 ms."
    )


if __name__ == "__main__":
    main()
