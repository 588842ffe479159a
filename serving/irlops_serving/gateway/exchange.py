"""One HTTP request and its response, directly on ASGI: the hot path has no other layer."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import orjson

from irlops_serving.gateway.errors import ApiError, ClientGone, invalid_request, slow_body, too_large

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
EVENT_STREAM: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    # nginx and its ingress buffer whole responses otherwise.
    (b"x-accel-buffering", b"no"),
]
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
# A request that ends sooner never pays for a task that listens to its connection.
WATCH_CONNECTION_AFTER_S = 0.2


@dataclass(slots=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def as_dict(self) -> dict[str, int]:
        """OpenAI's usage object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
        }


class Exchange:
    """A request, what is known about it, and the way to answer it. Made by the app, used by one handler."""

    __slots__ = (
        "body_timeout_s",
        "caller",
        "facts",
        "is_answered",
        "max_body_bytes",
        "method",
        "path",
        "receive",
        "request_id",
        "response_headers",
        "scope",
        "send",
        "started_s",
        "status",
        "usage",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_body_bytes: int, body_timeout_s: float) -> None:
        self.scope, self.receive, self.send = scope, receive, send
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.max_body_bytes, self.body_timeout_s = max_body_bytes, body_timeout_s
        self.started_s = time.perf_counter()
        self.status = 0
        self.is_answered = False
        """Whether the last byte was handed to the server."""
        self.caller = ""
        self.usage = Usage()
        """What was used so far, kept up to date while the answer is written: whoever leaves early has used it too."""
        self.facts: dict[str, Any] = {}
        """What the access log says beside the usual (model, tokens, degraded, …)."""
        self.request_id = self._request_id()
        self.response_headers: Headers = [(b"x-request-id", self.request_id.encode())]

    def header(self, name: bytes) -> bytes | None:
        """The first header called ``name`` (lower case)."""
        for key, value in self.scope["headers"]:
            if key == name:
                return value
        return None

    def _request_id(self) -> str:
        given = self.header(b"x-request-id")
        # Anything else could forge log lines.
        return given.decode() if given and _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()

    async def read_body(self) -> bytes:
        """The whole body.

        Raises:
            ApiError: 413 beyond ``max_body_bytes`` (also when only announced), 408 when it takes too long.
            ClientGone: the client left while sending.
        """
        announced = self.header(b"content-length")
        if announced is not None and announced.isdigit() and int(announced) > self.max_body_bytes:
            raise self._too_large()
        message = await self._receive_soon()
        if not message.get("more_body"):
            return self._checked(message.get("body", b""))
        parts, size = [message.get("body", b"")], len(message.get("body", b""))
        while message.get("more_body"):
            message = await self._receive_soon()
            part = message.get("body", b"")
            size += len(part)
            if size > self.max_body_bytes:
                raise self._too_large()
            parts.append(part)
        return b"".join(parts)

    def _checked(self, body: bytes) -> bytes:
        if len(body) > self.max_body_bytes:
            raise self._too_large()
        return body

    def _too_large(self) -> ApiError:
        return too_large(f"The request body is larger than {self.max_body_bytes} bytes. Send less in one request.")

    async def _receive_soon(self) -> MutableMapping[str, Any]:
        limit_s = max(0.0, self.started_s + self.body_timeout_s - time.perf_counter())
        try:
            async with asyncio.timeout(limit_s):
                message = await self.receive()
        except TimeoutError:
            raise slow_body(self.body_timeout_s) from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        return message

    async def respond(self, status: int, body: bytes, headers: Headers | None = None) -> None:
        """Send a whole response (JSON unless ``headers`` name another content type)."""
        self.status = status
        start = [*(headers or [JSON]), (b"content-length", str(len(body)).encode()), *self.response_headers]
        await self.send({"type": "http.response.start", "status": status, "headers": start})
        self.is_answered = True
        await self.send({"type": "http.response.body", "body": b"" if self.method == "HEAD" else body})

    async def respond_json(self, value: Any, status: int = 200) -> None:
        """Send ``value`` as JSON."""
        await self.respond(status, orjson.dumps(value))

    async def start_events(self) -> None:
        """Begin a server-sent event stream."""
        self.status = 200
        headers = [*EVENT_STREAM, *self.response_headers]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})

    async def send_bytes(self, chunk: bytes) -> None:
        """Send a piece of a started stream."""
        await self.send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def send_event(self, value: Any) -> None:
        """Send one ``data:`` event with ``value`` as JSON."""
        await self.send_bytes(b"data: " + orjson.dumps(value) + b"\n\n")

    async def end_stream(self, *, done: bool = True) -> None:
        """End a started stream, with OpenAI's ``[DONE]`` when it ended well."""
        self.is_answered = True
        await self.send({"type": "http.response.body", "body": b"data: [DONE]\n\n" if done else b""})

    async def respond_error(self, error: ApiError) -> None:
        """Send ``error``: as the response, or as the last event of a stream that has begun."""
        if self.status:
            self.facts["error"] = error.code
            await self.send_bytes(b"data: " + error.body() + b"\n\n")
            await self.end_stream(done=False)
        else:
            self.facts["error"] = error.code
            await self.respond(error.status, error.body(), [JSON, *error.headers()])


class CancelWhenGone:
    """While inside, a client that closes its connection cancels the work; leaving raises ClientGone.

    Cancelling closes the upstream connection, which is how a policy server learns to stop generating.
    """

    __slots__ = ("_exchange", "_gone", "_handle", "_task", "_watcher")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._gone = False
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._handle = asyncio.get_running_loop().call_later(WATCH_CONNECTION_AFTER_S, self._start)
        return self

    def _start(self) -> None:
        self._watcher = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        while (await self._exchange.receive())["type"] != "http.disconnect":
            pass
        if self._exchange.is_answered:
            return  # the server says "disconnect" after a whole answer too
        self._gone = True
        self._task.cancel()

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._handle.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._gone and (kind is None or issubclass(kind, asyncio.CancelledError)) and self._task.uncancel() == 0:
            raise ClientGone from None


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object in ``body``; refuses what isn't one, NaN and Infinity, and broken Unicode.

    Raises:
        ApiError: 400 with the place of the fault.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid_request(f"The request body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise invalid_request("The request body must be a JSON object.", code="invalid_json")
    return value
