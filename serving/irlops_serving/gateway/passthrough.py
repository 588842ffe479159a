"""The model ``policy``: requests go on as they came, answers come back as they are made."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

import orjson

from irlops_serving.gateway.exchange import JSON, Exchange, Usage
from irlops_serving.gateway.policy import PolicyClient
from irlops_serving.gateway.requests import CompletionRequest
from irlops_serving.gateway.upstream import EventStream, Upstream, iter_events

PUBLIC_NAME = "policy"


@dataclass(slots=True)
class StreamTimes:
    """When tokens left, in ``time.perf_counter()`` seconds."""

    first_s: float = 0.0
    last_s: float = 0.0


async def pass_through(
    exchange: Exchange, request: CompletionRequest, policy: PolicyClient, headers: dict[str, str] | None
) -> None:
    """Send the request on and the whole answer back.

    Raises:
        ApiError: before anything was answered.
    """
    body = _forwarded(request, policy.settings.model)
    reply = await policy.upstream.post(
        request.route, body, call="chat", limit_s=policy.policy_s, idempotent=False, headers=headers
    )
    answer = policy.upstream.parse(reply.body)
    exchange.usage = read_usage(answer)
    await exchange.respond(200, _renamed(reply.body, policy.settings.model), [JSON])


async def stream_through(
    exchange: Exchange, request: CompletionRequest, policy: PolicyClient, headers: dict[str, str] | None
) -> StreamTimes:
    """Send the request on and each piece of the answer back as it comes."""
    body = _forwarded(request, policy.settings.model)
    times = StreamTimes()
    async with policy.upstream.open_stream(request.route, body, call="chat", headers=headers) as events:
        await _relay(exchange, request, policy.upstream, policy.settings.model, events, times)
    return times


async def _relay(
    exchange: Exchange,
    request: CompletionRequest,
    upstream: Upstream,
    model: str,
    events: EventStream,
    times: StreamTimes,
) -> None:
    is_done = False
    usage = exchange.usage
    async for chunk in events.chunks():
        if not times.first_s:
            times.first_s = time.perf_counter()
            await exchange.start_events()
        # A usage chunk that only we asked for is taken out; chunks without one go on unread.
        if b'"usage"' in chunk:
            chunk = _without_usage(chunk, usage, keep=request.include_usage)
        elif usage.prompt_tokens == 0:
            # Until the policy has told the exact numbers: an event is a token or more. A client that leaves before
            # has used these.
            usage.completion_tokens += chunk.count(b"data: {")
        is_done = is_done or b"data: [DONE]" in chunk
        if chunk:
            await exchange.send_bytes(_renamed(chunk, model))
    if not is_done:
        raise upstream.failed_halfway(None)
    times.last_s = time.perf_counter()
    await exchange.end_stream(done=False)


def _without_usage(chunk: bytes, usage: Usage, *, keep: bool) -> bytes:
    kept = []
    for event in iter_events(chunk):
        value = None if event == b"[DONE]" else _loads(event)
        is_usage = isinstance(value, dict) and isinstance(value.get("usage"), dict) and not value.get("choices")
        if is_usage and isinstance(value, dict):
            found = read_usage(value)
            usage.prompt_tokens, usage.completion_tokens = found.prompt_tokens, found.completion_tokens
        if keep or not is_usage:
            kept.append(b"data: " + event + b"\n\n")
    return b"".join(kept)


def _loads(event: bytes) -> Any:
    try:
        return orjson.loads(event)
    except orjson.JSONDecodeError:
        return None


def _forwarded(request: CompletionRequest, model: str) -> bytes:
    """The body as it came, unless the model is called otherwise upstream or usage must be asked for."""
    changes: dict[str, Any] = {}
    if model != PUBLIC_NAME:
        changes["model"] = model
    if request.stream and not request.include_usage:
        changes["stream_options"] = {**(request.document.get("stream_options") or {}), "include_usage": True}
    return orjson.dumps({**request.document, **changes}) if changes else request.raw


def _renamed(body: bytes, model: str) -> bytes:
    """Call the model what clients call it. Inside a JSON string the quotes would be escaped: only the key matches."""
    if model == PUBLIC_NAME:
        return body
    return re.sub(rb'"model":\s*' + re.escape(orjson.dumps(model)), b'"model":"policy"', body)


def read_usage(answer: dict[str, Any]) -> Usage:
    """The usage object of an answer; zeros where it has none."""
    found = answer.get("usage")
    if not isinstance(found, dict):
        return Usage()
    counts = (found.get("prompt_tokens"), found.get("completion_tokens"))
    return Usage(*(count if isinstance(count, int) else 0 for count in counts))
