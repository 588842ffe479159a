"""Why a PyTorchJob failed, and whether trying again can help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from irlops.contracts.exit_codes import RETRYABLE_FROM, ExitCode
from irlops.contracts.pytorchjob import CONTAINER
from irlops.operator.conditions import read

_DEADLINE = "longer than specified deadline"
"""Of the training operator's message. Source: ``pkg/controller.v1/common/job.go``, v1.9."""
MAX_MESSAGE = 600


@dataclass(frozen=True)
class Failure:
    """One job's end. Example: ``Failure("JobFailed", "exit code 2: data.name: ...", is_retryable=False, at=None)``."""

    reason: str
    message: str
    is_retryable: bool
    at: datetime | None


def describe_failure(job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> Failure:
    """From the job's condition and what its pods ended with.

    A pod that says nothing (evicted, or gone with its node) is taken as retryable, as the training operator does.
    """
    conditions = job.get("status", {}).get("conditions", [])
    failed = next((one for one in reversed(conditions) if one.get("type") == "Failed"), {})
    said, at = str(failed.get("message", "")), failed.get("lastTransitionTime")
    when = read(at) if at else None
    name = job["metadata"]["name"]
    if _DEADLINE in said:
        message = f"{name} ran longer than activeDeadlineSeconds. Raise spec.jobTemplate.activeDeadlineSeconds."
        return Failure("DeadlineExceeded", message, False, when)
    ends = sorted((_end(pod) for pod in pods if pod["metadata"]["labels"].get(_JOB_LABEL) == name), key=_blame)
    if not ends or ends[0] is None:
        return Failure("JobFailed", f"{name} failed: {said or 'no pod is left to say why'}", True, when)
    code, text = ends[0]
    tail = text.strip()[-MAX_MESSAGE:] or said
    if code >= RETRYABLE_FROM:
        hint = (
            " (killed: raise spec.jobTemplate.resources.limits.memory if it ran out of memory)" if code == 137 else ""
        )
        return Failure("JobInterrupted", f"{name} ended with exit code {code}{hint}: {tail}", True, when)
    reason = "JobRefused" if code == ExitCode.BAD_INPUT else "JobFailed"
    return Failure(reason, f"{name} ended with exit code {code}: {tail}", False, when)


_JOB_LABEL = "training.kubeflow.org/job-name"


def _end(pod: Mapping[str, Any]) -> tuple[int, str] | None:
    """Exit code and last lines of the container that counts; None when it never ended on its own."""
    for one in pod.get("status", {}).get("containerStatuses", []):
        states = (one.get("state", {}).get("terminated"), one.get("lastState", {}).get("terminated"))
        ended = next((state for state in states if state and state.get("exitCode")), None)
        if one.get("name") == CONTAINER and ended is not None:
            return int(ended["exitCode"]), str(ended.get("message") or ended.get("reason") or "")
    return None


def _blame(end: tuple[int, str] | None) -> tuple[int, int]:
    """Permanent ends before interrupted ones before silent ones: peers of a pod that failed are interrupted too."""
    if end is None:
        return (2, 0)
    return (int(end[0] >= RETRYABLE_FROM), end[0])
