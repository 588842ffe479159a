"""A running gateway before stub upstreams: real HTTP on free ports of this machine, one event loop."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from irlops_serving.gateway.app import Gateway
from irlops_serving.gateway.server import DrainingServer, listen, server_config
from irlops_serving.gateway.settings import GatewaySettings, load_settings
from irlops_serving.gateway.tracing import Tracer
from support.stub_upstreams import StubCritic, StubPolicy, Vocabulary, served

RIGHT = "two and two is 4 #### 4"
WRONG = "two and two is 5 #### 5"
QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]


@dataclass
class Rig:
    """What a test talks to."""

    gateway: Gateway
    server: DrainingServer
    policy: StubPolicy
    critic: StubCritic
    url: str
    http: aiohttp.ClientSession

    async def post(self, path: str, body: Any, **kwargs: Any) -> tuple[int, Any]:
        """Status and JSON of a POST."""
        async with self.http.post(path, json=body, **kwargs) as answer:
            return answer.status, json.loads(await answer.read())

    async def chat(self, model: str = "policy", **fields: Any) -> tuple[int, Any]:
        """Status and JSON of a chat completion."""
        return await self.post("/v1/chat/completions", {"model": model, "messages": QUESTION, **fields})

    async def rerank(self, _fields: dict[str, Any] | None = None, **rerank: Any) -> dict[str, Any]:
        """Body of a reranked chat completion that must succeed."""
        status, body = await self.chat("reranked", rerank=rerank, **(_fields or {}))
        assert status == 200, body
        return body

    async def events(self, path: str = "/v1/chat/completions", **fields: Any) -> list[Any]:
        """Parsed ``data:`` events of a stream; ``[DONE]`` stays a string, comments come as they are."""
        body = {"messages": QUESTION, "stream": True, **fields}
        async with self.http.post(path, json=body) as answer:
            assert answer.status == 200, await answer.read()
            return events_in(await answer.read())

    async def get(self, path: str, **kwargs: Any) -> tuple[int, Any]:
        """Status and JSON of a GET."""
        async with self.http.get(path, **kwargs) as answer:
            return answer.status, json.loads(await answer.read())

    async def metrics(self) -> str:
        """The metrics page."""
        async with self.http.get("/metrics") as answer:
            return await answer.text()


def text_of(body: dict[str, Any]) -> str:
    """The first answer of a chat completion."""
    return body["choices"][0]["message"]["content"]


async def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Until ``condition`` holds."""
    end_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end_s, "did not happen in time"
        await asyncio.sleep(0.01)


async def pass_time(seconds: float) -> None:
    """Let arrive what was sent, then put the loop's clock forward: every wait that ends within ``seconds`` ends now.

    A limit that a test wants to see run out can so be far longer than the machine needs, however busy it is, for what
    comes before, and still costs no time.
    """
    for _ in range(50):  # turns of the loop; each looks at every connection
        await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    clock = loop.time
    loop.time = lambda: clock() + seconds


def events_in(stream: bytes) -> list[Any]:
    """Parsed events of a whole stream, as ``Rig.events`` gives them."""
    return [_event(block) for block in stream.decode().split("\n\n") if block]


def _event(block: str) -> Any:
    payload = block.removeprefix("data: ")
    return json.loads(payload) if payload.startswith("{") else payload


def settings_for(policy_url: str, critic_url: str, **sections: Any) -> GatewaySettings:
    """Settings with quick watching, for tests."""
    pair = {
        "policy": {"url": policy_url},
        "critic": {"url": critic_url},
        "policy_version": "3",
        "critic_version": "3",
        "calibration": {"schema": 1, "aggregation": "mean", "gamma": 0.5, "temperature": 1.0, "bias": 0.0},
        **sections.pop("pair", {}),
    }
    quick = {"reload_interval_s": 0.05, "probe_interval_s": 0.05}
    return load_settings(None, **{"pair": pair, "host": "127.0.0.1", "port": 0, **quick, **sections})


@asynccontextmanager
async def running(
    settings: GatewaySettings, config_file: Path | None = None, tracer: Tracer | None = None
) -> AsyncIterator[tuple[Gateway, DrainingServer, str]]:
    """A gateway that listens; its URL."""
    gateway = Gateway(settings, config_file, tracer)
    listening = listen(settings.host, settings.port)
    server = DrainingServer(server_config(gateway, settings), gateway)

    task = asyncio.create_task(server._serve(sockets=[listening]))
    while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.005)
    scheme = "https" if settings.tls_cert_file else "http"
    try:
        yield gateway, server, f"{scheme}://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def rig(
    policy: dict[str, Any] | None = None,
    critic: dict[str, Any] | None = None,
    config_file: Path | None = None,
    tracer: Tracer | None = None,
    **sections: Any,
) -> AsyncIterator[Rig]:
    """Stub policy and critic with the given fields, and a gateway before them."""
    vocabulary = Vocabulary()
    policy_stub = StubPolicy(vocabulary, **(policy or {}))
    critic_stub = StubCritic(vocabulary, **(critic or {}))
    async with AsyncExitStack() as stack:
        policy_url = await stack.enter_async_context(served(policy_stub.app()))
        critic_url = await stack.enter_async_context(served(critic_stub.app()))
        settings = settings_for(policy_url, critic_url, **sections)
        gateway, server, url = await stack.enter_async_context(running(settings, config_file, tracer))
        http = await stack.enter_async_context(aiohttp.ClientSession(url))
        yield Rig(gateway, server, policy_stub, critic_stub, url, http)
