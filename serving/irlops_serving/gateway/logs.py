"""Structured logs: one JSON object a line on standard error, with request ids; never a key, a prompt or an answer."""

from __future__ import annotations

import logging
import sys
from typing import BinaryIO, cast

import orjson
import structlog

logger: structlog.stdlib.BoundLogger = structlog.get_logger("irlops.gateway")
# Named here so that no call site can log a credential by carelessness.
SECRET_FIELDS = frozenset({"authorization", "api_key", "key", "token", "cookie", "password", "secret"})


def configure_logs(level: str) -> None:
    """Set the process's logging up: ours, and the server's and libraries' through the same format."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            mask_secrets,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_dump),
        ],
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


def mask_secrets(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Replace the values of fields that may hold a credential."""
    for name in SECRET_FIELDS & event.keys():
        event[name] = "***"
    return event


def _dump(value: object, **_: object) -> bytes:
    return orjson.dumps(value, default=repr)


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
