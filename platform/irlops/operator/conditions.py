"""Conditions that keep their transition times, and times as Kubernetes writes them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from irlops.contracts.pipeline_status import Condition, PipelineStatus

READY = "Ready"
"""True: this spec's run is done, and its outcome stands."""
SERVING = "Serving"
"""True: some pair answers, whatever happens to the run."""
ROLLED_OUT = "RolledOut"
"""There while a pair is on its way: Unknown until both halves are ready, True while it proves itself, False when taken back."""
REGISTRY = "RegistryReachable"

MAX_MESSAGE = 2000


def find(status: PipelineStatus, kind: str) -> Condition | None:
    """The condition of that type."""
    return next((one for one in status.conditions if one.type == kind), None)


def is_true(status: PipelineStatus, kind: str) -> bool:
    found = find(status, kind)
    return found is not None and found.status == "True"


def condition(
    before: PipelineStatus, kind: str, state: bool | None, reason: str, message: str, *, now: datetime, generation: int
) -> Condition:
    """A condition whose transition time moves only with its status."""
    value = {True: "True", False: "False", None: "Unknown"}[state]
    old = find(before, kind)
    since = old.last_transition_time if old is not None and old.status == value else written(now)
    return Condition(
        type=kind,
        status=value,  # pyright: ignore[reportArgumentType] - one of the three
        reason=reason,
        message=message[:MAX_MESSAGE],
        last_transition_time=since,
        observed_generation=generation,
    )


def replaced(conditions: Iterable[Condition], *new: Condition) -> list[Condition]:
    """Sorted by type, so that an unchanged status is written the same."""
    by_type = {one.type: one for one in conditions} | {one.type: one for one in new}
    return [by_type[name] for name in sorted(by_type)]


def written(at: datetime) -> str:
    """Example: ``2026-11-23T10:31:11Z``."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read(text: str) -> datetime:
    """The opposite of ``written``; fractions of a second are fine."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def seconds_until(text: str | None, now: datetime) -> float:
    """0 when it has passed, or was never set."""
    return max((read(text) - now).total_seconds(), 0.0) if text else 0.0
