"""uvicorn's protocol, made fit to be exposed: what it waits for without end, or keeps without bound, has a limit here.

- The head of a request has a time and a size. uvicorn's httptools protocol has neither: clients that send a header byte by
  byte keep their connections for ever, and one that never ends its header fills the memory, before anybody asks for a key.
- So do the other bytes that are no body: trailers, the framing of chunks, empty lines. uvicorn gathers trailers without end, also
  after it has answered, and forgets to close an idle connection once such bytes came.
- Connections are counted. Beyond the limit one is answered and closed before it is read from: files run out otherwise, and then
  nobody gets in at all.
- A client that does not read what it asked for is left after a time. Until then its place and its upstream would wait for it.
- What one turn of the loop has to say on a connection goes out in one write. uvicorn writes a response's head and its body
  apart, and uvloop hands each to the kernel at once: a second system call and a second packet.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from irlops_serving.gateway.errors import ApiError, head_too_large, overloaded, slow_head
from irlops_serving.gateway.settings import TimeoutSettings

MAX_HEAD_BYTES = 64 * 2**10
# A stream's chunks don't gather beyond this: the transport has to see them to say that the client is slow.
GATHER_AT_MOST_BYTES = 64 * 2**10
REASONS = {408: b"Request Timeout", 431: b"Request Header Fields Too Large", 503: b"Service Unavailable"}


class GuardedProtocol(HttpToolsProtocol):
    """``http=guarded(timeouts, max_connections)`` in uvicorn's configuration."""

    timeouts: ClassVar[TimeoutSettings]
    max_connections: ClassVar[int]
    _is_in_head = True
    """Also before a connection has said anything."""
    _has_begun = False
    _num_bare_bytes = 0
    """Since the request began, or since the last byte of its body."""
    _is_counted_anew = False
    _head_timer: asyncio.TimerHandle | None = None
    _reader_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - as uvicorn's
        super().connection_made(_GatheringTransport(transport, self.loop))
        if len(self.connections) > self.max_connections:
            self._refuse(overloaded("Too many connections are open.", retry_after_s=1.0))
        else:
            self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_head_timer()
        if self._reader_timer is not None:
            self._reader_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        was_in_head, self._is_counted_anew = self._is_in_head, False
        super().data_received(data)
        # The piece that a head or a part of the body begins in may hold what is before it, too: it counts from the next one on.
        if not self._is_counted_anew or (was_in_head and self._is_in_head):
            self._num_bare_bytes += len(data)
            if self._num_bare_bytes > MAX_HEAD_BYTES:
                self._end_bare_bytes()
        if self._is_answered and self._head_timer is None:
            self._watch_head()

    @property
    def _is_answered(self) -> bool:
        """Whether nobody waits for what comes: the rest of a request that has its answer, or nothing of a request at all."""
        return not self._is_in_head and self.cycle is not None and self.cycle.response_complete

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head, self._has_begun = True, True
        self._count_anew()
        self._watch_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_head:  # trailers are not headers
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._cancel_head_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._count_anew()
        super().on_body(body)

    def _count_anew(self) -> None:
        self._num_bare_bytes, self._is_counted_anew = 0, True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader_timer = self.loop.call_later(self.timeouts.send_s, self.transport.abort)

    def resume_writing(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None
        super().resume_writing()

    def _watch_head(self) -> None:
        self._cancel_head_timer()
        self._head_timer = self.loop.call_later(self.timeouts.head_s, self._end_slow_head)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_slow_head(self) -> None:
        if self._is_in_head and self._has_begun:
            self._refuse(slow_head(self.timeouts.head_s))
        else:
            # A proxy that opened it ahead of need would take words for the answer to its first request.
            self.transport.close()

    def _end_bare_bytes(self) -> None:
        if self._is_in_head:
            self._refuse(head_too_large(MAX_HEAD_BYTES))
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Answer outside of the application, which has not heard of this request."""
        if self.transport.is_closing():
            return
        body = error.body()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close"), *error.headers()]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        head = b"HTTP/1.1 %d %b\r\ncontent-length: %d\r\n%b\r\n"
        self.transport.write(head % (error.status, REASONS[error.status], len(body), lines) + body)
        self.transport.close()


def guarded(timeouts: TimeoutSettings, max_connections: int) -> type[GuardedProtocol]:
    """The protocol with these limits; uvicorn makes one of it for each connection."""
    return type("GuardedProtocol", (GuardedProtocol,), {"timeouts": timeouts, "max_connections": max_connections})


class _GatheringTransport(asyncio.Transport):
    """Holds what is written until the loop's next turn. What uvicorn uses of a transport, and nothing else."""

    __slots__ = ("_loop", "_num_bytes", "_parts", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []
        self._num_bytes = 0

    def write(self, data: Any) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)
        self._num_bytes += len(data)
        if self._num_bytes > GATHER_AT_MOST_BYTES:
            self._flush()

    def _flush(self) -> None:
        parts, self._parts, self._num_bytes = self._parts, [], 0
        if parts and not self._transport.is_closing():
            self._transport.writelines(parts)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        self._parts = []
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()
