"""Which traces the critic sees in a round, on which side, and how much every token weighs.

Positives are expert solutions and, with relabelling, samples that reach the expert's answer. Negatives are the other
samples and corrupted positives; a corruption always stays with its own question. Weights are settled here, with the
denominators of all processes in them, so that the loss is a plain sum wherever a trace ends up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from irlops.contracts.jobs import CriticConfig
from irlops_jobs.distributed.runtime import Runtime
from irlops_jobs.updates.microbatches import Group, Trace

Origin = Literal["expert", "agreeing_sample", "other_sample", "corrupted"]


@dataclass(frozen=True)
class CriticTarget:
    """What the critic's loss needs of one trace.

    Example:
        A corrupted expert whose error starts at token 7: ``CriticTarget(False, "corrupted", (7, 8, 9), 0.01)``.
    """

    is_expert_like: bool
    origin: Origin
    positions: tuple[int, ...]
    """Solution tokens where the loss reads the critic."""
    weight: float
    """bce: of the whole trace in the global loss, shared equally by its positions. pairwise: of its question."""

    @classmethod
    def idle(cls) -> CriticTarget:
        """For passes that only keep processes in step: no weight at all."""
        return cls(False, "other_sample", (0,), 0.0)


@dataclass(frozen=True)
class LabelledTrace:
    """A trace with its side, before weights are known.

    ``first_error`` to ``error_end`` (exclusive; 0 for the trace's end) are the wrong tokens of a corruption.
    """

    solution_ids: tuple[int, ...]
    is_expert_like: bool
    origin: Origin
    first_error: int = 0
    error_end: int = 0


@dataclass(frozen=True)
class LabelledQuestion:
    """One question with everything the critic is shown of it."""

    prompt_ids: tuple[int, ...]
    traces: tuple[LabelledTrace, ...]


StepEnds = Callable[[tuple[int, ...]], Sequence[int]]
"""Indices of the last token of each step of a solution."""


def loss_positions(trace: LabelledTrace, config: CriticConfig, step_ends: StepEnds) -> tuple[int, ...]:
    """Where the loss reads the critic, by granularity; of a corruption's tokens those that ``perturbed_target`` names."""
    last = len(trace.solution_ids) - 1
    match config.granularity:
        case "token":
            positions = range(last + 1)
        case "interval":
            positions = sorted({*range(config.interval_tokens - 1, last, config.interval_tokens), last})
        case "step":
            positions = sorted({*step_ends(trace.solution_ids), last})
        case _:
            positions = [last]
    if trace.origin != "corrupted" or config.perturbed_target == "whole":
        return tuple(positions)
    if config.perturbed_target == "error" and trace.error_end:
        return tuple(range(trace.first_error, trace.error_end))
    return tuple(position for position in positions if position >= trace.first_error)


def weigh(
    questions: Sequence[LabelledQuestion], config: CriticConfig, runtime: Runtime, step_ends: StepEnds
) -> tuple[list[Group[CriticTarget]], dict[str, float]]:
    """Groups ready for the critic's update, and counts of what is in them over all processes.

    ``bce``: every trace weighs the same within its side, whatever its length; ``mass_balance`` gives each side half of
    the loss, of all of it or of each question's. A question with one side only keeps its half of a question's weight.
    ``pairwise``: every question that has both sides weighs the same; the others weigh nothing.
    """
    totals = _count_origins(questions, runtime)
    num_contrasted, num_questions = runtime.total(sum(map(_has_both_sides, questions)), len(questions))
    groups: list[Group[CriticTarget]] = []
    for question in questions:
        if config.loss == "pairwise":
            weights = dict.fromkeys((True, False), _has_both_sides(question) / max(num_contrasted, 1))
        elif config.mass_balance == "question":
            weights = _balanced(*_count_sides(question), share=1 / max(num_questions, 1))
        elif config.mass_balance == "global":
            num_positive = totals["expert"] + totals["agreeing_sample"]
            weights = _balanced(num_positive, totals["other_sample"] + totals["corrupted"], share=1.0)
        else:
            weights = dict.fromkeys((True, False), 1.0 / max(sum(totals.values()), 1))
        groups.append(_group(question, weights, config, step_ends))
    counts = {f"critic/num_{name}": value for name, value in totals.items()}
    return groups, counts | {"critic/num_contrasted_questions": num_contrasted}


def _balanced(num_positive: float, num_negative: float, *, share: float) -> dict[bool, float]:
    return {True: 0.5 * share / max(num_positive, 1), False: 0.5 * share / max(num_negative, 1)}


def _count_sides(question: LabelledQuestion) -> tuple[int, int]:
    num_positive = sum(trace.is_expert_like for trace in question.traces)
    return num_positive, len(question.traces) - num_positive


def _count_origins(questions: Sequence[LabelledQuestion], runtime: Runtime) -> dict[str, float]:
    counts = Counter(trace.origin for question in questions for trace in question.traces)
    names: tuple[Origin, ...] = ("expert", "agreeing_sample", "other_sample", "corrupted")
    return dict(zip(names, runtime.total(*(counts[name] for name in names)), strict=True))


def _has_both_sides(question: LabelledQuestion) -> bool:
    return len({trace.is_expert_like for trace in question.traces}) == 2


def _group(
    question: LabelledQuestion, weights: dict[bool, float], config: CriticConfig, step_ends: StepEnds
) -> Group[CriticTarget]:
    traces = [
        Trace(
            trace.solution_ids,
            CriticTarget(
                trace.is_expert_like,
                trace.origin,
                loss_positions(trace, config, step_ends),
                weights[trace.is_expert_like],
            ),
        )
        for trace in question.traces
    ]
    return Group(question.prompt_ids, traces)
