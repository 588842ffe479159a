"""HTTP to one upstream server: phase timeouts, retries where nothing can happen twice, and a circuit breaker."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import SecretStr

from irlops_serving.gateway.breaker import CircuitBreaker
from irlops_serving.gateway.connections import Connection, ConnectionLostError, ConnectionPool, NotConnectedError
from irlops_serving.gateway.errors import (
    ApiError,
    upstream_broken,
    upstream_refused,
    upstream_timeout,
    upstream_unavailable,
)
from irlops_serving.gateway.metrics import Metrics, labelled
from irlops_serving.gateway.settings import TimeoutSettings

# An error body is shown in part; the rest of a megabyte-long one is of no use.
MAX_ERROR_CHARS = 500
MAX_ERROR_BYTES = 2**16
# Largest answer kept in memory: 64 candidates of 32k tokens with logprobs stay below it.
MAX_REPLY_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer: ``status`` 2xx, its bytes."""

    status: int
    body: bytes


class EventStream:
    """An open server-sent event answer of an upstream. Made by ``Upstream.open_stream``."""

    def __init__(self, upstream: Upstream, response: Connection, timeouts: TimeoutSettings) -> None:
        self._upstream, self._response, self._timeouts = upstream, response, timeouts

    async def chunks(self) -> AsyncIterator[bytes]:
        """Bytes as they come, cut at event ends (every chunk holds whole ``data: …\\n\\n`` events).

        Raises:
            ApiError: 504 when nothing comes for too long, 502 when the stream ends inside an event.
        """
        rest, limit_s = b"", self._timeouts.first_token_s
        while True:
            try:
                data = await self._response.read(limit_s)
            except TimeoutError:
                raise self._upstream.failed_with_timeout("waiting for the next token", limit_s) from None
            except ConnectionLostError as error:
                raise self._upstream.failed_halfway(error) from error
            limit_s = self._timeouts.idle_s
            if not data:
                break
            data = rest + data if rest else data
            end = data.rfind(b"\n\n") + 2
            rest = data[end:] if end > 1 else data
            if end > 1:
                yield data[:end]
        if rest.strip():
            raise self._upstream.failed_halfway(None)


def iter_events(chunk: bytes) -> Iterator[bytes]:
    """Payloads of the ``data:`` lines in ``chunk`` (whole events)."""
    for line in chunk.split(b"\n"):
        if line.startswith(b"data:"):
            yield line[5:].strip()


class Upstream:
    """One server (``policy`` or ``critic``) of one pair."""

    def __init__(
        self,
        name: str,
        url: str,
        breaker: CircuitBreaker,
        timeouts: TimeoutSettings,
        metrics: Metrics,
        api_key: SecretStr | None = None,
        ca_file: Path | None = None,
    ) -> None:
        self.name, self.url, self.breaker = name, url, breaker
        self._timeouts, self._metrics = timeouts, metrics
        headers = {"content-type": "application/json"}
        if api_key is not None:
            headers["authorization"] = f"Bearer {api_key.get_secret_value()}"
        tls = ssl.create_default_context(cafile=ca_file) if url.startswith("https:") else None
        self._pool = ConnectionPool(url, timeouts.connect_s, tls, headers)

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close()

    async def post(
        self,
        path: str,
        body: bytes,
        *,
        call: str,
        limit_s: float,
        idempotent: bool,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        """Send ``body`` and read the whole answer.

        Args:
            path: after the base URL.
            body: JSON bytes.
            call: what is done, for metrics and messages ("chat", "score", …); from a closed set.
            limit_s: seconds for everything.
            idempotent: whether a second sending can't do harm: then one more try after a lost connection.
            headers: sent besides the usual.

        Raises:
            ApiError: 503 not reachable, 504 too slow, 502 not its protocol, or the server's own 4xx.
        """
        try:
            return await self._post_once(path, body, call, limit_s, headers)
        except _LostConnectionError as lost:
            if not idempotent:
                raise lost.error from lost.__cause__
        labelled(self._metrics.retries, self.name).inc()
        try:
            return await self._post_once(path, body, call, limit_s, headers)
        except _LostConnectionError as lost:
            raise lost.error from lost.__cause__

    async def get(self, path: str, limit_s: float) -> Reply:
        """Read ``path`` once, outside of breaker and metrics (health checks)."""
        response = await self._pool.send("GET", path, b"", limit_s)
        try:
            return Reply(response.status, await response.read(limit_s))
        finally:
            response.leave()

    @asynccontextmanager
    async def open_stream(
        self, path: str, body: bytes, *, call: str, headers: dict[str, str] | None = None
    ) -> AsyncIterator[EventStream]:
        """Send ``body`` and read the answer as it comes. Leaving closes the connection: the server stops generating."""
        timeouts = self._timeouts
        first_s = max(timeouts.first_token_s, timeouts.idle_s)
        try:
            response = await self._begin(path, body, call, headers, timeouts.policy_s, first_s)
        except _LostConnectionError as lost:
            raise lost.error from lost.__cause__
        try:
            yield EventStream(self, response, timeouts)
            self.breaker.record_success()
        except BaseException:
            # Whatever ended it: without a record a trial of the half-open circuit would never end.
            self.breaker.record_cancelled()
            raise
        finally:
            response.leave()

    async def _post_once(
        self, path: str, body: bytes, call: str, limit_s: float, headers: dict[str, str] | None
    ) -> Reply:
        response = await self._begin(path, body, call, headers, limit_s)
        try:
            reply = Reply(response.status, await self._read(response, limit_s))
        except BaseException:
            self.breaker.record_cancelled()
            raise
        finally:
            response.leave()
        self.breaker.record_success()
        return reply

    async def _begin(
        self,
        path: str,
        body: bytes,
        call: str,
        headers: dict[str, str] | None,
        limit_s: float,
        first_byte_s: float | None = None,
    ) -> Connection:
        """Send a request; returns when the answer's head is there and says that all is well."""
        if not self.breaker.may_call():
            self._count_error("breaker_open")
            raise upstream_unavailable(self.name, self.breaker.retry_after_s)
        started_s = time.perf_counter()
        try:
            response = await self._send(path, body, headers, limit_s, first_byte_s or limit_s)
            labelled(self._metrics.upstream_latency, self.name, call).observe(time.perf_counter() - started_s)
            if response.status != 200:
                await self._refuse_bad_status(response)
        except BaseException:
            self.breaker.record_cancelled()
            raise
        return response

    async def _send(
        self, path: str, body: bytes, headers: dict[str, str] | None, limit_s: float, first_byte_s: float
    ) -> Connection:
        for attempt in (1, 2):
            try:
                return await self._pool.send("POST", path, body, limit_s, first_byte_s=first_byte_s, headers=headers)
            except NotConnectedError as error:
                # Nothing was sent, so even a generation may be tried again.
                if attempt == 2:
                    raise self._failed("unreachable", upstream_unavailable(self.name)) from error
                labelled(self._metrics.retries, self.name).inc()
            except TimeoutError as error:
                raise self.failed_with_timeout("the beginning of its answer", first_byte_s) from error
            except ConnectionLostError as error:
                raise _LostConnectionError(self._failed("disconnected", upstream_unavailable(self.name))) from error
        raise AssertionError("the second attempt returns or raises")

    async def _refuse_bad_status(self, response: Connection) -> None:
        if response.status < 300:
            return
        try:
            text = (await self._read_start(response)).decode(errors="replace")
        finally:
            response.leave()
        if response.status in (429, 503):
            wait = response.headers.get(b"retry-after", b"1")
            raise self._failed("busy", upstream_unavailable(self.name, float(wait) if wait.isdigit() else 1.0))
        if response.status == 500:
            # Quick, and maybe what this one request does to the server: it must not open the circuit for everybody. A server
            # that is down doesn't answer, and a proxy before it says 502, 503 or 504.
            self._count_error("bad_status")
            raise upstream_broken(self.name, "answered with status 500")
        if response.status > 500 or response.status < 400:
            raise self._failed("bad_status", upstream_broken(self.name, f"answered with status {response.status}"))
        if response.status in (401, 403):
            # Our credentials for the upstream are wrong; the client's are not.
            raise self._failed("refused_us", upstream_broken(self.name, "refused the gateway's credentials"))
        self.breaker.record_success()
        raise _client_error(self.name, response.status, text)

    async def _read_start(self, response: Connection) -> bytes:
        """The beginning of an error body; what is there of it when the connection breaks."""
        start = b""
        with suppress(ConnectionLostError, TimeoutError):
            while len(start) < MAX_ERROR_BYTES and (data := await response.read(self._timeouts.idle_s)):
                start += data
        return start[:MAX_ERROR_BYTES]

    async def _read(self, response: Connection, limit_s: float) -> bytes:
        try:
            data = await response.read(limit_s)
            if response.is_complete:
                return data
            parts, size = [data], len(data)
            while data := await response.read(limit_s):
                parts.append(data)
                size += len(data)
                if size > MAX_REPLY_BYTES:
                    raise self._failed("too_large", upstream_broken(self.name, "answered with too many bytes"))
            return b"".join(parts)
        except ConnectionLostError as error:
            raise _LostConnectionError(self.failed_halfway(error)) from error
        except TimeoutError as error:
            raise self.failed_with_timeout("its whole answer", limit_s) from error

    def failed_halfway(self, error: Exception | None) -> ApiError:
        """The answer stopped in the middle."""
        kind = "interrupted" if error is None or not isinstance(error, TimeoutError) else "timeout"
        return self._failed(kind, upstream_broken(self.name, "stopped in the middle of its answer"))

    def failed_with_timeout(self, phase: str, limit_s: float) -> ApiError:
        """The answer did not come in time."""
        return self._failed("timeout", upstream_timeout(self.name, phase, limit_s))

    def not_understood(self, what: str) -> ApiError:
        """The answer came, but isn't what the protocol says."""
        return self._failed("bad_response", upstream_broken(self.name, what))

    def parse(self, body: bytes) -> dict[str, Any]:
        """The JSON object in an answer."""
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise self.not_understood("answered with something that is not JSON") from None
        if not isinstance(value, dict):
            raise self.not_understood("answered with JSON that is not an object")
        return value

    def _failed(self, kind: str, error: ApiError) -> ApiError:
        self.breaker.record_failure()
        self._count_error(kind)
        return error

    def _count_error(self, kind: str) -> None:
        labelled(self._metrics.upstream_errors, self.name, kind).inc()
        labelled(self._metrics.breaker_open, self.name).set(self.breaker.is_open)


class _LostConnectionError(Exception):
    """The connection broke: the call may be sent again if it is idempotent, else ``error`` is the outcome."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(str(error))
        self.error = error


def _client_error(name: str, status: int, text: str) -> ApiError:
    """The upstream's refusal in our shape; FastAPI's ``detail`` and OpenAI's ``error`` are understood."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = None
    error = value.get("error", value.get("detail")) if isinstance(value, dict) else None
    if isinstance(error, dict):
        message, param, code = error.get("message"), error.get("param"), error.get("code")
    else:
        message, param, code = error, None, None
    said = message if isinstance(message, str) else text.strip()[:MAX_ERROR_CHARS] or f"The {name} refused the request."
    return upstream_refused(status, said, param if isinstance(param, str) else None, str(code) if code else None)
