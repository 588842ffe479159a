"""Structured logs: one JSON object a line on standard error, with request ids; never a key, a prompt or an answer."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any, BinaryIO, cast

import orjson
import structlog

logger: structlog.stdlib.BoundLogger = structlog.get_logger("irlops.gateway")
# Named here so that no call site can log a credential by carelessness.
SECRET_FIELDS = frozenset({"authorization", "api_key", "key", "token", "cookie", "password", "secret"})


def configure_logs(level: str) -> None:
    """Set the process's logging up: ours, and the server's and libraries' through the same format."""
    structlog.configure(
        processors=[_as_json],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.BytesLoggerFactory(cast(BinaryIO, _StandardError())),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries are heard from warnings up: their debug output holds request headers.
    root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))


def log_request(fields: dict[str, Any]) -> None:
    """Write a line of the access log: what ``logger.info("request", **fields)`` writes, without structlog on the way.

    It is the one line that every request pays for. The caller decides by the level whether there is one.
    """
    fields["event"] = "request"
    line = _as_json(None, "info", fields) + b"\n"
    sys.stderr.buffer.write(line)
    sys.stderr.buffer.flush()


def _as_json(_: object, level: str, event: structlog.typing.EventDict) -> bytes:
    """The last and only of structlog's processors: each of them is a call for every line."""
    for name in SECRET_FIELDS & event.keys():
        event[name] = "***"
    event["level"], event["timestamp"] = level, datetime.now(UTC)
    if "exc_info" in event:
        event = structlog.processors.format_exc_info(None, level, event)
    return orjson.dumps(event, default=repr, option=orjson.OPT_UTC_Z)


class _StandardError:
    """Whatever standard error is at the moment: loggers live as long as the process, a replaced stream may be closed."""

    def write(self, line: bytes) -> int:
        return sys.stderr.buffer.write(line)

    def flush(self) -> None:
        sys.stderr.buffer.flush()


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        event = {"event": record.getMessage(), "level": record.levelname.lower(), "logger": record.name}
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(event).decode()
