"""From token rewards to what a person reads: steps, discounted returns, the first step that looks wrong."""

from __future__ import annotations

from collections.abc import Sequence

from irlops.contracts.rerank import StepReward, SuspectedError, TokenReward
from irlops.selection import Calibration, aggregate
from irlops.steps import segment_steps
from irlops_serving.gateway.tokens import Spans


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


def step_rewards(text: str, spans: Spans, rewards: Sequence[float], calibration: Calibration) -> list[StepReward]:
    """The reward of each step; a token belongs to the step it ends in, an empty one to the last.

    A step's tokens become one number as a solution's do for ``calibration``, so that its bias, at which chances are even,
    bounds a step as it bounds a solution: in a mean, one wrong digit would drown among the right ones around it.
    """
    steps = segment_steps(text)
    groups: list[list[float]] = [[] for _ in steps]
    step = 0
    for (_, end), reward in zip(spans, rewards, strict=True):
        while step + 1 < len(steps) and end > steps[step][1]:
            step += 1
        groups[step].append(reward)
    return [
        StepReward(
            index=index,
            text=text[start:end],
            start=start,
            end=end,
            reward=aggregate(group, calibration.aggregation, calibration.gamma),
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
    """The step reward at which the calibration gives even chances of being right."""
    return calibration.bias
