"""The gateway's own HTTP client, before a server that says exactly what a test tells it to."""

import asyncio
import ssl
from contextlib import asynccontextmanager

import pytest
import uvloop

from irlops_serving.gateway import connections
from irlops_serving.gateway.connections import ConnectionLostError, ConnectionPool, NotConnectedError
from support.certificates import self_signed
from support.gateway_rig import eventually

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Script:
    """A server that answers each request with the next of ``answers``; None in an answer ends the connection."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests, self.num_connections, self.num_ended = [], 0, 0
        self.written = []

    async def serve(self, reader, writer):
        self.num_connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append((head, await reader.readexactly(length)))
                for part in self.answers.pop(0):
                    if part is None:
                        return
                    writer.write(part)
                    await writer.drain()
                    self.written.append(len(part))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.num_ended += 1
            writer.close()


@asynccontextmanager
async def pool_before(*answers, headers=None, connect_s=60.0):
    script = Script(*answers)
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/base"
    pool = ConnectionPool(url, connect_s, None, headers or {})
    try:
        yield pool, script
    finally:
        await pool.close()
        server.close()
        await asyncio.sleep(0.01)


async def read_all(pool, limit_s=60.0):
    connection = await pool.send("POST", "/v1/x", b"{}", limit_s)
    try:
        parts = []
        while part := await connection.read(limit_s):
            parts.append(part)
        return connection.status, b"".join(parts)
    finally:
        connection.leave()


async def test_requests_in_a_row_share_one_connection():
    async with pool_before([OK], [OK], headers={"authorization": "Bearer k"}) as (pool, script):
        assert [await read_all(pool), await read_all(pool)] == [(200, b"ok"), (200, b"ok")]
    assert script.num_connections == 1
    head, body = script.requests[1]
    assert head.startswith(b"POST /base/v1/x HTTP/1.1\r\nhost: 127.0.0.1:")
    assert b"\r\nauthorization: Bearer k\r\n" in head
    assert body == b"{}"


async def test_requests_at_the_same_time_have_a_connection_each():
    async with pool_before([OK], [OK], [OK]) as (pool, script):
        await asyncio.gather(*(read_all(pool) for _ in range(3)))
    assert script.num_connections == 3


@pytest.mark.parametrize(
    ("parts", "body"),
    [
        (
            [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", b"2\r\nde\r\n0\r\nx: y\r\n\r\n"],
            b"abcde",
        ),
        ([b"HTTP/1.1 200 OK\r\n\r\nab", b"cde", None], b"abcde"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", OK], b"ok"),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"], b""),
        ([OK[:9], OK[9:30], OK[30:]], b"ok"),
    ],
    ids=["chunks with a trailer", "until the connection ends", "after 100 and 103", "empty", "in pieces"],
)
async def test_an_answer_is_read_to_its_end(parts, body):
    async with pool_before(parts) as (pool, _):
        assert await read_all(pool) == (200, body)


@pytest.mark.parametrize(
    "first",
    [
        [OK.replace(b"content-length", b"connection: close\r\ncontent-length")],
        [OK + OK],
        [OK, b"HTTP/1.1 408 Request Timeout\r\n\r\n"],
    ],
    ids=["it says close", "two answers to one request", "words that nobody asked for"],
)
async def test_a_connection_that_may_say_something_else_is_not_used_again(first):
    async with pool_before(first, [OK.replace(b"ok", b"2.")]) as (pool, script):
        assert await read_all(pool) == (200, b"ok")
        await eventually(lambda: script.num_ended == 1)
        assert await read_all(pool) == (200, b"2.")
        assert script.num_connections == 2


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([None], "closed by the server"),
        ([OK[:-1], None], "closed by the server"),
        ([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab", None], "closed by the server"),
        ([b"SSH-2.0-OpenSSH\r\n"], "not an HTTP/1.1 answer"),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok"], "not an HTTP/1.1 answer"),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"], "not an HTTP/1.1"),
        ([b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n", b"x"], "not an HTTP/1.1"),
        ([b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 70_000], "head of more than 65536 bytes"),
    ],
    ids=[
        "nothing",
        "a byte short",
        "half a chunk",
        "SSH",
        "two lengths",
        "length and chunks",
        "upgrade",
        "endless head",
    ],
)
async def test_what_is_no_whole_http_answer_is_a_lost_connection(parts, why):
    async with pool_before(parts) as (pool, _):
        with pytest.raises(ConnectionLostError, match=why):
            await read_all(pool)


async def test_an_answer_that_does_not_begin_or_does_not_end_is_a_timeout():
    endless = [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", *[b"1\r\na\r\n"] * 3]
    async with pool_before([], endless) as (pool, _):
        with pytest.raises(TimeoutError):
            await pool.send("POST", "/v1/x", b"{}", 60.0, first_byte_s=0.05)
        # The whole answer's time runs out although each read may wait longer.
        with pytest.raises(TimeoutError):
            await read_all(pool, limit_s=0.1)


async def test_leaving_an_answer_half_read_ends_its_connection():
    async with pool_before([OK[:-1]]) as (pool, script):
        (await pool.send("POST", "/v1/x", b"{}", 60.0)).leave()
        await eventually(lambda: script.num_ended == 1)
        assert len(script.requests) == 1


async def test_leaving_while_waiting_for_the_head_ends_the_connection():
    async with pool_before([]) as (pool, script):
        task = asyncio.create_task(pool.send("POST", "/v1/x", b"{}", 60.0))
        await eventually(lambda: len(script.requests) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually(lambda: script.num_ended == 1)


async def test_a_reader_that_is_slow_makes_the_server_wait():
    piece = b"x" * 2**20
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (64 * len(piece))
    async with pool_before([head, *[piece] * 64]) as (pool, script):
        connection = await pool.send("POST", "/v1/x", b"{}", 60.0)
        await asyncio.sleep(0.2)
        # Sockets hold a few MiB; a client that read on would have taken all 64.
        assert len(script.written) < 32
        size = 0
        while data := await connection.read(60.0):
            size += len(data)
        connection.leave()
    assert size == 64 * len(piece)


async def test_an_idle_connection_is_closed_before_the_server_does(monkeypatch):
    monkeypatch.setattr(connections, "KEEP_IDLE_CONNECTION_S", 0.05)
    async with pool_before([OK]) as (pool, script):
        await read_all(pool)
        assert script.num_ended == 0
        await eventually(lambda: script.num_ended == 1)


async def test_a_server_that_is_away_was_sent_nothing():
    async with pool_before() as (pool, _):
        pass
    with pytest.raises(NotConnectedError):
        await read_all(pool)


async def test_a_header_with_a_line_break_is_never_sent():
    async with pool_before([OK]) as (pool, script):
        with pytest.raises(ValueError, match="line break"):
            await pool.send("POST", "/v1/x", b"{}", 60.0, headers={"x-request-id": "a\r\nevil: 1"})
    assert script.requests == []


async def test_a_name_and_password_in_the_address_are_sent_as_basic_credentials():
    script = Script([OK])
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    pool = ConnectionPool(f"http://ana:pw@127.0.0.1:{server.sockets[0].getsockname()[1]}", 60.0, None, {})
    await read_all(pool)
    await pool.close()
    server.close()
    # base64 of "ana:pw"
    assert b"\r\nauthorization: Basic YW5hOnB3\r\n" in script.requests[0][0]


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_server_with_tls_is_spoken_to_only_when_its_certificate_is_known(tmp_path, loop_factory):
    certificate, key = self_signed(tmp_path)

    async def ask(trusting):
        served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        served.load_cert_chain(certificate, key)
        script = Script([OK], [OK])
        server = await asyncio.start_server(script.serve, "127.0.0.1", 0, ssl=served)
        pool = ConnectionPool(f"https://localhost:{server.sockets[0].getsockname()[1]}", 60.0, trusting, {})
        try:
            return [await read_all(pool), await read_all(pool)], script.num_connections
        finally:
            await pool.close()
            server.close()
            await asyncio.sleep(0.05)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(ask(ssl.create_default_context(cafile=certificate))) == ([(200, b"ok")] * 2, 1)
        with pytest.raises(NotConnectedError, match="certificate verify failed"):
            runner.run(ask(ssl.create_default_context()))
