"""Best of N: sample candidates in waves, score them meanwhile, stop when settled, late, or out of budget."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field

from irlops.contracts.rerank import Aggregation, Degraded, Selector
from irlops_serving.gateway.critic import TokenizedSolution
from irlops_serving.gateway.errors import ApiError, deadline_passed
from irlops_serving.gateway.policy import Draft, PolicyClient, Sampling
from irlops_serving.gateway.scoring import OverlappedScorer


@dataclass(frozen=True, slots=True)
class Plan:
    """What one reranked request was resolved to: its own fields, else the gateway's defaults.

    Example: ``Plan(candidates=8, selector="weighted_majority", aggregation="mean", gamma=0.9, wave=8)``
    """

    candidates: int
    selector: Selector
    aggregation: Aggregation
    gamma: float
    wave: int
    """Candidates sampled in one call of the policy."""
    adaptive: bool = False
    deadline_ms: int | None = None
    started_s: float = 0.0
    """``time.perf_counter()`` when the request arrived: the deadline counts from there."""
    max_total_tokens: int | None = None
    temperature: float | None = None
    """Sent to the policy instead of the request's own; None: as the request says."""
    is_greedy: bool = False
    """Temperature 0: one candidate, because every other would be the same."""
    use_critic: bool = True
    overlap: bool = True

    def seconds_left(self) -> float | None:
        """Until the deadline; None without one."""
        if self.deadline_ms is None:
            return None
        return max(0.0, self.started_s + self.deadline_ms / 1000 - time.perf_counter())


@dataclass(slots=True)
class Progress:
    """How far a request is. Made and updated here; shown on streams."""

    sampled: int = 0
    scored: int = 0


@dataclass(slots=True)
class Outcome:
    """Everything sampled and scored. Consumed by ``choosing``."""

    sampling: Sampling
    drafts: list[Draft] = field(default_factory=list)
    """Finished candidates by index; the longest unfinished one when there is no other."""
    rewards: dict[int, list[float]] = field(default_factory=dict)
    degraded: Degraded | None = None
    stopped_early: bool = False
    sampling_s: float = 0.0
    scoring_s: float = 0.0


Settled = Callable[[list[Draft], dict[int, list[float]]], Awaitable[bool]]
OnEvent = Callable[[Draft, Progress], None]


async def sample_best_of_n(
    plan: Plan,
    sampling: Sampling,
    policy: PolicyClient,
    scorer: OverlappedScorer,
    is_settled: Settled,
    on_event: OnEvent = lambda *_: None,
) -> Outcome:
    """Run ``plan``.

    Args:
        plan: what to do.
        sampling: the request to the policy; holds the drafts.
        policy: samples.
        scorer: scores; a fresh one.
        is_settled: asked after each wave of an adaptive plan, with every finished draft and its token rewards.
        on_event: told of each draft that finishes.

    Raises:
        ApiError: nothing could be sampled at all.
    """
    outcome, progress = Outcome(sampling), Progress()

    def finished(draft: Draft) -> None:
        progress.sampled += 1
        if plan.use_critic:
            scorer.add(draft.index, TokenizedSolution(sampling.prompt_ids, tuple(draft.token_ids)))
        on_event(draft, progress)

    timer = asyncio.timeout(plan.seconds_left())
    started_s = time.perf_counter()
    try:
        async with timer:
            await _sample_waves(plan, sampling, policy, scorer, is_settled, finished, outcome)
            outcome.sampling_s = time.perf_counter() - started_s
            await scorer.drain()
    except TimeoutError:
        if not timer.expired():
            raise
        outcome.degraded = Degraded.DEADLINE
        outcome.sampling_s = outcome.sampling_s or time.perf_counter() - started_s
    finally:
        await scorer.close()
    _collect(plan, outcome, scorer)
    return outcome


async def _sample_waves(
    plan: Plan,
    sampling: Sampling,
    policy: PolicyClient,
    scorer: OverlappedScorer,
    is_settled: Settled,
    finished: Callable[[Draft], None],
    outcome: Outcome,
) -> None:
    for first, n in _waves(plan, sampling):
        scorer.expect(n)
        try:
            async with aclosing(policy.sample(sampling, first, n, stream=plan.overlap)) as drafts:
                async for draft in drafts:
                    finished(draft)
        except ApiError:
            if not any(draft.finish_reason for draft in sampling.drafts.values()):
                raise
            outcome.degraded = Degraded.POLICY_INTERRUPTED
            return
        if sampling.is_exhausted:
            break
        if plan.adaptive and first + n < plan.candidates:
            # Only between waves, when everything is scored: the decision never depends on which call was faster.
            await scorer.drain()
            if await is_settled(_finished(sampling), scorer.rewards):
                outcome.stopped_early = True
                return
    if len(_finished(sampling)) < plan.candidates:
        outcome.degraded = Degraded.TOKEN_BUDGET


def _waves(plan: Plan, sampling: Sampling) -> Iterator[tuple[int, int]]:
    """First index and size of each wave; none that the token budget would certainly cut off."""
    first = 0
    while first < plan.candidates:
        n = min(plan.wave, plan.candidates - first)
        if plan.max_total_tokens is not None and first:
            mean = sampling.num_tokens / first
            n = min(n, int((plan.max_total_tokens - sampling.num_tokens) / mean))
        if n < 1:
            return
        yield first, n
        first += n


def _finished(sampling: Sampling) -> list[Draft]:
    return [sampling.drafts[index] for index in sorted(sampling.drafts) if sampling.drafts[index].finish_reason]


def _collect(plan: Plan, outcome: Outcome, scorer: OverlappedScorer) -> None:
    outcome.drafts = _finished(outcome.sampling)
    if not outcome.drafts:
        # Better half an answer, said to be one, than none: what OpenAI's "length" means.
        begun = [draft for draft in outcome.sampling.drafts.values() if draft.token_ids]
        if not begun:
            raise deadline_passed(plan.deadline_ms or 0)
        longest = max(begun, key=lambda draft: (len(draft.token_ids), -draft.index))
        longest.finish_reason = "length"
        outcome.drafts = [longest]
    outcome.rewards = scorer.rewards
    outcome.scoring_s = scorer.busy_s
    if scorer.failure is not None and outcome.degraded is None:
        outcome.degraded = Degraded.CRITIC_UNAVAILABLE
