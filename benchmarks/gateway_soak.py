"""Mixed load with faults: is every request answered or refused with a reason, and does nothing pile up?

    python -m benchmarks.gateway_soak [--minutes 30] [--clients 24] [--seed 0]

The gateway is a process of its own with keys, limits and logs on; the stub policy and critic live here and misbehave in turn:
the critic is killed and comes back, the policy slows down, cuts its connections, crashes, or answers with something that is
not JSON. Clients ask in every way, send broken bodies, and leave early. Exits 1 when something was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from aiohttp import web
from benchmarks.gateway_support import KEY, REPO, free_port, gateway, print_table

sys.path.insert(0, str(REPO / "tests"))
from support.stub_upstreams import StubCritic, StubPolicy, Vocabulary, served

QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]
SOLUTIONS = ["two and two is 4 #### 4", "two and two is 5 #### 5", "2 + 2 = 4\nso it is\n#### 4", " ".join(["so"] * 40)]
HEADERS = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
BROKEN = (b"{", b"\xff\xfe", b"[" * 3000, b"[]", b'{"model": "policy", "messages": []}', b'{"model": "gpt"}', b"")
# A client that is told so has been answered: the gateway refused, or an upstream failed and the answer names it.
EXPECTED_CODES = re.compile(r"overloaded|(policy|critic)_(unavailable|timeout|bad_response)|deadline_exceeded")
MEMORY_BAR_PERCENT = 5.0
FAULT_S = 2.0
CALM_S = 4.0
ANSWER_WITHIN_S = 30.0


@dataclass
class Tally:
    """What happened to the requests, and what should not have."""

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: collections.Counter[str] = field(default_factory=collections.Counter)


def _body(kind: str, draw: random.Random) -> tuple[str, dict[str, Any]]:
    chat = {"messages": QUESTION, "model": "policy", "temperature": 0.8}
    rerank = {
        "candidates": draw.choice((2, 4, 8)),
        "selector": draw.choice(("reward", "weighted_majority", "majority")),
    }
    rerank["adaptive"] = draw.random() < 0.3
    if draw.random() < 0.2:
        rerank["deadline_ms"] = draw.choice((50, 500, 5000))
    item = {"question": "What is 2 + 2?", "solution": draw.choice(SOLUTIONS)}
    bodies = {
        "policy": chat,
        "policy stream": chat | {"stream": True},
        "reranked": chat | {"model": "reranked", "rerank": rerank},
        "reranked stream": chat | {"model": "reranked", "rerank": rerank, "stream": True},
        "rewards stream": chat | {"stream": True, "rewards": {}},
        "rewards": {"items": [item] * draw.choice((1, 8))},
    }
    return "/v1/rewards" if kind == "rewards" else "/v1/chat/completions", bodies[kind]


KINDS = ("policy", "policy stream", "reranked", "reranked stream", "rewards stream", "rewards")


# --- clients -------------------------------------------------------------------------------------------------------


async def _client(http: aiohttp.ClientSession, tally: Tally, end_s: float, draw: random.Random) -> None:
    while time.monotonic() < end_s:
        kind = draw.choice((*KINDS, "broken", "leaver"))
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                outcome = await _ask(http, kind, draw)
        except TimeoutError:
            tally.wrong[f"{kind}: no answer within {ANSWER_WITHIN_S:.0f} s"] += 1
        except aiohttp.ClientError as error:
            tally.wrong[f"{kind}: {type(error).__name__}"] += 1
        else:
            (tally.wrong if outcome.startswith("!") else tally.outcomes)[f"{kind}: {outcome}"] += 1
        await asyncio.sleep(draw.uniform(0, 0.05))


async def _ask(http: aiohttp.ClientSession, kind: str, draw: random.Random) -> str:
    if kind == "broken":
        async with http.post("/v1/chat/completions", data=draw.choice(BROKEN), headers=HEADERS) as answer:
            status, _ = answer.status, await answer.read()
            return "refused" if status in (400, 404) else f"! status {status}"
    if kind == "leaver":
        path, body = _body(draw.choice(KINDS), draw)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(draw.uniform(0.001, 0.3)), http.post(path, json=body, headers=HEADERS) as answer:
                await answer.read()
        return "left"
    path, body = _body(kind, draw)
    async with http.post(path, json=body, headers=HEADERS) as answer:
        text = (await answer.read()).decode()
        return _judge_stream(text) if "event-stream" in answer.headers["content-type"] else _judge(answer.status, text)


def _judge(status: int, text: str) -> str:
    try:
        body = json.loads(text)
    except ValueError:
        return f"! status {status} without JSON"
    if status == 200:
        return f"degraded, {reason}" if (reason := (body.get("rerank") or {}).get("degraded")) else "answered"
    code = str(body.get("error", {}).get("code"))
    return code if status != 500 and EXPECTED_CODES.fullmatch(code) else f"! status {status} {code}"


def _judge_stream(text: str) -> str:
    if text.endswith("data: [DONE]\n\n"):
        return "answered"
    last = text.rstrip("\n").rpartition("\n")[2].removeprefix("data: ")
    try:
        code = str(json.loads(last)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return "! stream without an end"
    return code if EXPECTED_CODES.fullmatch(code) else f"! stream ended with {code}"


# --- faults --------------------------------------------------------------------------------------------------------


async def _faults(policy: StubPolicy, critic: _KillableCritic) -> None:
    """One fault after the other, with calm between, for as long as the load lasts."""
    fails: dict[str, Callable[[dict[str, Any]], web.Response]] = {
        "crashes": lambda _: web.Response(status=500, text="Traceback (most recent call last)"),
        "no JSON": lambda _: web.Response(text="<html>"),
        "busy": lambda _: web.Response(status=503, headers={"retry-after": "1"}),
    }
    while True:
        await asyncio.sleep(CALM_S)
        async with critic.killed():
            await asyncio.sleep(FAULT_S)
        await asyncio.sleep(CALM_S)
        policy.token_delay_s = 0.1
        await asyncio.sleep(FAULT_S)
        policy.token_delay_s, policy.cut_after_chunks = 0.002, 3
        await asyncio.sleep(FAULT_S)
        policy.cut_after_chunks = None
        for fail in fails.values():
            await asyncio.sleep(CALM_S)
            policy.fail = fail
            await asyncio.sleep(FAULT_S)
            policy.fail = lambda _: None


class _KillableCritic:
    """A critic on one port that goes away with its connections, and comes back."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.stub, self.port = StubCritic(vocabulary), free_port()
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> str:
        return await self._stack.enter_async_context(served(self.stub.app(), self.port))

    async def stop(self) -> None:
        await self._stack.aclose()

    @contextlib.asynccontextmanager
    async def killed(self) -> AsyncIterator[None]:
        await self.stop()
        try:
            yield
        finally:
            await self.start()


# --- what the gateway's process holds ------------------------------------------------------------------------------


async def _gauges(http: aiohttp.ClientSession) -> dict[str, float]:
    async with http.get("/metrics") as answer:
        text = await answer.text()
    values: collections.Counter[str] = collections.Counter()
    for name, value in re.findall(r"^irlops_gateway_(tasks|in_flight|queued)(?:\{.*\})? (\S+)$", text, flags=re.M):
        values[name] += float(value)
    return dict(values)


async def _settled(http: aiohttp.ClientSession, process: psutil.Process) -> dict[str, float]:
    """What is held once nothing is asked any more and idle connections to the stubs have been closed."""
    await asyncio.sleep(6)
    return {**await _gauges(http), "files and sockets": float(process.num_fds())}


async def _watch(process: psutil.Process, memory_mib: list[float]) -> None:
    while True:
        await asyncio.sleep(1)
        memory_mib.append(process.memory_info().rss / 2**20)


async def _soak(options: argparse.Namespace, folder: Path) -> int:
    vocabulary, draw = Vocabulary(), random.Random(options.seed)  # noqa: S311 - no secret
    policy, critic, tally = StubPolicy(vocabulary, SOLUTIONS, token_delay_s=0.002), _KillableCritic(vocabulary), Tally()
    memory_mib: list[float] = []
    log_file = folder / "gateway.log"
    async with contextlib.AsyncExitStack() as stack:
        policy_url = await stack.enter_async_context(served(policy.app()))
        critic_url = await critic.start()
        stack.push_async_callback(critic.stop)
        sections = {"limits": {"max_concurrent_reranked": 16}, "breaker": {"failures": 5, "open_s": 1.0}}
        starting = gateway(policy_url, critic_url, log_file, **sections)
        url, child = await asyncio.to_thread(starting.__enter__)
        stack.push_async_callback(asyncio.to_thread, starting.__exit__, None, None, None)
        watching = await stack.enter_async_context(aiohttp.ClientSession(url))
        process = psutil.Process(child.pid)
        before = await _settled(watching, process)
        end_s = time.monotonic() + options.minutes * 60
        helpers = [asyncio.create_task(_faults(policy, critic)), asyncio.create_task(_watch(process, memory_mib))]
        async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as http:
            draws = [random.Random(draw.random()) for _ in range(options.clients)]  # noqa: S311 - no secret
            await asyncio.gather(*(_client(http, tally, end_s, one) for one in draws))
        for task in helpers:
            task.cancel()
        await asyncio.wait(helpers)
        after = await _settled(watching, process)
    unhandled = log_file.read_text().count("unhandled_error")
    return _report(tally, memory_mib, before, after, unhandled)


def _report(
    tally: Tally, memory_mib: list[float], before: dict[str, float], after: dict[str, float], unhandled: int
) -> int:
    outcomes = [(name, count) for name, count in sorted(tally.outcomes.items())]
    print_table("Requests", ("outcome", "count"), outcomes)
    # The first fifth fills pools and caches; after it memory should stand still.
    settled = memory_mib[len(memory_mib) // 5 :]
    third = max(1, len(settled) // 3)
    first, last = statistics.median(settled[:third]), statistics.median(settled[-third:])
    drift_percent = (last - first) / first * 100
    leaks = {name: (before.get(name, 0.0), after[name]) for name in after if after[name] > before.get(name, 0.0)}
    print(f"\n{sum(tally.outcomes.values())} requests ended as they should; wrong: {dict(tally.wrong) or 'none'}")
    print(
        f"Unhandled errors in the log: {unhandled}. Held before {before}, after {after}; leaked: {leaks or 'nothing'}"
    )
    print(
        f"Memory {first:.1f} MiB in the first third after warming up, {last:.1f} MiB in the last: {drift_percent:+.1f} % "
        f"(wanted: at most {MEMORY_BAR_PERCENT:.0f} %), peak {max(memory_mib):.1f} MiB"
    )
    return int(bool(tally.wrong or unhandled or leaks or drift_percent > MEMORY_BAR_PERCENT))


def main() -> int:
    """Run, print, and say by the exit code whether anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_soak(options, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
