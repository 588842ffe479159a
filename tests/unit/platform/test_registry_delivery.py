"""Records reach the tracking server although it goes away, and whoever records never waits for it."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from irlops.registry.delivery import Delivery, Record


class Server:
    """A tracking server at the other end: up or down, and with an opinion on some records."""

    def __init__(self) -> None:
        self.received: list[Record] = []
        self.requests = 0
        self.is_up = threading.Event()
        self.is_up.set()

    def send(self, batch: Sequence[Record]) -> None:
        self.requests += 1
        if not self.is_up.is_set():
            raise ConnectionError("connection refused")
        if any(record.get("key") == "bad" for record in batch):
            raise ValueError("Invalid parameter value")
        self.received += batch


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def deliver(server: Server, tmp_path: Path) -> Iterator[Callable[[], Delivery]]:
    opened: list[Delivery] = []

    def open_delivery() -> Delivery:
        opened.append(
            Delivery(
                server.send,
                lambda error: isinstance(error, ConnectionError),
                tmp_path / "unsent.jsonl",
                flush_every_s=0.01,
                first_retry_s=0.01,
                max_retry_s=0.02,
            )
        )
        return opened[-1]

    yield open_delivery
    for delivery in opened:
        delivery.close(timeout_s=30)


def metrics(*steps: int) -> list[Record]:
    return [{"kind": "metric", "key": "loss", "step": step} for step in steps]


def until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def test_records_arrive_in_order_and_in_few_requests(server: Server, deliver: Callable[[], Delivery]) -> None:
    delivery = deliver()
    delivery.put(metrics(*range(1000)))
    assert delivery.flush(30)
    assert [record["step"] for record in server.received] == list(range(1000))
    assert server.requests == 2  # 1000 records, at most 500 in a request


def test_an_outage_is_said_once_and_loses_nothing(
    server: Server, deliver: Callable[[], Delivery], caplog: pytest.LogCaptureFixture
) -> None:
    delivery = deliver()
    server.is_up.clear()
    for step in range(5):
        delivery.put(metrics(step))
    assert until(lambda: server.requests >= 3)
    server.is_up.set()
    assert delivery.flush(30)
    assert [record["step"] for record in server.received] == [0, 1, 2, 3, 4]
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 2
    assert said[0].startswith("The tracking server does not answer (connection refused). Training goes on")
    assert said[1].startswith("The tracking server answers again")


def test_putting_records_never_waits_for_the_server(server: Server, deliver: Callable[[], Delivery]) -> None:
    delivery = deliver()
    server.is_up.clear()
    started = time.monotonic()
    for step in range(1000):
        delivery.put(metrics(step))
    assert time.monotonic() - started < 8  # waiting for one try each would take 10 s at the least


def test_what_could_not_be_sent_waits_in_a_file_for_the_next_start(
    server: Server, deliver: Callable[[], Delivery], tmp_path: Path
) -> None:
    server.is_up.clear()
    first = deliver()
    first.put(metrics(1, 2))
    assert first.close(timeout_s=30) == 2
    assert len((tmp_path / "unsent.jsonl").read_text().splitlines()) == 2
    server.is_up.set()
    second = deliver()
    second.put(metrics(3))
    assert second.flush(30)
    assert [record["step"] for record in server.received] == [1, 2, 3]
    assert not (tmp_path / "unsent.jsonl").exists()


def test_a_refused_record_is_named_and_the_others_arrive(
    server: Server, deliver: Callable[[], Delivery], caplog: pytest.LogCaptureFixture
) -> None:
    delivery = deliver()
    delivery.put([*metrics(1), {"kind": "param", "key": "bad"}, *metrics(2)])
    assert delivery.flush(30)
    assert [record["step"] for record in server.received] == [1, 2]
    assert "refused the param bad: Invalid parameter value" in caplog.text


def test_a_damaged_file_of_unsent_records_does_not_stop_the_start(
    server: Server, deliver: Callable[[], Delivery], tmp_path: Path
) -> None:
    (tmp_path / "unsent.jsonl").write_text(json.dumps(metrics(1)[0])[:10])
    delivery = deliver()
    delivery.put(metrics(2))
    assert delivery.flush(30)
    assert [record["step"] for record in server.received] == [2]
