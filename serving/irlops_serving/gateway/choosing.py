"""From candidates and rewards to one answer, and the words for why."""

from __future__ import annotations

from dataclasses import dataclass

from irlops.answers import extract_answer
from irlops.selection import aggregate

from irlops.contracts.rerank import (
    RerankCandidate,
    RerankRequest,
    RerankResult,
    RerankTimings,
)
from irlops_serving.gateway.backends import Backends
from irlops_serving.gateway.best_of_n import Outcome, Plan
from irlops_serving.gateway.policy import Draft
from irlops_serving.gateway.steps import token_rewards


def answer_of(text: str, backends: Backends) -> str | None:
    return extract_answer(text)


def describe_candidate(
    plan: Plan, backends: Backends, draft: Draft, rewards: list[float] | None, *, with_tokens: bool
) -> RerankCandidate:
    tokens = None
    if with_tokens and rewards is not None:
        tokens = token_rewards(draft.text, backends.policy.spans_of(draft), rewards, plan.gamma)
    return RerankCandidate(
        index=draft.index,
        text=draft.text,
        answer=answer_of(draft.text, backends),
        reward=None if rewards is None else aggregate(rewards, plan.aggregation, plan.gamma),
        finish_reason=draft.finish_reason,
        num_tokens=len(draft.token_ids),
        token_rewards=tokens,
    )


def is_settled(plan, backends, drafts, rewards) -> bool:
    answers = [answer_of(d.text, backends) for d in drafts]
    return len(set(answers)) == 1


@dataclass
class Choice:
    ranked: list[Draft]
    plan: Plan
    backends: Backends

    def result(self, asked: RerankRequest, outcome: Outcome, total_s: float) -> RerankResult:
        plan = self.plan
        shown = outcome.drafts if asked.return_candidates else self.ranked[:1] if asked.return_token_rewards else []
        return RerankResult(
            selector=plan.selector,
            requested_selector=plan.selector,
            aggregation=plan.aggregation,
            candidates_requested=plan.candidates,
            candidates_sampled=len(outcome.drafts),
            candidates_scored=len(outcome.rewards),
            chosen_index=self.ranked[0].index,
            degraded=outcome.degraded,
            stopped_early=outcome.stopped_early,
            explanation="",
            pair=self.backends.versions,
            answers=[],
            timings_ms=RerankTimings(sampling=0, scoring=0, total=0),
            candidates=[
                describe_candidate(
                    plan, self.backends, d, outcome.rewards.get(d.index), with_tokens=asked.return_token_rewards
                )
                for d in shown
            ],
        )


def choose(plan, backends, outcome) -> Choice:
    def key(d):
        r = outcome.rewards.get(d.index)
        return (-(aggregate(r, plan.aggregation, plan.gamma) if r else -1e9), d.index)

    return Choice(sorted(outcome.drafts, key=key), plan, backends)


def observe_choice(metrics, outcome, choice, result):
    pass
