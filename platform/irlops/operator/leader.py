"""One writer: a Lease that its holder renews and everybody else watches.

kopf's peering is no leader election (two operators may act at once); a Lease is, as long as the holder stops before anyone
else may start: it gives up when five sixths of the duration have passed without a successful renewal. It renews twice in a
duration, which is four writes a minute at 30 s, and every two seconds after a failure.
Source: the algorithm of client-go's ``tools/leaderelection``: time is measured locally since the record last changed, so
clocks don't have to agree.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from irlops.cluster.api import LEASE, ApiRefusedError, ApiUnavailableError, KubernetesApi

_log = logging.getLogger(__name__)

RENEWALS = 2
"""In one duration."""
GIVE_UP_PART = 5 / 6
RETRY_S = 2.0


class Leader:
    """One candidate for the Lease ``name``."""

    def __init__(
        self,
        api: KubernetesApi,
        *,
        name: str,
        identity: str,
        duration_s: int,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api, self._name, self._identity, self._duration_s = api, name, identity, duration_s
        self._clock, self._now = clock, now
        self._seen: tuple[str, float] | None = None
        """(resourceVersion, when it was first seen) of another's record."""
        self._renewed_at: float | None = None
        self._is_troubled = False

    @property
    def next_try_s(self) -> float:
        """Until ``try_to_lead`` should be called again."""
        if self._is_troubled:
            return min(RETRY_S, self._duration_s / RENEWALS)
        return self._duration_s / RENEWALS

    @property
    def is_leader(self) -> bool:
        """False early enough that nobody else has begun: a sixth of the duration is the margin."""
        if self._renewed_at is None:
            return False
        return self._clock() - self._renewed_at < self._duration_s * GIVE_UP_PART

    async def try_to_lead(self) -> bool:
        """Take or renew the Lease, if that is possible now."""
        asked_at = self._clock()
        try:
            lease = await self._api.get(LEASE, self._name)
            if lease is None:
                await self._api.create(self._record(None))
            elif self._may_take(lease):
                await self._api.replace(self._record(lease))
            else:
                self._renewed_at, self._is_troubled = None, False
                return False
        except (ApiUnavailableError, ApiRefusedError) as error:
            _log.warning("The Lease %s could not be taken or renewed: %s", self._name, error)
            self._is_troubled = True
            return self.is_leader
        self._renewed_at, self._is_troubled = asked_at, False
        return True

    async def step_down(self) -> None:
        """Let the next one begin at once, instead of after the duration."""
        if self._renewed_at is None:
            return
        self._renewed_at = None
        try:
            lease = await self._api.get(LEASE, self._name)
            if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
                await self._api.replace({**lease, "spec": {**lease["spec"], "holderIdentity": ""}})
        except (ApiUnavailableError, ApiRefusedError) as error:
            _log.info("The Lease %s runs out by itself: %s", self._name, error)

    def _may_take(self, lease: dict[str, Any]) -> bool:
        holder = lease.get("spec", {}).get("holderIdentity")
        if not holder or holder == self._identity:
            return True
        version = lease["metadata"]["resourceVersion"]
        if self._seen is None or self._seen[0] != version:
            self._seen = (version, self._clock())
        duration_s = lease["spec"].get("leaseDurationSeconds") or self._duration_s
        return self._clock() - self._seen[1] > duration_s

    def _record(self, before: dict[str, Any] | None) -> dict[str, Any]:
        at = self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = dict((before or {}).get("spec", {}))
        if spec.get("holderIdentity") != self._identity:
            spec["leaseTransitions"] = int(spec.get("leaseTransitions", -1)) + 1
            spec["acquireTime"] = at
        spec |= {"holderIdentity": self._identity, "leaseDurationSeconds": self._duration_s, "renewTime": at}
        metadata = before["metadata"] if before else {"name": self._name}
        return {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata, "spec": spec}
