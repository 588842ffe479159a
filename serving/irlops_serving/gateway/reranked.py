"""The model ``reranked``: N candidates from the policy, the best of them as the answer."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from irlops.contracts.rerank import RerankResult
from irlops_serving.gateway.agreement import BoundedAgreement
from irlops_serving.gateway.backends import Backends
from irlops_serving.gateway.best_of_n import Plan, Progress, sample_best_of_n
from irlops_serving.gateway.choosing import NEEDS_REWARDS, Choice, Chooser
from irlops_serving.gateway.errors import invalid_request
from irlops_serving.gateway.exchange import Exchange, Usage
from irlops_serving.gateway.policy import (
    CHAT,
    STREAM_INTERVAL,
    STREAM_INTERVAL_WITH_DEADLINE,
    Draft,
    Sampling,
    merged_logprobs,
)
from irlops_serving.gateway.requests import CompletionRequest
from irlops_serving.gateway.scoring import OverlappedScorer
from irlops_serving.gateway.settings import LimitSettings, RerankSettings
from irlops_serving.gateway.steps import error_threshold

KEEP_ALIVE = b": keep-alive\n\n"
# A refusal of the policy (a question past its context) comes sooner and is still answered with its own status.
START_STREAM_AFTER_S = 0.25
OURS = frozenset({"rerank", "rewards", "n", "stream", "stream_options", "model"})
# Where vLLM begins to decode greedily, and to refuse more than one sample.
GREEDY_BELOW = 1e-5


@dataclass(frozen=True, slots=True)
class Reranked:
    """A chosen answer. Made by ``rerank``; consumed by responses and metrics."""

    choice: Choice
    result: RerankResult
    usage: Usage


def make_plan(
    request: CompletionRequest, defaults: RerankSettings, limits: LimitSettings, backends: Backends, started_s: float
) -> Plan:
    """The request's own wishes, else the gateway's defaults, else the calibration's.

    Raises:
        ApiError: 400 for more candidates than the operator allows.
    """
    asked, calibration = request.rerank, backends.pair.calibration
    candidates = asked.candidates or max(min(defaults.candidates, limits.max_candidates), request.n)
    if candidates > limits.max_candidates:
        raise invalid_request(
            f"{candidates} candidates are more than the {limits.max_candidates} allowed.", "rerank.candidates"
        )
    temperature = request.document.get("temperature")
    wants_greedy = temperature is not None and temperature < GREEDY_BELOW
    is_greedy = wants_greedy and defaults.temperature_for_zero is None
    if is_greedy:
        candidates = _one_candidate(request)
    adaptive = defaults.adaptive if asked.adaptive is None else asked.adaptive
    in_waves = adaptive or asked.max_total_tokens is not None
    selector = asked.selector or defaults.selector
    return Plan(
        candidates=candidates,
        selector=selector,
        aggregation=asked.aggregation or calibration.aggregation,
        gamma=calibration.gamma,
        wave=min(defaults.wave, candidates) if in_waves else candidates,
        adaptive=adaptive,
        deadline_ms=asked.deadline_ms or defaults.deadline_ms,
        started_s=started_s,
        max_total_tokens=asked.max_total_tokens,
        temperature=defaults.temperature_for_zero if wants_greedy else None,
        is_greedy=is_greedy,
        use_critic=selector in NEEDS_REWARDS or asked.return_token_rewards or asked.return_candidates,
        # Tool calls are put together by the policy server; in pieces they would have to be put together here again.
        overlap=defaults.overlap and not request.document.get("tools"),
    )


def _one_candidate(request: CompletionRequest) -> int:
    if request.n > 1:
        raise invalid_request(f"At temperature 0 all {request.n} answers would be the same. Raise temperature.", "n")
    return 1


def make_sampling(request: CompletionRequest, plan: Plan, backends: Backends) -> Sampling:
    """The request to the policy."""
    body = {key: value for key, value in request.document.items() if key not in OURS}
    if plan.temperature is not None:
        body["temperature"] = plan.temperature
    body["model"] = backends.policy.settings.model
    needs_pieces = request.rerank.return_token_rewards and backends.policy.tokenizer is None
    if needs_pieces and not body.get("logprobs"):
        body["logprobs"] = True if request.route == CHAT else 1
    return Sampling(request.route, body, max_total_tokens=plan.max_total_tokens, stream_interval=_stream_interval(plan))


def _stream_interval(plan: Plan) -> int:
    if plan.max_total_tokens is not None:
        return 1  # the budget is watched token by token
    return STREAM_INTERVAL if plan.deadline_ms is None else STREAM_INTERVAL_WITH_DEADLINE


def make_chooser(plan: Plan, backends: Backends, agreement: BoundedAgreement) -> Chooser:
    """Choosing as the pair was calibrated, with the request's own aggregation."""
    pair = backends.pair
    calibration = pair.calibration.model_copy(update={"aggregation": plan.aggregation})
    return Chooser(plan, calibration, pair.answer_rule, backends.versions, backends.policy, agreement)


async def rerank(
    request: CompletionRequest,
    plan: Plan,
    backends: Backends,
    chooser: Chooser,
    usage: Usage,
    events: asyncio.Queue[dict[str, Any]] | None = None,
) -> Reranked:
    """Sample, score and choose; progress goes into ``events``, and tokens into ``usage`` however it ends."""
    sampling = make_sampling(request, plan, backends)
    reporter = _Reporter(request, chooser, sampling, events)
    scorer = OverlappedScorer(backends.critic, reporter.scored)
    reporter.rewards = scorer.rewards
    try:
        outcome = await sample_best_of_n(plan, sampling, backends.policy, scorer, chooser.is_settled, reporter.sampled)
    finally:
        usage.prompt_tokens, usage.completion_tokens = len(sampling.prompt_ids), sampling.num_tokens
    choice = await chooser.choose(outcome)
    result = choice.result(request.rerank, time.perf_counter() - plan.started_s)
    return Reranked(choice, result, usage)


class _Reporter:
    """Turns what happens into progress chunks; does nothing without a queue."""

    def __init__(
        self,
        request: CompletionRequest,
        chooser: Chooser,
        sampling: Sampling,
        events: asyncio.Queue[dict[str, Any]] | None,
    ) -> None:
        self._asked, self._chooser, self._sampling = request.rerank, chooser, sampling
        self._events = events if request.rerank.progress else None
        self._progress = Progress()
        self.rewards: dict[int, list[float]] = {}

    def sampled(self, draft: Draft, progress: Progress) -> None:
        self._progress = progress
        self._tell("sampling", None if self._chooser.plan.use_critic else draft)

    def scored(self, index: int) -> None:
        self._progress.scored += 1
        self._tell("scoring", self._sampling.drafts[index])

    def _tell(self, stage: str, draft: Draft | None) -> None:
        if self._events is None:
            return
        candidate = None
        if draft is not None and self._asked.return_candidates:
            rewards = self.rewards.get(draft.index)
            candidate = self._chooser.describe(draft, rewards, with_tokens=self._asked.return_token_rewards)
        self._events.put_nowait(
            {
                "stage": stage,
                "candidates_requested": self._chooser.plan.candidates,
                "candidates_sampled": self._progress.sampled,
                "candidates_scored": self._progress.scored,
                "aggregation": self._chooser.plan.aggregation,
                "even_chance_reward": error_threshold(self._chooser.calibration),
                "candidate": candidate.model_dump() if candidate is not None else None,
            }
        )


class Shape:
    """Chat completions and completions differ only in the form of a choice."""

    def __init__(self, request: CompletionRequest, request_id: str) -> None:
        self._is_chat = request.route == CHAT
        self._wants_logprobs = request.document.get("logprobs") not in (None, False)
        self._wants_ids = bool(request.document.get("return_token_ids"))
        kind = "chat.completion" if self._is_chat else "text_completion"
        self._head = {"id": ("chatcmpl-" if self._is_chat else "cmpl-") + request_id, "created": int(time.time())}
        self._kind, self._chunk_kind = kind, "chat.completion.chunk" if self._is_chat else kind

    def whole(self, drafts: list[Draft], reranked: Reranked) -> dict[str, Any]:
        """A response that is not streamed."""
        choices = [self._choice(position, draft) for position, draft in enumerate(drafts)]
        return self._body(self._kind, choices) | {
            "usage": reranked.usage.as_dict(),
            "rerank": reranked.result.model_dump(),
        }

    def chunk(self, delta: dict[str, Any], position: int = 0, finish: Draft | None = None) -> dict[str, Any]:
        """One chunk of a stream."""
        choice: dict[str, Any] = {"index": position, "finish_reason": finish.finish_reason if finish else None}
        if self._is_chat:
            choice["delta"] = delta
        else:
            choice["text"] = delta.get("content", "")
        if finish is not None and self._wants_logprobs:
            choice["logprobs"] = merged_logprobs(finish.logprobs)
        return self._body(self._chunk_kind, [choice])

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        """The last chunk when ``stream_options.include_usage`` is set."""
        return self._body(self._chunk_kind, []) | {"usage": usage.as_dict()}

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._head | {"object": kind, "model": "reranked", "choices": choices}

    def _choice(self, position: int, draft: Draft) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": position, "finish_reason": draft.finish_reason}
        if self._is_chat:
            text = draft.text if draft.text or not draft.message.get("tool_calls") else None
            choice["message"] = {"role": "assistant", "content": text, **draft.message}
        else:
            choice["text"] = draft.text
        choice["logprobs"] = merged_logprobs(draft.logprobs) if self._wants_logprobs else None
        if self._wants_ids:
            choice["token_ids"] = draft.token_ids
        return choice


async def answer_whole(
    exchange: Exchange, request: CompletionRequest, backends: Backends, chooser: Chooser
) -> Reranked:
    """Answer a request that is not streamed."""
    reranked = await rerank(request, chooser.plan, backends, chooser, exchange.usage)
    shape = Shape(request, exchange.request_id)
    await exchange.respond_json(shape.whole(reranked.choice.ranked[: request.n], reranked))
    return reranked


async def answer_stream(
    exchange: Exchange, request: CompletionRequest, backends: Backends, chooser: Chooser, keep_alive_s: float
) -> Reranked:
    """Answer with keep-alives and progress while candidates arrive, then the winner."""
    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    work = asyncio.create_task(rerank(request, chooser.plan, backends, chooser, exchange.usage, events))
    shape = Shape(request, exchange.request_id)
    try:
        await _stream_progress(exchange, shape, work, events, keep_alive_s)
        reranked = await work
    finally:
        if not work.done():
            work.cancel()
            await asyncio.wait([work])
    await _stream_winners(exchange, shape, request, reranked)
    return reranked


async def _stream_progress(
    exchange: Exchange,
    shape: Shape,
    work: asyncio.Task[Reranked],
    events: asyncio.Queue[dict[str, Any]],
    keep_alive_s: float,
) -> None:
    wait_s = START_STREAM_AFTER_S
    while not (work.done() and events.empty()):
        event = await _next_event(work, events, wait_s)
        if work.done() and work.exception() is not None:
            return
        if not exchange.status:
            await exchange.start_events()
            await exchange.send_event(shape.chunk({"role": "assistant", "content": ""}))
        wait_s = keep_alive_s
        if event is not None:
            await exchange.send_event(shape.chunk({}) | {"rerank_progress": event})
        elif not work.done():
            await exchange.send_bytes(KEEP_ALIVE)


async def _next_event(
    work: asyncio.Task[Reranked], events: asyncio.Queue[dict[str, Any]], wait_s: float
) -> dict[str, Any] | None:
    """The next event; None when there was none for ``wait_s`` or the work has ended."""
    if not events.empty():
        return events.get_nowait()
    getter = asyncio.ensure_future(events.get())
    try:
        await asyncio.wait((getter, work), timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        return getter.result() if getter.done() else None
    finally:
        getter.cancel()


async def _stream_winners(exchange: Exchange, shape: Shape, request: CompletionRequest, reranked: Reranked) -> None:
    if not exchange.status:
        await exchange.start_events()
        await exchange.send_event(shape.chunk({"role": "assistant", "content": ""}))
    winners = reranked.choice.ranked[: request.n]
    for position, draft in enumerate(winners):
        await exchange.send_event(shape.chunk(_delta(draft), position))
        last = shape.chunk({}, position, draft)
        if position + 1 == len(winners):
            last["rerank"] = reranked.result.model_dump()
        await exchange.send_event(last)
    if request.include_usage:
        await exchange.send_event(shape.usage_chunk(reranked.usage))
    await exchange.end_stream()


def _delta(draft: Draft) -> dict[str, Any]:
    calls = draft.message.get("tool_calls")
    extra = {"tool_calls": [{"index": index, **call} for index, call in enumerate(calls)]} if calls else {}
    others = {key: value for key, value in draft.message.items() if key != "tool_calls"}
    return {"content": draft.text, **others, **extra}
