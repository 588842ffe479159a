"""Resident memory of the gateway with many open streams.

python -m benchmarks.gateway_memory [--streams 1000] [--seconds 10]
"""

from __future__ import annotations

import argparse
import asyncio
import json

import uvloop
from benchmarks.gateway_support import CHAT, KEY, gateway, memory_mib, print_table, stub


async def _read_stream(host: str, port: int, body: bytes, counts: dict[str, int]) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {KEY}\r\n"
    writer.write(head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body)
    first = await reader.readuntil(b"\r\n\r\n")
    counts["open"] += b" 200 " in first[:16]
    while data := await reader.read(65536):
        if b"[DONE]" in data:
            counts["done"] += 1
            break
    writer.close()


async def _hold(url: str, num_streams: int, seconds: float, measure: list[float], child: object) -> dict[str, int]:
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({**CHAT, "stream": True}).encode()
    counts = {"open": 0, "done": 0}
    streams = [asyncio.create_task(_read_stream(host, int(port), body, counts)) for _ in range(num_streams)]
    for _ in range(int(seconds * 2)):
        await asyncio.sleep(0.5)
        measure.append(memory_mib(child))  # type: ignore[arg-type]
    _, late = await asyncio.wait(streams, timeout=180)
    failures = {repr(task.exception()) for task in streams if task.done() and task.exception()}
    if late or failures:
        raise RuntimeError(f"{len(late)} streams did not end; failures: {failures}")
    return counts


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    # Every stream sends a chunk every two seconds, and lasts as long as the measurement.
    with (
        stub(stream_pause_s=2, chunks=max(1, int(options.seconds / 2))) as upstream,
        gateway(upstream) as (url, child),
    ):
        idle = memory_mib(child)
        seen: list[float] = []
        counts = uvloop.run(_hold(url, options.streams, options.seconds, seen, child))
    row = (
        options.streams,
        counts["open"],
        counts["done"],
        idle,
        max(seen),
        (max(seen) - idle) / options.streams * 1024,
    )
    columns = ("streams", "opened", "completed", "idle MiB", "peak MiB", "KiB each")
    print_table("Memory with open streams", columns, [row])
    print("Wanted: under 250 MiB at 1,000 streams.")


if __name__ == "__main__":
    main()
