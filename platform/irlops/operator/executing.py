"""Doing what was decided: objects first, the status that tells of them last."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

from irlops.cluster.api import PIPELINE, RESOURCES, ApiUnavailableError, KubernetesApi
from irlops.operator.names import digest_of
from irlops.operator.observed import Action, Apply, Decision, Delete, Merge, MoveAlias, Tell
from irlops.operator.registry import Registry

REPORTER = "irlops-operator"
_KEYED = {"conditions": "type", "gates": "metric"}
"""Lists of the status that server-side apply merges by a key."""


class Mover(Protocol):
    """Runs a registry call that blocks."""

    async def __call__(self, registry: Registry, action: MoveAlias) -> None: ...


async def move_in_thread(registry: Registry, action: MoveAlias) -> None:
    """MLflow's client blocks."""
    await asyncio.to_thread(registry.move_alias, action.alias, int(action.policy_version), is_return=action.is_return)


async def execute(
    decision: Decision,
    pipeline: Mapping[str, Any],
    api: KubernetesApi,
    registry: Registry,
    *,
    now: datetime,
    move: Mover = move_in_thread,
) -> bool:
    """Every action in order, then the status if it differs; whether it was written.

    Raises:
        ApiUnavailableError, ApiRefusedError: of the Kubernetes API; what came before stays done, and is found next time.
        UnavailableError, PairError: of the registry.
    """
    for action in decision.actions:
        await _do(action, pipeline, api, registry, now=now, move=move)
    return await write_status(decision.status, pipeline, api)


async def write_status(status: Mapping[str, Any], pipeline: Mapping[str, Any], api: KubernetesApi) -> bool:
    """Replace the status, unless it says the same already."""
    if _in_order(status) == _in_order(pipeline.get("status") or {}):
        return False
    metadata = pipeline["metadata"]
    body = {
        "apiVersion": PIPELINE.api_version,
        "kind": PIPELINE.kind,
        # With the version that was looked at: a spec that changed meanwhile is looked at first.
        "metadata": {"name": metadata["name"], "resourceVersion": metadata["resourceVersion"]},
        "status": dict(status),
    }
    await api.apply_status(body)
    return True


def _in_order(status: Mapping[str, Any]) -> dict[str, Any]:
    """The order of lists that are merged by a key is the API server's: an order of its own must not be written for ever."""
    ordered = {name: sorted(status[name], key=lambda each: each[key]) for name, key in _KEYED.items() if name in status}
    return {**status, **ordered}


async def _do(
    action: Action, pipeline: Mapping[str, Any], api: KubernetesApi, registry: Registry, *, now: datetime, move: Mover
) -> None:
    match action:
        case Apply(body):
            await api.apply(dict(body))
        case Merge(kind, name, patch):
            await api.merge(RESOURCES[kind], name, dict(patch))
        case Delete(kind, name):
            await api.delete(RESOURCES[kind], name)
        case MoveAlias():
            await move(registry, action)
        case Tell():
            await _tell(action, pipeline, api, now)


async def _tell(action: Tell, pipeline: Mapping[str, Any], api: KubernetesApi, now: datetime) -> None:
    """An Event whose name follows from what it says: told again after a restart, it is the same one."""
    metadata = pipeline["metadata"]
    said = [metadata.get("uid"), metadata.get("generation"), action.reason, action.message]
    at = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{digest_of(said, 16)}", "namespace": api.namespace},
        "involvedObject": {
            "apiVersion": PIPELINE.api_version,
            "kind": PIPELINE.kind,
            "name": metadata["name"],
            "namespace": api.namespace,
            "uid": metadata.get("uid"),
        },
        "type": action.type,
        "reason": action.reason,
        "message": action.message[:1024],
        "source": {"component": REPORTER},
        "reportingComponent": REPORTER,
        "reportingInstance": REPORTER,
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }
    try:
        await api.create(event)
    except ApiUnavailableError as error:
        if error.status != 409:  # it was told before
            raise
