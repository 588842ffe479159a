"""uvicorn's protocol, with everything that one turn of the loop has to say on a connection sent in one write.

uvicorn writes a response's head and its body apart, and uvloop hands each to the kernel at once. The second system call and
the second packet cost about as much as checking the request does.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# A stream's chunks don't gather beyond this: the transport has to see them to say that the client is slow.
GATHER_AT_MOST_BYTES = 64 * 2**10


class OneWriteProtocol(HttpToolsProtocol):
    """``http=OneWriteProtocol`` in uvicorn's configuration."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - as uvicorn's
        super().connection_made(_GatheringTransport(transport, self.loop))


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

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()
