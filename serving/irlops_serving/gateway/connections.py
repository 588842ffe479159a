"""HTTP/1.1 connections to one upstream: httptools' parser on asyncio's transports, and a pool of those that are idle.

    pool.send(head, body) -> Connection (the answer's head is there) -> read() … read() -> leave()

A passed-through request is little else than this, so there is no layer between (docs/adr/0012). What the gateway needs of a
client is here; redirects, cookies, proxies, compression and HTTP/2 are not.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from base64 import b64encode
from collections import deque
from collections.abc import Mapping
from typing import Any

import aiohappyeyeballs
import httptools
from yarl import URL

# Under the 5 s after which uvicorn (and so vLLM) closes an idle connection: reusing one it is closing loses a request.
KEEP_IDLE_CONNECTION_S = 3.0
ADDRESSES_ARE_FRESH_S = 10.0
# When a name has several addresses, the next is tried after this long beside the first (RFC 8305).
NEXT_ADDRESS_AFTER_S = 0.25
MAX_HEAD_BYTES = 64 * 2**10
# What a stream's reader has not taken yet; beyond it the server is made to wait.
MAX_UNREAD_BYTES = 256 * 2**10


class NotConnectedError(ConnectionError):
    """No connection was made: nothing was sent, so anything may be tried again."""


class ConnectionLostError(ConnectionError):
    """The connection ended, or what came was not HTTP, before the answer was whole."""


class Connection(asyncio.Protocol):
    """One connection; one request and its answer at a time. Made and kept by ``ConnectionPool``."""

    status: int
    headers: dict[bytes, bytes]
    """Of the answer; names in lower case, the last of several of one name."""
    is_complete: bool
    """Whether the answer has arrived to its last byte (it may not have been read)."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool, self._loop = pool, asyncio.get_running_loop()
        self._parser: Any = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._waiter: asyncio.Future[None] | None = None
        self._expect_nothing()

    def _expect_nothing(self) -> None:
        self.is_complete, self._has_head, self._is_expected = False, False, False
        self._error: Exception | None = None
        self._pieces: list[bytes] = []
        self._num_unread = self._num_head_bytes = 0
        self._is_paused = self._may_be_kept = False

    # --- for the pool and whoever asked -----------------------------------------------------------------------------

    async def exchange(self, head: bytes, body: bytes, limit_s: float, first_byte_s: float) -> None:
        """Send a request and wait for the answer's head.

        Args:
            head: request line and headers, up to and with the empty line.
            body: after it.
            limit_s: seconds for the whole answer, counted from now.
            first_byte_s: seconds for its head.

        Raises:
            ConnectionLostError: the connection ended before.
            TimeoutError: the head took too long.
        """
        self._expect_nothing()
        self._is_expected, self.headers = True, {}
        self._ends_at_s = self._loop.time() + limit_s
        self._transport.writelines((head, body))
        while not self._has_head:
            await self._wait(first_byte_s)

    async def read(self, limit_s: float) -> bytes:
        """What has arrived of the body, waiting for something at most ``limit_s``; empty at its end.

        Raises:
            ConnectionLostError: the connection ended before.
            TimeoutError: nothing came in time, or the whole answer's time is over.
        """
        while not self._pieces and not self.is_complete:
            await self._wait(limit_s)
        pieces, self._pieces, self._num_unread = self._pieces, [], 0
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def leave(self) -> None:
        """Give the connection back when its answer was whole, else end it: the server stops working on it."""
        is_clean = self.is_complete and self.is_open and not self._is_paused
        if is_clean and self._may_be_kept:
            self._expect_nothing()
            self._pool.keep(self)
        else:
            self._transport.abort()

    def end(self) -> None:
        """Close an idle connection."""
        self._transport.close()

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    async def _wait(self, limit_s: float) -> None:
        if self._error is not None:
            raise self._error
        ends_at_s = min(self._ends_at_s, self._loop.time() + limit_s)
        timer = self._loop.call_at(ends_at_s, self._fail, TimeoutError())
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
            timer.cancel()
        if self._error is not None:
            raise self._error

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self._error is None and not self.is_complete:
            self._error = error
        self._wake()

    # --- for the transport ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not self._is_expected or self.is_complete:
            # Nobody asked for it, so whatever it is, it must not become the next request's answer.
            self._transport.abort()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(ConnectionLostError(f"not an HTTP/1.1 answer: {error}"))
            self._transport.abort()
            return
        if not self._has_head:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self._fail(ConnectionLostError(f"an answer's head of more than {MAX_HEAD_BYTES} bytes"))
                self._transport.abort()
            return
        if self._num_unread > MAX_UNREAD_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)
        if not self._is_expected:
            return
        if exc is None and self._has_head and self._ends_with_connection():
            self.is_complete = True
        self._fail(ConnectionLostError(str(exc or "closed by the server")))

    def _ends_with_connection(self) -> bool:
        return b"content-length" not in self.headers and b"transfer-encoding" not in self.headers

    # --- for the parser ---------------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._has_head:
            self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        status: int = self._parser.get_status_code()
        if status < 200:
            self.headers = {}  # "100 Continue" and its like come before the answer
        elif not self.is_complete:
            self.status, self._has_head = status, True

    def on_body(self, body: bytes) -> None:
        if not self.is_complete:
            self._pieces.append(body)
            self._num_unread += len(body)

    def on_message_begin(self) -> None:
        if self.is_complete:
            # A second answer to one request: this connection can't be trusted with another.
            self._transport.abort()

    def on_message_complete(self) -> None:
        if self._has_head:
            self.is_complete = True
            # The parser knows it only in here; a moment later it has forgotten this message.
            self._may_be_kept = self._parser.should_keep_alive()


class ConnectionPool:
    """Connections to one server. There is no bound on their number: the gateway bounds requests."""

    def __init__(self, url: str, connect_s: float, tls: ssl.SSLContext | None, headers: Mapping[str, str]) -> None:
        self._base = URL(url)
        self._connect_s = connect_s
        self._tls = tls
        sent = {"host": self._base.host_port_subcomponent or "", **_credentials(self._base), **headers}
        self._headers = _lines(sent)
        self._beginnings: dict[tuple[str, str], bytes] = {}
        self._idle: deque[tuple[float, Connection]] = deque()
        self._open: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._looking_up = asyncio.Lock()
        self._addresses: list[Any] = []
        self._addresses_read_at_s = -ADDRESSES_ARE_FRESH_S

    async def send(
        self,
        method: str,
        path: str,
        body: bytes,
        limit_s: float,
        *,
        first_byte_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Connection:
        """Send a request; returns when the answer's head is there. Whoever gets the connection must ``leave`` it.

        Raises:
            NotConnectedError: nothing was sent.
            ConnectionLostError: sent, but no answer began.
            TimeoutError: the answer did not begin in time.
        """
        connection = self._take() or await self._connect()
        extra = _lines(headers) if headers else b""
        head = b"%b%bcontent-length: %d\r\n\r\n" % (self._beginning(method, path), extra, len(body))
        try:
            await connection.exchange(head, body, limit_s, first_byte_s or limit_s)
        except BaseException:
            connection.leave()
            raise
        return connection

    async def close(self) -> None:
        """End every connection, also those in use."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._open):
            connection.end()
        # Transports close in the loop's next turn.
        await asyncio.sleep(0)

    def keep(self, connection: Connection) -> None:
        """Take an idle connection back."""
        self._idle.append((time.monotonic(), connection))
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(KEEP_IDLE_CONNECTION_S, self._sweep)

    def forget(self, connection: Connection) -> None:
        """A connection has ended."""
        self._open.discard(connection)

    def _take(self) -> Connection | None:
        """The connection used last, so that those not needed any more grow old."""
        fresh_since_s = time.monotonic() - KEEP_IDLE_CONNECTION_S
        while self._idle:
            kept_at_s, connection = self._idle.pop()
            if connection.is_open and kept_at_s >= fresh_since_s:
                return connection
            connection.end()
        return None

    def _sweep(self) -> None:
        fresh_since_s = time.monotonic() - KEEP_IDLE_CONNECTION_S
        while self._idle and self._idle[0][0] <= fresh_since_s:
            self._idle.popleft()[1].end()
        loop = asyncio.get_running_loop()
        self._sweeper = loop.call_later(KEEP_IDLE_CONNECTION_S, self._sweep) if self._idle else None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_s):
                connected = await aiohappyeyeballs.start_connection(
                    await self._look_up(loop), happy_eyeballs_delay=NEXT_ADDRESS_AFTER_S, loop=loop
                )
                name = self._base.host if self._tls else None
                _, connection = await loop.create_connection(
                    lambda: Connection(self), sock=connected, ssl=self._tls, server_hostname=name
                )
        except (OSError, TimeoutError) as error:
            self._addresses_read_at_s = -ADDRESSES_ARE_FRESH_S
            raise NotConnectedError(f"{self._base.host_port_subcomponent}: {str(error) or 'timeout'}") from error
        self._open.add(connection)
        return connection

    async def _look_up(self, loop: asyncio.AbstractEventLoop) -> list[Any]:
        async with self._looking_up:
            if time.monotonic() - self._addresses_read_at_s > ADDRESSES_ARE_FRESH_S:
                self._addresses = await loop.getaddrinfo(self._base.host, self._base.port, type=socket.SOCK_STREAM)
                self._addresses_read_at_s = time.monotonic()
        return self._addresses

    def _beginning(self, method: str, path: str) -> bytes:
        known = self._beginnings.get((method, path))
        if known is None:
            target = URL(str(self._base).rstrip("/") + path).raw_path_qs
            known = f"{method} {target} HTTP/1.1\r\n".encode() + self._headers
            self._beginnings[method, path] = known
        return known


def _lines(headers: Mapping[str, str]) -> bytes:
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
        raise ValueError("a header's value has a line break in it; it would be read as another header")
    return lines.encode("latin-1")


def _credentials(url: URL) -> dict[str, str]:
    if url.user is None:
        return {}
    return {"authorization": "Basic " + b64encode(f"{url.user}:{url.password or ''}".encode()).decode()}
