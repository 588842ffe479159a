"""When to look: watches (kopf's), polls of the registry, and a resync; all of them only add names to one queue.

Handlers are of kopf's ``event`` kind: those write no annotation, no finalizer and no status of their own, and kopf's
restarts of watches are ours for nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import kopf

from irlops.cluster.api import (
    INFERENCESERVICE,
    PIPELINE,
    PYTORCHJOB,
    ApiMissingError,
    ApiUnavailableError,
    KubernetesApi,
    Resource,
)
from irlops.contracts.operator import PIPELINE_LABEL, OperatorSettings
from irlops.errors import PairError, RetryableError
from irlops.operator.metrics import OperatorMetrics
from irlops.operator.reconciler import Reconciler
from irlops.operator.registry import Registry
from irlops.operator.work import WorkQueue

_log = logging.getLogger(__name__)

KINDS_LOOK_S = 60.0
"""Between two looks for kinds that weren't there at the start."""
LIST_AGAIN_S = 5.0
NUDGES_WITHIN_S = 0.5
"""Calls that come this soon after each other make one poll."""
STUCK_S = 600.0
"""A look that takes longer than this is a reason to be restarted."""


@dataclass(frozen=True)
class Known:
    """What is remembered of one pipeline: enough to tell who serves, and whether an event is news."""

    generation: int
    uid: str
    created_at: str
    serves: bool
    has_pair: bool
    phase: str


class Controller:
    """Everything that runs while this process holds the Lease."""

    def __init__(
        self, api: KubernetesApi, registry: Registry, settings: OperatorSettings, metrics: OperatorMetrics
    ) -> None:
        self._api, self._registry, self._settings, self._metrics = api, registry, settings, metrics
        self.queue = WorkQueue()
        self.registry_moved = asyncio.Event()
        """Set by whoever has heard that an alias moved: the next poll is due."""
        self._known: dict[str, Known] = {}
        self._aliases: Mapping[str, int] | None = None
        self._looking_since: dict[str, float] = {}

    @property
    def is_stuck(self) -> bool:
        """A look hangs, although every call in it has a time-out."""
        now = time.monotonic()
        return any(now - since > STUCK_S for since in self._looking_since.values())

    def gateway_owner(self) -> str | None:
        """The one pipeline that serves through the gateway: who does already, else the oldest that asks for it."""
        asking = [(not one.has_pair, one.created_at, name) for name, one in self._known.items() if one.serves]
        return min(asking)[2] if asking else None

    async def run(self, reconciler: Reconciler, connection: kopf.ConnectionInfo, stop: asyncio.Event) -> None:
        """Until it is cancelled; sets ``stop`` when kopf was told to stop, as it takes the process's signals."""
        await self._list_pipelines()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._settings.workers):
                tasks.create_task(self._work(reconciler))
            tasks.create_task(self.poll_registry())
            tasks.create_task(self._resync())
            tasks.create_task(self._watch(connection, stop))

    async def _list_pipelines(self) -> None:
        """All of them before the first look: who serves through the gateway depends on every one."""
        while True:
            try:
                found = await self._api.list(PIPELINE, {})
            except (ApiMissingError, ApiUnavailableError) as error:
                hint = "Waiting for: helm install irlops-crds charts/irlops-crds" if error.status == 404 else ""
                _log.warning("%s %s", error, hint)
                await asyncio.sleep(LIST_AGAIN_S)
                continue
            for body in found:
                await self.seen_pipeline("ADDED", body)
            return

    async def seen_pipeline(self, kind: str | None, body: Mapping[str, Any]) -> None:
        """A watch told of a pipeline; our own status writes are no news."""
        name, metadata = body["metadata"]["name"], body["metadata"]
        owner = self.gateway_owner()
        if kind == "DELETED":
            self._known.pop(name, None)
            await self.queue.forget(name)
        else:
            before, status = self._known.get(name), body.get("status") or {}
            known = Known(
                metadata.get("generation", 1),
                metadata["uid"],
                metadata.get("creationTimestamp", ""),
                bool((body.get("spec") or {}).get("serving")),
                bool((status.get("pairs") or {}).get("lastGood")),
                status.get("phase", "Pending"),
            )
            self._known[name] = known
            if before is None or (before.generation, before.uid) != (known.generation, known.uid):
                await self.queue.add(name)
        self._metrics.pipelines(one.phase for one in self._known.values())
        following = self.gateway_owner()
        if following is not None and following != owner:
            await self.queue.add(following)

    async def seen_owned(self, body: Mapping[str, Any]) -> None:
        """A watch told of a job or a served half."""
        name = (body["metadata"].get("labels") or {}).get(PIPELINE_LABEL)
        if name in self._known:
            await self.queue.add(name)

    async def _work(self, reconciler: Reconciler) -> None:
        while True:
            name = await self.queue.take()
            self._looking_since[name] = time.monotonic()
            try:
                delay_s = await reconciler.look(name)
            except Exception:
                # A bug must not end the operator: the others' pipelines go on, and an alert tells of it.
                _log.exception("Looking at %s failed; it is looked at again.", name)
                self._metrics.error("bug")
                delay_s = self._settings.resync_s
            finally:
                self._looking_since.pop(name, None)
                await self.queue.done(name)
            if name in self._known and delay_s is not None:
                await self.queue.add(name, delay_s)

    async def poll_registry(self) -> None:
        """One question for all pipelines; only a moved alias makes work."""
        while True:
            try:
                aliases = await asyncio.to_thread(self._registry.aliases)
            except (RetryableError, PairError) as error:
                if self._aliases is not None:
                    _log.warning("%s; what serves goes on.", error)
                self._aliases = None
                self._metrics.registry_up.set(0)
            else:
                self._metrics.registry_up.set(1)
                owner = self.gateway_owner()
                if aliases != self._aliases and owner is not None:
                    await self.queue.add(owner)
                self._aliases = aliases
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.registry_moved.wait(), self._settings.registry_poll_s)
                await asyncio.sleep(NUDGES_WITHIN_S)  # both halves' aliases move, a call each
            self.registry_moved.clear()

    async def _resync(self) -> None:
        """Everything once in a while, spread out: a missed event costs minutes, never forever."""
        while True:
            await asyncio.sleep(self._settings.resync_s)
            for name in list(self._known):
                await self.queue.add(name, random.uniform(0, self._settings.resync_s))  # noqa: S311 - only spreads load

    async def _watch(self, connection: kopf.ConnectionInfo, stop: asyncio.Event) -> None:
        """kopf's watches. They can't be begun anew in one process (kopf ends every younger task with them), so a kind that
        appears later ends the process; its container is started again and watches that one, too."""
        missing = await self._missing_kinds()
        watching = asyncio.create_task(self._kopf(connection))
        appearing = asyncio.create_task(self._appearing(missing))
        try:
            await asyncio.wait({watching, appearing}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
            stop.set()
        finally:
            for task in (watching, appearing):
                task.cancel()
            await asyncio.gather(watching, appearing, return_exceptions=True)

    async def _missing_kinds(self) -> list[str]:
        missing = list[str]()
        for resource in (PYTORCHJOB, INFERENCESERVICE):
            try:
                if not await self._api.has_kind(resource):
                    missing.append(resource.kind)
            except ApiUnavailableError as error:
                _log.warning("%s", error)
        if missing:
            _log.warning("This cluster has no %s; they are looked for every minute.", " and no ".join(missing))
        return missing

    async def _appearing(self, missing: list[str]) -> None:
        while True:
            await asyncio.sleep(KINDS_LOOK_S)
            if missing and await self._missing_kinds() != missing:
                _log.info("A kind appeared that was missing (%s); the operator starts anew.", ", ".join(missing))
                return

    async def _kopf(self, connection: kopf.ConnectionInfo) -> None:
        await kopf.operator(
            registry=self._handlers(connection),
            settings=kopf_settings(),
            namespaces=[self._settings.namespace],
            standalone=True,
        )

    def _handlers(self, connection: kopf.ConnectionInfo) -> kopf.OperatorRegistry:
        handlers = kopf.OperatorRegistry()

        @kopf.on.login(registry=handlers)
        def _login(**arguments: Any) -> kopf.ConnectionInfo:
            # In a cluster the token is read anew: kopf logs in again when the old one is refused.
            return kopf.login_with_service_account(**arguments) or connection

        @kopf.on.event(*_selector(PIPELINE), registry=handlers)
        async def _pipeline(type: str | None, body: Mapping[str, Any], **_: Any) -> None:
            await self.seen_pipeline(type, body)

        async def _owned(body: Mapping[str, Any], **_: Any) -> None:
            await self.seen_owned(body)

        for resource in (PYTORCHJOB, INFERENCESERVICE):
            kopf.on.event(*_selector(resource), registry=handlers, labels={PIPELINE_LABEL: kopf.PRESENT})(_owned)
        return handlers


def _selector(resource: Resource) -> tuple[str, str, str]:
    group, _, version = resource.api_version.partition("/")
    return group, version, resource.plural


def kopf_settings() -> kopf.OperatorSettings:
    """Watches only: no peering, no events, no scanning of namespaces and CRDs, which the Role doesn't allow."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.watching.server_timeout = 300
    settings.watching.connect_timeout = 30
    settings.queueing.idle_timeout = 1
    return settings
