"""Records on their way to the tracking server, in a thread of their own, so that an outage never stops training.

put(record) -> buffer -> send in batches -> on an outage: say so once, try again ever more slowly
close()     -> what could not be sent in time goes to a file, and is sent when the run goes on
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]
"""Plain JSON with a ``kind``, so that it can be kept in a file: metric, param, tag, dataset, text or artifact."""

_log = logging.getLogger(__name__)

_MAX_BUFFERED = 500_000
"""Records kept during an outage (about 100 MiB); beyond it the oldest are dropped, as metrics.jsonl has them too."""

_MAX_BATCH = 500


class Delivery:
    """Sends records in the order they were put, in the background.

    Args:
        send: Sends a batch, or raises; may be called again with records that did arrive.
        is_outage: Whether an error of ``send`` may pass by itself. Others drop the record with a warning.
        unsent_file: Where records go that could not be sent before ``close`` gave up; read again at the start.
        flush_every_s: Records are gathered this long into one request.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Record]], None],
        is_outage: Callable[[Exception], bool],
        unsent_file: Path,
        *,
        flush_every_s: float = 2.0,
        first_retry_s: float = 1.0,
        max_retry_s: float = 30.0,
    ) -> None:
        self._send, self._is_outage, self._unsent_file = send, is_outage, unsent_file
        self._flush_every_s, self._first_retry_s, self._max_retry_s = flush_every_s, first_retry_s, max_retry_s
        self._buffer: deque[Record] = deque(_take_unsent(unsent_file))
        self._in_flight: list[Record] = []
        self._changed = threading.Condition()
        self._closing = False
        self._hurry = False
        self._in_outage = False
        self._thread = threading.Thread(target=self._run, name="mlflow-delivery", daemon=True)
        self._thread.start()

    def put(self, records: Iterable[Record]) -> None:
        """Hand records over; returns at once."""
        with self._changed:
            self._buffer.extend(records)
            self._drop_oldest()
            self._changed.notify()

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Wait until everything put so far was sent or refused; False when that took too long."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._hurry = True
            self._changed.notify()
            while (self._buffer or self._in_flight) and time.monotonic() < deadline:
                self._changed.wait(0.05)
            return not (self._buffer or self._in_flight)

    def close(self, timeout_s: float = 15.0) -> int:
        """Send what is left, at most ``timeout_s`` long; the number of records that went to the file instead."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        with self._changed:
            left = [*self._in_flight, *self._buffer]
            self._buffer.clear()
        if left:
            _keep_unsent(self._unsent_file, left)
            _log.warning(
                "%d records did not reach the tracking server; they wait in %s and are sent when the run goes on.",
                len(left),
                self._unsent_file,
            )
        return len(left)

    def _run(self) -> None:
        retry_s = self._first_retry_s
        while self._in_flight or self._take_batch():
            try:
                self._send_batch(self._in_flight)
            except Exception as error:
                self._note_outage(error)
                if self._pause(retry_s):
                    return
                retry_s = min(retry_s * 2, self._max_retry_s)
                continue
            self._sent()
            retry_s = self._first_retry_s

    def _take_batch(self) -> bool:
        """Put what to send next in flight; False when there is nothing more to come."""
        with self._changed:
            gather_until = time.monotonic() + self._flush_every_s
            while not self._closing and not (self._hurry and self._buffer):
                if not self._buffer:
                    self._changed.wait()
                    gather_until = time.monotonic() + self._flush_every_s
                    continue
                left_s = gather_until - time.monotonic()
                if left_s <= 0 or len(self._buffer) >= _MAX_BATCH:
                    break
                self._changed.wait(left_s)
            self._hurry = self._hurry and len(self._buffer) > _MAX_BATCH
            self._in_flight = [self._buffer.popleft() for _ in range(min(len(self._buffer), _MAX_BATCH))]
            return bool(self._in_flight)

    def _send_batch(self, batch: Sequence[Record]) -> None:
        try:
            self._send(batch)
        except Exception as error:
            if self._is_outage(error):
                raise
            if len(batch) == 1:
                _log.warning("The tracking server refused %s: %s", _shown(batch[0]), str(error)[:300])
                return
            for record in batch:  # find the one it refuses
                self._send_batch([record])

    def _sent(self) -> None:
        if self._in_outage:
            self._in_outage = False
            _log.warning("The tracking server answers again; nothing was lost.")
        with self._changed:
            self._in_flight = []
            self._changed.notify_all()

    def _note_outage(self, error: Exception) -> None:
        if not self._in_outage:
            self._in_outage = True
            _log.warning(
                "The tracking server does not answer (%s). Training goes on; records wait and are sent when it is "
                "back.",
                str(error).splitlines()[0][:300] if str(error) else type(error).__name__,
            )

    def _pause(self, seconds: float) -> bool:
        """Wait before the next try; True when the run is being closed, and one more try would only keep it waiting."""
        deadline = time.monotonic() + seconds
        with self._changed:
            was_closing = self._closing
            while not self._closing and time.monotonic() < deadline:
                self._changed.wait(deadline - time.monotonic())
            return was_closing

    def _drop_oldest(self) -> None:
        excess = len(self._buffer) - _MAX_BUFFERED
        for _ in range(excess):
            self._buffer.popleft()
        if excess > 0:
            _log.warning("The tracking server has been away for long: dropped the %d oldest records.", excess)


def _take_unsent(file: Path) -> list[Record]:
    """Records that an earlier process could not send."""
    try:
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError):
        return []
    file.unlink(missing_ok=True)
    return records


def _keep_unsent(file: Path, records: Sequence[Record]) -> None:
    try:
        with file.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(record) + "\n" for record in records)
    except OSError as error:
        _log.warning("They could not be kept in %s either (%s).", file, error)


def _shown(record: Record) -> str:
    return f"the {record['kind']} {record.get('key') or record.get('file') or record.get('path') or ''}".strip()
