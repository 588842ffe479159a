"""Cutting work into forward passes that fit in memory, the same number of them on every process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from irlops_jobs.distributed.runtime import Runtime
from irlops_jobs.models.shared_prefix import TraceBatch

Payload = TypeVar("Payload")


@dataclass(frozen=True)
class Trace(Generic[Payload]):
    """A solution's tokens and what a loss needs to know of it."""

    solution_ids: tuple[int, ...]
    payload: Payload


@dataclass(frozen=True)
class Group(Generic[Payload]):
    """All traces of one question; its prompt is encoded once for them.

    Example:
        ``Group((1, 40, 41, 4), [Trace((50, 2), weights), Trace((51, 2), weights)])``
    """

    prompt_ids: tuple[int, ...]
    traces: list[Trace[Payload]]


@dataclass(frozen=True)
class MicroBatch(Generic[Payload]):
    """One forward pass; ``payloads`` in the order of the batch's solutions."""

    batch: TraceBatch
    payloads: list[Payload]
    groups: list[int] = field(default_factory=list)
    """For each solution the index of its prompt within this pass."""


def plan(
    groups: Sequence[Group[Payload]], *, max_tokens: int, runtime: Runtime, idle: Payload, num_branches: int = 0
) -> list[MicroBatch[Payload]]:
    """Pack groups of similar length into passes of at most ``max_tokens`` padded tokens.

    A group is never cut (pairwise losses need it whole), so one large group may exceed the limit alone. Processes
    with fewer passes are given passes of one token with payload ``idle`` (zero weight): under FSDP every process must
    take part in every pass, and under DDP every process must have one backward pass to synchronise in.

    Args:
        num_branches: of each trace, tokens that will ride in the same pass.
    """
    order = sorted(groups, key=_padded_width, reverse=True)
    batches: list[MicroBatch[Payload]] = []
    current: list[Group[Payload]] = []
    for group in order:
        if current and _cost([*current, group], num_branches) > max_tokens:
            batches.append(_collate(current))
            current = []
        current.append(group)
    if current:
        batches.append(_collate(current))
    needed = int(runtime.largest(len(batches)))
    while len(batches) < needed:
        batches.append(_collate([Group((0,), [Trace((0,), idle)])]))
    return [MicroBatch(one.batch.to(runtime.device), one.payloads, one.groups) for one in batches]


def _padded_width(group: Group[Payload]) -> tuple[int, int]:
    return max((len(trace.solution_ids) for trace in group.traces), default=0), len(group.prompt_ids)


def _cost(groups: list[Group[Payload]], num_branches: int) -> int:
    solutions = [len(trace.solution_ids) for group in groups for trace in group.traces]
    prompt_tokens = len(groups) * max(len(group.prompt_ids) for group in groups)
    return prompt_tokens + len(solutions) * (max(solutions) + num_branches)


def _collate(groups: list[Group[Payload]]) -> MicroBatch[Payload]:
    parents = [index for index, group in enumerate(groups) for _ in group.traces]
    traces = [trace for group in groups for trace in group.traces]
    batch = TraceBatch.of([group.prompt_ids for group in groups], [trace.solution_ids for trace in traces], parents)
    return MicroBatch(batch, [trace.payload for trace in traces], parents)
