"""The process around the application: uvloop, one worker, TLS, and an end that drops no request."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
import uvloop

from irlops.errors import ConfigError
from irlops_serving.gateway.app import Gateway
from irlops_serving.gateway.certificate import ServedCertificate
from irlops_serving.gateway.cors import with_cors
from irlops_serving.gateway.logs import configure_logs, logger
from irlops_serving.gateway.protocol import guarded
from irlops_serving.gateway.settings import CONFIG_FILE_VARIABLE, GatewaySettings, load_settings

# Longer than the load balancers' usual 60 s: they, not we, close idle connections first.
KEEP_ALIVE_S = 75
BACKLOG = 4096
# Requests make hardly any cycles; Python's 700 would look for them on every other one.
GARBAGE_BEFORE_COLLECTION = 20_000


class DrainingServer(uvicorn.Server):
    """On the first signal: not ready any more, wait for load balancers, stop accepting, finish what runs."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while serving. Unlike uvicorn, don't end by the signal: a drained server has ended well."""
        handlers = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        # The signal an operator sends to have files read again; the watcher sees the same within a second anyway.
        handlers[signal.SIGHUP] = signal.signal(signal.SIGHUP, self.handle_reload)
        try:
            yield
        finally:
            for sig, handler in handlers.items():
                signal.signal(sig, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept, then say so."""
        await super().startup(sockets)
        settings = self._gateway.settings
        if self.config.ssl is not None and settings.tls_cert_file and settings.tls_key_file:
            files = settings.tls_cert_file, settings.tls_key_file
            self._gateway.certificate = ServedCertificate(self.config.ssl, *files, self._gateway.metrics)
        for listening in sockets or ():
            host, port = listening.getsockname()[:2]
            url = f"{'https' if settings.tls_cert_file else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
            logger.info("listening", url=url, pair=self._gateway.pairs.current.versions.model_dump())

    def handle_reload(self, _: int, __: FrameType | None) -> None:
        """Look at the files soon, outside of the signal handler."""
        asyncio.get_running_loop().call_soon_threadsafe(self._gateway.reload_now)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; a second signal ends at once."""
        if self._gateway.draining:
            super().handle_exit(sig, frame)
            return
        self._gateway.draining = True
        # Nothing else in here: the signal may have come while a line was being logged, and its lock be held below us.
        asyncio.get_running_loop().call_soon_threadsafe(self._drain, sig, frame)

    def _drain(self, sig: int, frame: FrameType | None) -> None:
        logger.info("draining", signal=signal.Signals(sig).name)
        delay_s = self._gateway.settings.timeouts.drain_delay_s
        asyncio.get_running_loop().call_later(delay_s, super().handle_exit, sig, frame)


def serve(config_file: Path | None, overrides: dict[str, Any]) -> int:
    """Serve until a signal; returns the exit code.

    Raises:
        ConfigError: settings that are wrong, or a port that is taken.
    """
    named = os.environ.get(CONFIG_FILE_VARIABLE)
    path = config_file or (Path(named) if named else None)
    settings = load_settings(path, **overrides)
    configure_logs(settings.log_level)
    gateway = Gateway(settings, path)
    listening = listen(settings.host, settings.port)
    server = DrainingServer(server_config(gateway, settings), gateway)
    settle_memory()
    uvloop.run(server.serve(sockets=[listening]))
    return 0 if server.started else 1


def settle_memory() -> None:
    """Leave what was imported out of garbage collection: walking it again and again costs requests a tenth."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_BEFORE_COLLECTION)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket.

    Raises:
        ConfigError: the port is taken, or the address isn't ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"Can't listen on {host}:{port}: {error.strerror}. Choose another --port (0 picks a free one) or --host."
        ) from error
    return listening


def server_config(gateway: Gateway, settings: GatewaySettings) -> uvicorn.Config:
    """What uvicorn is told."""
    return uvicorn.Config(
        with_cors(gateway, settings.cors_allow_origins),
        loop="uvloop",
        http=guarded(settings.timeouts, settings.limits.max_connections),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, int(settings.timeouts.drain_s)),
        backlog=BACKLOG,
        ssl_certfile=settings.tls_cert_file,
        ssl_keyfile=settings.tls_key_file,
    )
