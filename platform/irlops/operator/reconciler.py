"""One look at one pipeline, from the API server to the API server: observe, decide, execute; and what to do when that fails."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from irlops.cluster.api import PIPELINE, ApiRefusedError, ApiUnavailableError, KubernetesApi
from irlops.contracts.operator import OperatorSettings
from irlops.errors import PermanentError, UnavailableError
from irlops.operator.conditions import READY, condition, replaced
from irlops.operator.executing import Mover, execute, move_in_thread, write_status
from irlops.operator.metrics import OperatorMetrics
from irlops.operator.observing import Eyes
from irlops.operator.reconcile import dumped, read_status, reconcile
from irlops.operator.registry import Registry

_log = logging.getLogger(__name__)

FIRST_RETRY_S = 1.0
MAX_RETRY_S = 300.0
REFUSED_RETRY_S = 60.0
"""What the API server refused is asked for again this late: a CRD or a right may have come."""


@dataclass
class Reconciler:
    """Looks at pipelines one by one; keeps nothing of them but how often in a row each failed."""

    api: KubernetesApi
    eyes: Eyes
    registry: Registry
    settings: OperatorSettings
    metrics: OperatorMetrics
    owner: Callable[[], str | None]
    """Which pipeline serves through the gateway."""
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    move: Mover = move_in_thread
    _failures: dict[str, int] = field(default_factory=dict)

    async def look(self, name: str) -> float | None:
        """One look at the pipeline ``name``; seconds until the next one at the latest, None for the resync."""
        with self.metrics.timed():
            try:
                delay_s = await self._look(name)
            except ApiUnavailableError as error:
                return self._later(name, error, f"api_{error.status or 'unreachable'}", error.retry_after_s)
        self._failures.pop(name, None)
        return delay_s

    async def _look(self, name: str) -> float | None:
        pipeline = await self.api.get(PIPELINE, name)
        if pipeline is None or pipeline["metadata"].get("deletionTimestamp"):
            return None  # owner references do the rest
        now = self.now()
        try:
            observed = await self.eyes.observe(pipeline, now=now, gateway_owner=self.owner())
            decision = reconcile(observed, self.settings)
            _log.debug("%s: %s", name, decision)
            written = await execute(decision, pipeline, self.api, self.registry, now=now, move=self.move)
        except UnavailableError as error:
            self.metrics.error("registry")
            await self._say(pipeline, "RegistryUnreachable", f"{error}. Nothing was lost; it is asked again.")
            return self.settings.registry_poll_s
        except ApiRefusedError as error:
            self.metrics.error("refused")
            await self._say(pipeline, _reason(error), _advice(error))
            return REFUSED_RETRY_S
        except PermanentError as error:
            self.metrics.error("permanent")
            await self._say(pipeline, "Refused", str(error))
            return self.settings.resync_s
        if written:
            self.metrics.decided(read_status(pipeline), decision.status)
        return decision.look_again_s

    def _later(self, name: str, error: Exception, reason: str, at_least_s: float) -> float:
        self.metrics.error(reason)
        failures = self._failures[name] = self._failures.get(name, 0) + 1
        delay_s = max(min(FIRST_RETRY_S * 2 ** (failures - 1), MAX_RETRY_S), at_least_s)
        _log.warning("%s is looked at again in %.0f s: %s", name, delay_s, error)
        return delay_s

    async def _say(self, pipeline: dict[str, Any], reason: str, message: str) -> None:
        """A condition about what stopped this look; everything else in the status stays."""
        _log.warning("%s: %s", pipeline["metadata"]["name"], message)
        status = read_status(pipeline)
        generation = pipeline["metadata"].get("generation", 1)
        said = condition(status, READY, False, reason, message, now=self.now(), generation=generation)
        kept = status.model_copy(update={"message": said.message, "conditions": replaced(status.conditions, said)})
        await write_status(dumped(kept), pipeline, self.api)


_ADVICE = {
    "Forbidden": "The operator's Role or a policy of the namespace forbids it; correct that.",
    "QuotaExceeded": "Raise the namespace's ResourceQuota, or ask for less in spec.jobTemplate or spec.serving.",
    "KindMissing": "A kind or object that it needs is not there; `irlops doctor` names what a cluster lacks.",
    "Rejected": "It is found invalid: correct the part of the spec that is named.",
}


def _reason(error: ApiRefusedError) -> str:
    """Webhooks and quotas answer 403 as well, and each asks for another step."""
    if "exceeded quota" in str(error):
        return "QuotaExceeded"
    if "admission webhook" in str(error):
        return "Rejected"
    return {403: "Forbidden", 404: "KindMissing"}.get(error.status, "Rejected")


def _advice(error: ApiRefusedError) -> str:
    return f"{error} {_ADVICE[_reason(error)]} It is tried again every minute."
