"""Where a PyTorchJob stands, read from its status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_FINAL = ("Succeeded", "Failed")


@dataclass(frozen=True)
class JobState:
    """What a job's newest condition says.

    Made by ``job_state``; consumed by the command line and by whoever waits for the job.
    Example: ``JobState(name="airl-tiny", phase="Running", reason="PyTorchJobRunning", message="...", num_active=2,
    num_wanted=2, created_at="2026-11-23T10:00:00Z")``
    """

    name: str
    phase: str
    """Created, Running, Restarting, Suspended, Succeeded or Failed; Pending while the operator has not looked at it."""
    reason: str
    message: str
    num_active: int
    """Pods that run."""
    num_wanted: int
    created_at: str
    """RFC 3339."""

    @property
    def is_over(self) -> bool:
        return self.phase in _FINAL

    @property
    def succeeded(self) -> bool:
        return self.phase == "Succeeded"

    def __str__(self) -> str:
        said = f": {self.message}" if self.message else ""
        return f"{self.phase} ({self.num_active} of {self.num_wanted} pods run){said}"


def job_state(job: Mapping[str, Any]) -> JobState:
    """The state of a PyTorchJob as the API gives it, also of one that nobody has looked at yet."""
    status: Mapping[str, Any] = job.get("status") or {}
    condition = _newest(status.get("conditions") or [])
    counts: Mapping[str, Any] = status.get("replicaStatuses") or {}
    specs: Mapping[str, Any] = job["spec"].get("pytorchReplicaSpecs") or {}
    return JobState(
        name=job["metadata"]["name"],
        phase=str(condition.get("type", "Pending")),
        reason=str(condition.get("reason", "")),
        message=str(condition.get("message", "")),
        num_active=sum(int(count.get("active") or 0) for count in counts.values()),
        num_wanted=sum(int(spec.get("replicas") or 1) for spec in specs.values()),
        created_at=str(job["metadata"].get("creationTimestamp") or ""),
    )


def _newest(conditions: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The newest true one. Several are true at a time (Created stays, Failed may stand beside Running), and a final one
    counts whatever its second: both may carry the same."""
    true = [one for one in conditions if one.get("status") == "True"]
    final = [one for one in true if one.get("type") in _FINAL]
    order = {one["type"]: index for index, one in enumerate(true)}
    return max(
        final or true,
        key=lambda one: (str(one.get("lastTransitionTime") or ""), order[one["type"]]),
        default={},
    )
