"""Rewards while the policy writes: each finished step of a ``policy`` stream is scored and told at once.

The critic is causal, so the reward of a token does not change with what is written after it: scoring a prefix gives
the same numbers as scoring the whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any

import orjson

from irlops.contracts.rerank import StreamRewardsRequest
from irlops_serving.gateway.backends import Backends
from irlops_serving.gateway.critic import TokenizedSolution
from irlops_serving.gateway.errors import ApiError, invalid_request
from irlops_serving.gateway.exchange import Exchange, Usage
from irlops_serving.gateway.policy import CHAT, Draft, Sampling
from irlops_serving.gateway.requests import CompletionRequest
from irlops_serving.gateway.steps import segment_steps, step_rewards, token_rewards

OURS = frozenset({"rewards", "n", "stream", "model"})


async def stream_with_rewards(
    exchange: Exchange, request: CompletionRequest, wanted: StreamRewardsRequest, backends: Backends
) -> None:
    """Answer a ``policy`` stream with reward chunks between the text chunks.

    Raises:
        ApiError: before anything was answered; a critic that fails later ends the rewards, not the text.
    """
    if request.n > 1:
        raise invalid_request("'rewards' on a stream need n=1.", "n", "unsupported_parameter")
    body = {key: value for key, value in request.document.items() if key not in OURS}
    body["model"] = backends.policy.settings.model
    if backends.policy.tokenizer is None and not body.get("logprobs"):
        body["logprobs"] = True if request.route == CHAT else 1
    sampling = Sampling(request.route, body, stream_interval=1)
    writer = _Writer(exchange, request, wanted, backends, sampling)
    try:
        await writer.run()
    finally:
        exchange.usage = Usage(len(sampling.prompt_ids), sampling.num_tokens)


class _Writer:
    """One stream: reads the policy, writes the client, scores in between."""

    def __init__(
        self,
        exchange: Exchange,
        request: CompletionRequest,
        wanted: StreamRewardsRequest,
        backends: Backends,
        sampling: Sampling,
    ) -> None:
        self._exchange, self._request, self._wanted = exchange, request, wanted
        self._backends, self._sampling = backends, sampling
        self._out: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._may_have_ended_a_step = asyncio.Event()
        self._is_written = False
        self._steps_told = 0
        self._tokens_told = 0
        self._head: dict[str, Any] = {}

    async def run(self) -> None:
        """Until text and rewards are complete."""
        reader = asyncio.create_task(self._producing(self._read()))
        scorer = asyncio.create_task(self._producing(self._score()))
        try:
            running = 2
            while running:
                item = await self._out.get()
                if item is not None:
                    if not self._exchange.status:
                        await self._exchange.start_events()
                    await self._exchange.send_event(item)
                elif reader.done() and reader.exception() is not None:
                    break
                else:
                    running -= 1
            await reader
            await scorer
            await self._exchange.end_stream()
        finally:
            for task in (reader, scorer):
                task.cancel()
            await asyncio.wait((reader, scorer))

    async def _producing(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        finally:
            self._out.put_nowait(None)

    async def _read(self) -> None:
        try:
            async with aclosing(self._backends.policy.relay(self._sampling)) as chunks:
                async for chunk in chunks:
                    self._head = {key: chunk[key] for key in ("id", "object", "created") if key in chunk}
                    draft = self._sampling.drafts.get(0)
                    if draft is not None and draft.texts and not draft.texts[-1].isalnum():
                        self._may_have_ended_a_step.set()
                    self._out.put_nowait(self._shown(chunk))
        finally:
            self._is_written = True
            self._may_have_ended_a_step.set()

    def _shown(self, chunk: dict[str, Any]) -> dict[str, Any]:
        """The policy's chunk without what only we asked for."""
        asked = self._request.document
        chunk = {**chunk, "model": "policy"}
        if not asked.get("return_token_ids"):
            chunk.pop("prompt_token_ids", None)
        for choice in chunk.get("choices") or []:
            if not asked.get("return_token_ids"):
                choice.pop("token_ids", None)
                choice.pop("prompt_token_ids", None)
            if asked.get("logprobs") in (None, False):
                choice["logprobs"] = None
        return chunk

    async def _score(self) -> None:
        try:
            while not self._is_written:
                await self._may_have_ended_a_step.wait()
                self._may_have_ended_a_step.clear()
                await self._score_finished_steps()
            await self._score_finished_steps()
        except ApiError as error:
            self._tell({"error": orjson.loads(error.body())["error"]})

    async def _score_finished_steps(self) -> None:
        draft = self._sampling.drafts.get(0)
        if draft is None or not draft.token_ids:
            return
        ids, text = tuple(draft.token_ids), draft.text
        steps = segment_steps(text)
        complete = len(steps) if draft.finish_reason else len(steps) - 1
        if complete <= self._steps_told:
            return
        spans = self._backends.policy.spans_of(_copy(draft, ids, text))
        if spans is None:
            raise self._backends.policy.cannot_place()
        rewards = (await self._backends.critic.score([TokenizedSolution(self._sampling.prompt_ids, ids)]))[0]
        scored = step_rewards(text, spans, rewards, self._backends.pair.calibration)
        ends = [end for _, end in spans]
        for step in scored[self._steps_told : complete]:
            last = max(index for index, end in enumerate(ends) if end <= step.end) + 1
            told: dict[str, Any] = {"step": step.model_dump()}
            if self._wanted.granularity == "token":
                gamma = self._backends.pair.calibration.gamma
                tokens = token_rewards(text, spans[:last], rewards[:last], gamma)[self._tokens_told :]
                # A return needs the tokens to come; it is told once the answer is complete, by /v1/rewards.
                told["tokens"] = [token.model_dump(exclude={"discounted_return"}) for token in tokens]
            self._tokens_told = last
            self._tell(told)
        self._steps_told = complete

    def _tell(self, rewards: dict[str, Any]) -> None:
        choice: dict[str, Any] = {"index": 0, "finish_reason": None}
        choice |= {"delta": {}} if self._request.route == CHAT else {"text": ""}
        self._out.put_nowait(self._head | {"model": "policy", "choices": [choice], "rewards": rewards})


def _copy(draft: Draft, ids: tuple[int, ...], text: str) -> Draft:
    """The draft as it was when scoring began: more is written while the critic reads."""
    return Draft(draft.index, [text], list(ids), list(draft.pieces[: len(ids)]))
