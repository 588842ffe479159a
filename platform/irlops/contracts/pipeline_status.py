"""What the operator answers in a ReasoningPipeline's ``status``: phase, conditions, run, pairs, gates and history."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from irlops.contracts.pipeline import MAX_HISTORY, Part, Time, keyed_by

Phase = Literal[
    "Pending",
    "Training",
    "Evaluating",
    "Gating",
    "Registering",
    "RollingOut",
    "Ready",
    "Suspended",
    "RolledBack",
    "Failed",
]


class Condition(Part):
    """As in any Kubernetes object."""

    type: str = Field(max_length=316)
    status: Literal["True", "False", "Unknown"]
    reason: str = Field(min_length=1, max_length=1024)
    message: str = Field(max_length=32_768)
    last_transition_time: Time
    observed_generation: int | None = Field(default=None, ge=0)


class PairVersions(Part):
    """One pair, by the versions of its registered models."""

    policy_version: str
    critic_version: str


class PairStatus(Part):
    """Pairs that the pipeline knows."""

    serving: PairVersions | None = None
    """What the gateway answers with."""
    candidate: PairVersions | None = None
    """What is being rolled out."""
    last_good: PairVersions | None = None
    """What a roll-back returns to."""


class RunStatus(Part):
    """The run that is going on, or the last one."""

    id: str
    """Changes with every new run; part of job and run names."""
    generation: int
    """Of the spec that started it."""
    stage: str | None = None
    """Name of the stage, or ``evaluation``."""
    job_name: str | None = None
    attempts: int = Field(default=0, ge=0)
    """Starts of this stage's job so far."""
    not_before: Time | None = None
    """The next try waits until then."""
    started_at: Time | None = None


class GateStatus(Part):
    """How one gate went."""

    metric: str
    passed: bool
    value: float | None = None
    message: str | None = None
    """Why it failed."""


class HistoryEntry(Part):
    """One finished run."""

    run: str
    generation: int
    outcome: Literal["Promoted", "Registered", "GateFailed", "RolledBack", "Failed"]
    message: str = ""
    pair: PairVersions | None = None
    finished_at: Time


class PipelineStatus(Part):
    """What the operator saw."""

    observed_generation: int | None = None
    phase: Phase | None = None
    message: str | None = None
    """One line for people: what is going on, or what to do."""
    conditions: list[Condition] = Field(default=[], max_length=16, json_schema_extra=keyed_by("type"))
    run: RunStatus | None = None
    pairs: PairStatus | None = None
    gates: list[GateStatus] = Field(default=[], max_length=32, json_schema_extra=keyed_by("metric"))
    history: list[HistoryEntry] = Field(default=[], max_length=MAX_HISTORY)
    """Newest first."""
