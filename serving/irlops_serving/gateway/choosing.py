"""From candidates and rewards to one answer, and the words for why. Selection itself is ``irlops.selection``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from irlops.answers import AnswerRule, extract_answer
from irlops.contracts.rerank import (
    AnswerVotes,
    Degraded,
    PairVersions,
    RerankCandidate,
    RerankRequest,
    RerankResult,
    RerankTimings,
    Selector,
)
from irlops.selection import Agree, Calibration, Candidate, Selection, aggregate, is_settled, select
from irlops_serving.gateway.agreement import BoundedAgreement
from irlops_serving.gateway.best_of_n import Outcome, Plan
from irlops_serving.gateway.metrics import Metrics, labelled
from irlops_serving.gateway.policy import Draft, PolicyClient
from irlops_serving.gateway.steps import error_threshold, step_rewards, suspected_first_error, token_rewards

# An answer stands at the end. What is searched is bounded, because clients write solutions too.
ANSWER_WITHIN_LAST_CHARS = 8_192
NEEDS_REWARDS: frozenset[Selector] = frozenset({"reward", "weighted_majority"})
_REASONS = {
    Degraded.CRITIC_UNAVAILABLE: "The critic did not answer. ",
    Degraded.DEADLINE: "The deadline passed before every candidate was sampled and scored. ",
    Degraded.TOKEN_BUDGET: "The token budget was spent before every candidate was finished. ",
    Degraded.POLICY_INTERRUPTED: "The policy stopped before every candidate was finished. ",
}
_GREEDY = "At temperature 0 every candidate would be the same, so one was sampled. "


def find_answer(text: str, rule: AnswerRule) -> str | None:
    """The final answer of a solution, sought in its last part."""
    return extract_answer(text[-ANSWER_WITHIN_LAST_CHARS:], rule)


@dataclass(frozen=True, slots=True)
class Chooser:
    """What choosing needs of one request's plan and pair. Made by ``reranked``; consumed there."""

    plan: Plan
    calibration: Calibration
    """The pair's, with the aggregation of the plan."""
    answer_rule: AnswerRule
    versions: PairVersions
    policy: PolicyClient
    agreement: BoundedAgreement

    def candidates(self, drafts: Sequence[Draft], rewards: dict[int, list[float]]) -> list[Candidate]:
        """The drafts as selection sees them."""
        return [
            Candidate(
                answer=find_answer(draft.text, self.answer_rule),
                num_tokens=len(draft.token_ids),
                token_rewards=rewards.get(draft.index),
            )
            for draft in drafts
        ]

    async def is_settled(self, drafts: Sequence[Draft], rewards: dict[int, list[float]]) -> bool:
        """Whether more candidates would hardly change the answer."""
        candidates = self.candidates(drafts, rewards)
        return is_settled(candidates, self.calibration, agree=await self._agree(candidates))

    async def choose(self, outcome: Outcome) -> Choice:
        """The chosen draft and all the others, best first."""
        candidates = self.candidates(outcome.drafts, outcome.rewards)
        selector = _possible_selector(self.plan.selector, len(outcome.drafts), len(outcome.rewards))
        selection = select(candidates, selector, self.calibration, await self._agree(candidates))
        return Choice(self, outcome, selector, selection)

    async def _agree(self, candidates: Sequence[Candidate]) -> Agree:
        return await self.agreement.among([candidate.answer for candidate in candidates], self.plan.seconds_left())

    def describe(self, draft: Draft, rewards: list[float] | None, *, with_tokens: bool) -> RerankCandidate:
        """A candidate as clients see it."""
        # One candidate whose tokens can't be placed does not cost the others their answer.
        spans = self.policy.spans_of(draft) if with_tokens and rewards is not None else None
        tokens = token_rewards(draft.text, spans, rewards, self.plan.gamma) if spans and rewards else None
        steps = step_rewards(draft.text, spans, rewards, self.calibration) if spans and rewards else None
        reward = aggregate(rewards, self.plan.aggregation, self.plan.gamma) if rewards else None
        return RerankCandidate(
            index=draft.index,
            text=draft.text,
            answer=find_answer(draft.text, self.answer_rule),
            reward=reward,
            finish_reason=draft.finish_reason,
            num_tokens=len(draft.token_ids),
            chance=None if reward is None else self.calibration.probability(reward),
            token_rewards=tokens,
            steps=steps,
            suspected_first_error=suspected_first_error(steps, error_threshold(self.calibration)) if steps else None,
        )


def _possible_selector(asked: Selector, num_drafts: int, num_scored: int) -> Selector:
    """``asked``, or the majority vote when rewards are missing for more than half of the candidates."""
    return "majority" if asked in NEEDS_REWARDS and 2 * num_scored < num_drafts else asked


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and from what."""

    chooser: Chooser
    outcome: Outcome
    selector: Selector
    selection: Selection

    @property
    def ranked(self) -> list[Draft]:
        """Every candidate, best first."""
        return [self.outcome.drafts[place] for place in self.selection.order]

    def result(self, asked: RerankRequest, total_s: float) -> RerankResult:
        """The ``rerank`` field of the response."""
        outcome, plan = self.outcome, self.chooser.plan
        timings = (outcome.sampling_s, outcome.scoring_s, total_s)
        sampling, scoring, total = (round(seconds * 1000, 2) for seconds in timings)
        return RerankResult(
            selector=self.selector,
            requested_selector=plan.selector,
            aggregation=plan.aggregation,
            candidates_requested=plan.candidates,
            candidates_sampled=len(outcome.drafts),
            candidates_scored=len(outcome.rewards),
            chosen_index=self.ranked[0].index,
            degraded=outcome.degraded,
            stopped_early=outcome.stopped_early,
            explanation=self._explanation(),
            pair=self.chooser.versions,
            answers=[AnswerVotes(answer=a.answer, votes=a.votes, weight=a.weight) for a in self.selection.answers],
            timings_ms=RerankTimings(sampling=sampling, scoring=scoring, total=total),
            even_chance_reward=error_threshold(self.chooser.calibration),
            candidates=[self._describe(draft, asked) for draft in self._shown(asked)],
        )

    def _explanation(self) -> str:
        reason = _REASONS[self.outcome.degraded] if self.outcome.degraded else ""
        greedy = _GREEDY if self.chooser.plan.is_greedy else ""
        return reason + greedy + self.selection.explanation

    def _shown(self, asked: RerankRequest) -> list[Draft]:
        if asked.return_candidates:
            return self.outcome.drafts
        return self.ranked[:1] if asked.return_token_rewards else []

    def _describe(self, draft: Draft, asked: RerankRequest) -> RerankCandidate:
        rewards = self.outcome.rewards.get(draft.index)
        described = self.chooser.describe(draft, rewards, with_tokens=asked.return_token_rewards)
        place = next(place for place, one in enumerate(self.outcome.drafts) if one is draft)
        groups = (group for group, one in enumerate(self.selection.answers) if place in one.members)
        return described.model_copy(update={"answer_group": next(groups, None)})

    def observe(self, metrics: Metrics) -> None:
        """Count what was sampled and chosen."""
        outcome = self.outcome
        labelled(metrics.candidates, "sampled").observe(len(outcome.drafts))
        labelled(metrics.candidates, "scored").observe(len(outcome.rewards))
        metrics.agreement.observe(self.selection.agreement)
        if outcome.degraded is not None:
            labelled(metrics.degraded, outcome.degraded).inc()
        if outcome.stopped_early:
            metrics.stopped_early.inc()
        plan = self.chooser.plan
        totals = {i: aggregate(r, plan.aggregation, plan.gamma) for i, r in outcome.rewards.items()}
        if totals:
            metrics.reward_spread.observe(max(totals.values()) - min(totals.values()))
        own = totals.get(self.ranked[0].index)
        if own is not None:
            metrics.chosen_rank.observe(1 + sum(total > own for total in totals.values()))
