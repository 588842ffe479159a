"""Watches the key file, the certificate, the config file and the two servers while the gateway runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from irlops.errors import ConfigError, MissingDependencyError
from irlops_serving.gateway.logs import logger
from irlops_serving.gateway.metrics import labelled
from irlops_serving.gateway.settings import GatewaySettings, load_settings

if TYPE_CHECKING:
    from irlops_serving.gateway.app import Gateway


@contextmanager
def _going_on(doing: str) -> Iterator[None]:
    """Log what nobody expected and go on: with a watcher that has ended, a revoked key would be valid for ever."""
    try:
        yield
    except Exception:
        logger.exception("watcher_failed", doing=doing)


class Reloader:
    """Background tasks of one gateway. A config that can't be used is logged and leaves everything as it is."""

    def __init__(self, gateway: Gateway, config_file: Path | None) -> None:
        self._gateway, self._file = gateway, config_file
        self._seen = self._content()
        self._tasks: list[asyncio.Task[None]] = []
        self._swap: asyncio.Task[None] | None = None
        self._wanted = gateway.settings.pair

    def start(self) -> None:
        """Begin to watch."""
        self._tasks = [asyncio.create_task(self._watch_files()), asyncio.create_task(self._watch_servers())]

    async def stop(self) -> None:
        """End every task."""
        tasks = [*self._tasks, *([self._swap] if self._swap else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _watch_files(self) -> None:
        while True:
            await asyncio.sleep(self._gateway.settings.reload_interval_s)
            with _going_on("looking at files"):
                self.look()

    async def _watch_servers(self) -> None:
        while True:
            await asyncio.sleep(self._gateway.settings.probe_interval_s)
            with _going_on("probing servers"):
                await self._gateway.pairs.current.probe()
            self._gateway.metrics.tasks.set(len(asyncio.all_tasks()))

    def look(self) -> None:
        """Look at every file now (also on SIGHUP)."""
        self._gateway.reload_keys()
        if self._gateway.certificate is not None:
            self._gateway.certificate.reload_if_changed()
        self.reload_pair_if_changed()

    def reload_pair_if_changed(self) -> None:
        """Read the config file again when its content changed, and begin to swap when its pair did."""
        content = self._content()
        if content is None or content == self._seen:
            return
        self._seen = content
        try:
            settings = load_settings(self._file, host=self._gateway.settings.host, port=self._gateway.settings.port)
            self._apply(settings)
        except (ConfigError, MissingDependencyError) as error:
            labelled(self._gateway.metrics.reloads, "pair", "failed").inc()
            logger.error("config_not_reloaded", error=str(error))

    def _apply(self, settings: GatewaySettings) -> None:
        if settings.model_dump(exclude={"pair"}) != self._gateway.settings.model_dump(exclude={"pair"}):
            logger.warning(
                "restart_needed", reason="only the pair section, keys and certificate are reloaded while running"
            )
        if settings.pair == self._wanted:
            return
        following = self._gateway.new_backends(settings)
        self._wanted = settings.pair
        logger.info("pair_swap_begins", **following.versions.model_dump())
        if self._swap is not None:
            self._swap.cancel()
        self._swap = asyncio.create_task(self._gateway.pairs.swap(following))

    def _content(self) -> bytes | None:
        if self._file is None:
            return None
        try:
            return self._file.read_bytes()
        except OSError:
            return None  # a ConfigMap is being exchanged: look again next time
