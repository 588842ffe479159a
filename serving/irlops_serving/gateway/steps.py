"""From token rewards to what a person reads: steps, discounted returns, the first step that looks wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from irlops.selection import Calibration

from irlops.contracts.rerank import StepReward, SuspectedError, TokenReward
from irlops_serving.gateway.tokens import Spans

# A line is a step. Within a line a sentence is one, when it ends with . ! ? or ; before white space and a new
# beginning: "3.5" has no space after its point, and "approx. 4" no capital, so neither is cut.
_BOUNDARY = re.compile(r"\n\s*|(?<=[.!?;])[ \t]+(?=[A-Z$(\[])")
# Cuts that end no step: after an abbreviation, and after the number of a list item ("1. First").
_NO_END = re.compile(r"(?:\b(?:e\.g|i\.e|vs|approx|Mr|Mrs|Ms|Dr|St|No|Fig|Eq)\.|(?:^|\n)[ \t]*\d{1,2}[.)])[ \t]+$")
_LONGEST_NO_END = 16


def segment_steps(text: str) -> Spans:
    """Contiguous ``(start, end)`` of the steps of a solution; white space belongs to the step before it."""
    first = len(text) - len(text.lstrip())
    ends = (match.end() for match in _BOUNDARY.finditer(text, first))
    edges = [0, *(end for end in ends if end < len(text) and not _ends_no_step(text, end)), len(text)]
    return [(start, end) for start, end in pairwise(edges) if end > start]


def _ends_no_step(text: str, end: int) -> bool:
    return _NO_END.search(text[max(0, end - _LONGEST_NO_END) : end]) is not None


def discounted_returns(rewards: Sequence[float], gamma: float) -> list[float]:
    """``G_t = r_t + gamma * G_(t+1)``, by a scan from the end (dividing by powers of gamma would underflow)."""
    returns, total = [0.0] * len(rewards), 0.0
    for index in range(len(rewards) - 1, -1, -1):
        total = returns[index] = rewards[index] + gamma * total
    return returns


def token_rewards(text: str, spans: Spans, rewards: Sequence[float], gamma: float) -> list[TokenReward]:
    """One carrier per token; ``spans`` and ``rewards`` are parallel."""
    returns = discounted_returns(rewards, gamma)
    return [
        TokenReward.model_construct(text=text[start:end], start=start, end=end, reward=reward, discounted_return=value)
        for (start, end), reward, value in zip(spans, rewards, returns, strict=True)
    ]


def step_rewards(text: str, spans: Spans, rewards: Sequence[float], first_index: int = 0) -> list[StepReward]:
    """Mean reward of each step's tokens; a token belongs to the step it ends in, an empty one to the last."""
    steps = segment_steps(text)
    groups: list[list[float]] = [[] for _ in steps]
    step = 0
    for (_, end), reward in zip(spans, rewards, strict=True):
        while step + 1 < len(steps) and end > steps[step][1]:
            step += 1
        groups[step].append(reward)
    return [
        StepReward(
            index=first_index + index, text=text[start:end], start=start, end=end, reward=sum(group) / len(group)
        )
        for index, ((start, end), group) in enumerate(zip(steps, groups, strict=True))
        if group
    ]


def suspected_first_error(steps: Sequence[StepReward], threshold: float) -> SuspectedError | None:
    """The first step whose reward is below ``threshold`` (the reward at which right and wrong are equally likely)."""
    for step in steps:
        if step.reward < threshold:
            return SuspectedError(step=step.index, start=step.start, end=step.end, reward=step.reward)
    return None


def error_threshold(calibration: Calibration) -> float:
    """The step reward at which the calibration gives even chances; 0 for sums, whose scale is another."""
    return calibration.bias if calibration.aggregation != "discounted" else 0.0
