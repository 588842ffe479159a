"""What the gateway's benchmarks share: a stub upstream that costs next to nothing, processes, a load generator, tables."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
KEY = "irl-benchmark-key"
CHAT = {"model": "policy", "messages": [{"role": "user", "content": "What is 2 + 2? " * 8}], "max_tokens": 64}
TEXT = "Two and two make four. #### 4"
PROMPT_IDS = list(range(1, 33))
TOKEN_IDS = list(range(100, 164))


# --- the stub upstream: policy, critic and tokenizer in one raw asyncio protocol ------------------------------------


def _response(body: bytes, kind: str = "application/json") -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def _chat_answer(n: int) -> bytes:
    message = {"role": "assistant", "content": TEXT}
    choices = [
        {"index": index, "message": message, "finish_reason": "stop", "logprobs": None, "token_ids": TOKEN_IDS}
        for index in range(n)
    ]
    usage = {"prompt_tokens": 32, "completion_tokens": 64 * n, "total_tokens": 32 + 64 * n}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "policy"}
    return json.dumps(head | {"choices": choices, "usage": usage, "prompt_token_ids": PROMPT_IDS}).encode()


def _chat_chunk(index: int, *, last: bool) -> bytes:
    choice = {
        "index": index,
        "delta": {"content": TEXT},
        "token_ids": TOKEN_IDS,
        "finish_reason": "stop" if last else None,
    }
    chunk = {"id": "1", "object": "chat.completion.chunk", "model": "policy", "prompt_token_ids": PROMPT_IDS}
    return b"data: " + json.dumps(chunk | {"choices": [choice]}).encode() + b"\n\n"


class StubProtocol(asyncio.Protocol):
    """Answers chat, tokenize, V2 infer and health after ``delay_s``; no router, no framework."""

    delay_s = 0.0
    stream_pause_s = 0.0
    chunks_in_stream = 1

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            body = self._buffer[end + 4 : end + 4 + length]
            self._buffer = self._buffer[end + 4 + length :]
            self._answer(head.split(b" ", 2)[1], body)

    def _answer(self, path: bytes, body: bytes) -> None:
        if b"chat/completions" in path and b'"stream":true' in body.replace(b" ", b""):
            n = json.loads(body).get("n") or 1
            asyncio.get_running_loop().create_task(self._stream(n))
            return
        if b"chat/completions" in path:
            at = body.find(b'"n":')
            n = int(body[at + 4 :].split(b",", 1)[0].strip(b" }")) if at >= 0 else 1
            answer = _response(_chat_answer(n)) if n > 1 else CHAT_RESPONSE
        elif b"infer" in path:
            lengths = json.loads(body)["inputs"][1]["data"]
            data = [0.5] * sum(lengths)
            outputs = [{"name": "rewards", "datatype": "FP32", "shape": [len(data)], "data": data}]
            answer = _response(json.dumps({"outputs": outputs}).encode())
        elif b"tokenize" in path:
            answer = _response(json.dumps({"count": 32, "tokens": PROMPT_IDS, "max_model_len": 4096}).encode())
        else:
            self._transport.write(_response(b"{}"))
            return
        if self.delay_s:
            asyncio.get_running_loop().call_later(self.delay_s, self._write, answer)
        else:
            self._transport.write(answer)

    def _write(self, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer)

    async def _stream(self, n: int) -> None:
        await asyncio.sleep(self.delay_s)
        self._write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for place in range(self.chunks_in_stream):
            for index in range(n):
                chunk = _chat_chunk(index, last=place + 1 == self.chunks_in_stream)
                self._write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            if self.stream_pause_s:
                await asyncio.sleep(self.stream_pause_s)
            if self._transport.is_closing():
                return
        self._write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


CHAT_RESPONSE = _response(_chat_answer(1))


def serve_stub() -> None:
    """``python -m benchmarks.gateway_support stub PORT``: run the stub until it is killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--delay-s", type=float, default=0.0)
    parser.add_argument("--stream-pause-s", type=float, default=0.0)
    parser.add_argument("--chunks", type=int, default=1)
    options = parser.parse_args(sys.argv[2:])
    StubProtocol.delay_s, StubProtocol.stream_pause_s = options.delay_s, options.stream_pause_s
    StubProtocol.chunks_in_stream = options.chunks

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(StubProtocol, "127.0.0.1", options.port, backlog=4096)
        await server.serve_forever()

    import uvloop

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(run())


# --- processes -----------------------------------------------------------------------------------------------------


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def process(
    command: Sequence[str], ready_url: str, timeout_s: float = 60, log_file: Path | None = None, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``command`` until the block ends; returns once ``ready_url`` answers. Its output is kept in ``log_file``."""
    roots = [str(REPO / root) for root in ("platform", "jobs", "serving", ".")]
    path = os.pathsep.join([*roots, os.environ.get("PYTHONPATH", "")])
    with log_file.open("w+b") if log_file else tempfile.TemporaryFile() as log:
        environment = {**os.environ, "PYTHONPATH": path, **environment}
        child = subprocess.Popen(command, stdout=log, stderr=log, cwd=REPO, env=environment)
        try:
            _wait_ready(child, ready_url, timeout_s, log)
            yield child
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _wait_ready(child: subprocess.Popen[bytes], url: str, timeout_s: float, log: Any) -> None:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - our own
            if answer.status == 200:
                return
        if child.poll() is not None:
            break
        time.sleep(0.1)
    log.seek(0)
    raise RuntimeError(f"{child.args} did not answer {url}:\n{log.read()[-4000:].decode(errors='replace')}")


def tool_environment(name: str, *requirements: str) -> Path:
    """A virtual environment of its own for what is only compared with, kept under ``out/bench`` between runs."""
    folder = REPO / "out" / "bench" / name
    if not (folder / ".installed").exists():
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True)
        subprocess.run(
            [*uv, "pip", "install", "--quiet", "--python", str(folder / "bin/python"), *requirements], check=True
        )
        (folder / ".installed").touch()
    return folder


@contextlib.contextmanager
def stub(delay_s: float = 0.0, stream_pause_s: float = 0.0, chunks: int = 1) -> Iterator[str]:
    """The URL of a stub upstream in its own process."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.gateway_support", "stub", str(port), "--delay-s", str(delay_s)]
    command += ["--stream-pause-s", str(stream_pause_s), "--chunks", str(chunks)]
    with process(command, f"http://127.0.0.1:{port}/health"):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def gateway(
    upstream: str, critic: str | None = None, log_file: Path | None = None, **sections: Any
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """URL and process of a gateway before ``upstream``, with keys, budgets and metrics on."""
    import hashlib

    import yaml

    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.yaml"
        entry = {"name": "bench", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}
        entry |= {"requests_per_minute": 10_000_000, "tokens_per_minute": 10_000_000_000}
        keys.write_text(yaml.safe_dump({"keys": [entry]}))
        config = {
            "pair": {"policy": {"url": upstream}, "critic": {"url": critic or upstream}},
            "auth": {"keys_file": str(keys)},
            **sections,
        }
        file = Path(folder) / "gateway.yaml"
        file.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "irlops_serving.gateway", "--config", str(file), "--port", str(port)]
        with process(command, f"http://127.0.0.1:{port}/readyz", log_file=log_file) as child:
            yield f"http://127.0.0.1:{port}", child


# --- load ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """What a load run measured; latencies in milliseconds."""

    requests_per_s: float
    median_ms: float
    p99_ms: float
    num_requests: int
    num_errors: int


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest-rank percentile of ``values``."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


async def _client(url: str, path: str, body: bytes, end_s: float, latencies: list[float], errors: list[str]) -> None:
    host, port = url.removeprefix("http://").split(":")
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
    request = head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body
    reader, writer = await asyncio.open_connection(host, int(port))
    while time.perf_counter() < end_s:
        started_s = time.perf_counter()
        writer.write(request)
        answer = await reader.readuntil(b"\r\n\r\n")
        lower = answer.lower()
        at = lower.find(b"content-length:")
        await reader.readexactly(int(lower[at + 15 :].split(b"\r\n", 1)[0]))
        latencies.append((time.perf_counter() - started_s) * 1000)
        if b" 200 " not in answer[:16]:
            errors.append(answer[:40].decode())
    writer.close()


def run_load(
    url: str, path: str, body: dict[str, Any], connections: int, seconds: float, *, spread_s: float = 0.0
) -> Load:
    """Closed-loop load from this process: ``connections`` at once, each asks again when answered.

    Args:
        spread_s: Connections begin evenly over this time. With 0 all begin together, and with an upstream that always
            takes equally long they stay together: every round trip is a burst.
    """

    async def run() -> Load:
        latencies: list[float] = []
        errors: list[str] = []
        started_s = time.perf_counter()
        raw = json.dumps(body).encode()

        async def begin(place: int) -> None:
            await asyncio.sleep(spread_s * place / connections)
            await _client(url, path, raw, started_s + seconds, latencies, errors)

        await asyncio.gather(*map(begin, range(connections)))
        wall_s = time.perf_counter() - started_s
        return Load(
            len(latencies) / wall_s,
            percentile(latencies, 0.5),
            percentile(latencies, 0.99),
            len(latencies),
            len(errors),
        )

    import uvloop

    return uvloop.run(run())


def run_wrk(url: str, path: str, body: dict[str, Any], connections: int, seconds: float) -> Load:
    """The same with ``wrk``, which costs the machine less; falls back to ``run_load`` where it isn't installed."""
    if shutil.which("wrk") is None:
        return run_load(url, path, body, connections, seconds)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(
            f'wrk.method = "POST"\nwrk.body = [==[{json.dumps(body)}]==]\n'
            f'wrk.headers["content-type"] = "application/json"\nwrk.headers["authorization"] = "Bearer {KEY}"\n'
            "done = function(s, l, r) io.write(string.format('RESULT %d %f %f %f %d\\n', s.requests, s.duration / 1e6, "
            "l:percentile(50) / 1e3, l:percentile(99) / 1e3, s.errors.status + s.errors.read + s.errors.timeout)) end\n"
        )
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{int(seconds)}s", "--timeout", "30s", "-s", script.name]
        text = subprocess.run([*command, url + path], check=True, capture_output=True, text=True).stdout
    fields = next(line for line in text.splitlines() if line.startswith("RESULT")).split()[1:]
    count, duration_s, median_ms, p99_ms, errors = (float(field) for field in fields)
    return Load(count / duration_s, median_ms, p99_ms, int(count), int(errors))


def memory_mib(child: subprocess.Popen[bytes]) -> float:
    """Resident memory of a process and its children, in MiB."""
    import psutil

    root = psutil.Process(child.pid)
    return sum(process.memory_info().rss for process in (root, *root.children(recursive=True))) / 2**20


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A plain table on standard output."""
    cells = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(column), *(len(row[place]) for row in cells)) for place, column in enumerate(columns)]
    print(f"\n{title}")
    print("  ".join(column.ljust(width) for column, width in zip(columns, widths, strict=True)))
    print("  ".join("-" * width for width in widths))
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    serve_stub()
