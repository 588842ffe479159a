"""What is said to the policy: sample n solutions and report each as it finishes; tokenize."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from irlops_serving.gateway.errors import ApiError
from irlops_serving.gateway.settings import PolicySettings
from irlops_serving.gateway.tokens import LocalTokenizer, Spans, spans_of_pieces, spans_of_tokens
from irlops_serving.gateway.tracing import Tracer
from irlops_serving.gateway.upstream import Upstream, iter_events

Route = Literal["/v1/chat/completions", "/v1/completions"]
CHAT: Route = "/v1/chat/completions"
COMPLETIONS: Route = "/v1/completions"
# Tokens in one chunk of a stream that only the gateway reads: a candidate's last tokens always come at once, so what finishes
# is known as early, and the policy server makes a fraction of the chunks. vLLM knows the field; other servers ignore it.
STREAM_INTERVAL = 64
# A deadline may use an unfinished candidate, which should not lag far behind.
STREAM_INTERVAL_WITH_DEADLINE = 8
NO_TOKEN_IDS = "does not return token ids; serve the policy with vLLM 0.10 or newer, or with irlops's own server"  # noqa: S105


@dataclass(slots=True)
class Draft:
    """One candidate while it is being written. Made by ``PolicyClient``; chosen from once finished."""

    index: int
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    """Decoded token strings, when logprobs were asked for."""
    logprobs: list[Any] = field(default_factory=list)
    """The policy's own logprobs objects, passed on when the client asked for them."""
    message: dict[str, Any] = field(default_factory=dict)
    """Other fields of the message (tool calls, reasoning)."""
    finish_reason: str | None = None
    stop_reason: Any = None

    @property
    def text(self) -> str:
        return "".join(self.texts)


@dataclass(slots=True)
class Sampling:
    """All candidates of one request, over one or several calls ("waves") of the policy."""

    route: Route
    body: dict[str, Any]
    """The client's request without what is ours."""
    drafts: dict[int, Draft] = field(default_factory=dict)
    prompt_ids: tuple[int, ...] = ()
    max_total_tokens: int | None = None
    stream_interval: int = STREAM_INTERVAL
    num_tokens: int = 0
    """Tokens sampled so far, finished or not."""

    @property
    def is_exhausted(self) -> bool:
        """Whether the token budget is spent."""
        return self.max_total_tokens is not None and self.num_tokens >= self.max_total_tokens

    def wave_body(self, first: int, n: int, *, stream: bool) -> bytes:
        """The request for candidates ``first`` … ``first + n - 1``."""
        body = {**self.body, "n": n, "stream": stream, "return_token_ids": True}
        if stream and self.stream_interval > 1:
            body["stream_interval"] = self.stream_interval
        if isinstance(seed := body.get("seed"), int):
            # The policy gives sample i of a request the seed s + i: a candidate is the same in whichever wave it comes.
            body["seed"] = seed + first
        if self.max_total_tokens is not None and not stream:
            # On a stream the budget is watched; here it can only be divided beforehand.
            share = max(1, (self.max_total_tokens - self.num_tokens) // n)
            name = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
            body[name] = min(share, body.get(name) or share)
        return orjson.dumps(body)


class PolicyClient:
    """Talks to one policy server."""

    def __init__(
        self, upstream: Upstream, settings: PolicySettings, policy_s: float, tokenize_s: float, tracer: Tracer
    ):
        self.upstream, self.settings = upstream, settings
        self.policy_s, self._tokenize_s, self._tracer = policy_s, tokenize_s, tracer
        self.tokenizer = LocalTokenizer(settings.tokenizer_file) if settings.tokenizer_file else None

    async def ready(self) -> bool:
        """Whether the server says that it is healthy (``/health``; ``/v1/models`` where there is none)."""
        status = (await self.upstream.get("/health", self._tokenize_s)).status
        if status == 404:
            status = (await self.upstream.get("/v1/models", self._tokenize_s)).status
        return status == 200

    async def sample(self, sampling: Sampling, first: int, n: int, *, stream: bool) -> AsyncGenerator[Draft, None]:
        """Sample ``n`` candidates, the first of index ``first``; yields each when it is finished.

        ``stream`` reads token by token (candidates come when they finish); otherwise all come at the end.

        Raises:
            ApiError: the policy is away, too slow, refuses, or stops halfway (finished drafts stay in ``sampling``).
        """
        body = sampling.wave_body(first, n, stream=stream)
        with self._tracer.span("policy.sample", {"irlops.candidates": n}) as headers:
            if not stream:
                reply = await self.upstream.post(
                    sampling.route, body, call="sample", limit_s=self.policy_s, idempotent=False, headers=headers
                )
                for draft in self._read_whole(sampling, first, n, reply.body):
                    yield draft
                return
            async with self.upstream.open_stream(sampling.route, body, call="sample", headers=headers) as events:
                left = n
                async for chunk in events.chunks():
                    for event in iter_events(chunk):
                        if event == b"[DONE]":
                            continue
                        draft = self._take_chunk(sampling, first, self.upstream.parse(event))
                        if draft is not None:
                            left -= 1
                            yield draft
                    if sampling.is_exhausted:
                        # Leaving closes the connection, which stops the policy.
                        return
            if left:
                raise self.upstream.failed_halfway(None)

    async def relay(self, sampling: Sampling) -> AsyncGenerator[dict[str, Any], None]:
        """Stream one candidate; yields every chunk after taking it into ``sampling``.

        Raises:
            ApiError: as ``sample``.
        """
        body = sampling.wave_body(0, 1, stream=True)
        with self._tracer.span("policy.sample", {"irlops.candidates": 1}) as headers:
            async with self.upstream.open_stream(sampling.route, body, call="sample", headers=headers) as events:
                async for chunk in events.chunks():
                    for event in iter_events(chunk):
                        if event != b"[DONE]":
                            answer = self.upstream.parse(event)
                            self._take_chunk(sampling, 0, answer)
                            yield answer
            if not any(draft.finish_reason for draft in sampling.drafts.values()):
                raise self.upstream.failed_halfway(None)

    def _read_whole(self, sampling: Sampling, first: int, n: int, body: bytes) -> list[Draft]:
        answer = self.upstream.parse(body)
        try:
            drafts = [self._read_choice(sampling, answer, first, choice) for choice in answer["choices"]]
        except (KeyError, TypeError, AttributeError):
            raise self.upstream.not_understood("answered without usable choices") from None
        if len(drafts) != n:
            raise self.upstream.not_understood(f"answered with {len(drafts)} choices instead of {n}")
        sampling.drafts.update((draft.index, draft) for draft in drafts)
        return drafts

    def _read_choice(self, sampling: Sampling, answer: dict[str, Any], first: int, choice: dict[str, Any]) -> Draft:
        draft = Draft(first + choice["index"], finish_reason=choice.get("finish_reason") or "stop")
        message = choice["message"] if sampling.route == CHAT else {"content": choice["text"]}
        draft.texts.append(message.get("content") or "")
        draft.message = {key: value for key, value in message.items() if key not in ("role", "content") and value}
        draft.stop_reason = choice.get("stop_reason")
        _add_logprobs(draft, choice.get("logprobs"))
        self._add_tokens(sampling, draft, answer, choice)
        return draft

    def _take_chunk(self, sampling: Sampling, first: int, answer: dict[str, Any]) -> Draft | None:
        """Take one chunk in; returns the draft it finished."""
        if answer.get("error"):
            raise self.upstream.failed_halfway(None)
        finished = None
        try:
            for choice in answer.get("choices") or []:
                index = first + choice["index"]
                draft = sampling.drafts.get(index)
                if draft is None:
                    draft = sampling.drafts[index] = Draft(index)
                self._read_delta(sampling, draft, choice)
                if answer.get("prompt_token_ids"):
                    sampling.prompt_ids = tuple(answer["prompt_token_ids"])
                if choice.get("finish_reason") and draft.finish_reason is None:
                    if not (draft.token_ids and sampling.prompt_ids):
                        raise self.upstream.not_understood(NO_TOKEN_IDS)
                    draft.finish_reason, draft.stop_reason = choice["finish_reason"], choice.get("stop_reason")
                    finished = draft
        except (KeyError, TypeError, AttributeError):
            raise self.upstream.not_understood("streamed chunks that are not OpenAI's") from None
        return finished

    def _read_delta(self, sampling: Sampling, draft: Draft, choice: dict[str, Any]) -> None:
        delta = choice["delta"] if sampling.route == CHAT else {"content": choice["text"]}
        if content := delta.get("content"):
            draft.texts.append(content)
        for key, value in delta.items():
            if isinstance(value, str) and key not in ("role", "content"):
                draft.message[key] = draft.message.get(key, "") + value
        if token_ids := choice.get("token_ids"):
            draft.token_ids += token_ids
            sampling.num_tokens += len(token_ids)
        if choice.get("prompt_token_ids"):
            sampling.prompt_ids = tuple(choice["prompt_token_ids"])
        if choice.get("logprobs"):
            _add_logprobs(draft, choice["logprobs"])

    def _add_tokens(self, sampling: Sampling, draft: Draft, answer: dict[str, Any], choice: dict[str, Any]) -> None:
        prompt_ids = answer.get("prompt_token_ids") or choice.get("prompt_token_ids")
        if not (choice.get("token_ids") and prompt_ids):
            raise self.upstream.not_understood(NO_TOKEN_IDS)
        draft.token_ids = choice["token_ids"]
        sampling.num_tokens += len(draft.token_ids)
        sampling.prompt_ids = tuple(prompt_ids)

    async def prompt_ids(self, question: str) -> tuple[int, ...]:
        """Token ids of the question as the policy would read it: its chat template, ready for an answer."""
        messages = [{"role": "user", "content": question}]
        answer = await self._tokenize({"messages": messages, "add_generation_prompt": True})
        return tuple(answer["tokens"])

    async def solution_ids(self, solution: str) -> tuple[tuple[int, ...], Spans]:
        """Token ids of a solution and where each lies in it.

        Raises:
            ApiError: 502 when the server's token strings can't be placed exactly.
        """
        if self.tokenizer is not None:
            ids, spans = self.tokenizer.encode(solution)
            return tuple(ids), spans
        body = {"prompt": solution, "add_special_tokens": False, "return_token_strs": True}
        answer = await self._tokenize(body)
        spans = spans_of_tokens(solution, answer.get("token_strs") or [])
        if spans is None or len(spans) != len(answer["tokens"]):
            raise self.cannot_place()
        return tuple(answer["tokens"]), spans

    async def _tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        with self._tracer.span("policy.tokenize") as headers:
            reply = await self.upstream.post(
                "/tokenize", orjson.dumps({"model": self.settings.model, **body}), call="tokenize",
                limit_s=self._tokenize_s, idempotent=True, headers=headers,
            )  # fmt: skip
        answer = self.upstream.parse(reply.body)
        tokens = answer.get("tokens")
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            raise self.upstream.not_understood("tokenized without returning token ids")
        return answer

    def spans_of(self, draft: Draft) -> Spans | None:
        """Where the sampled tokens lie in the candidate's text; None when that would be a guess."""
        spans = self.tokenizer.spans_of_ids(draft.text, draft.token_ids) if self.tokenizer is not None else None
        if spans is None and draft.pieces:
            spans = spans_of_pieces(draft.text, draft.pieces)
        return spans if spans is not None and len(spans) == len(draft.token_ids) else None

    def cannot_place(self) -> ApiError:
        """502: rewards of tokens that lie nowhere in the text."""
        return self.upstream.not_understood(
            "gives token strings that can't be placed in the text; set pair.policy.tokenizer_file of the gateway"
        )


def _add_logprobs(draft: Draft, logprobs: Any) -> None:
    if not isinstance(logprobs, dict):
        return
    draft.logprobs.append(logprobs)
    content = logprobs.get("content")
    draft.pieces += [item["token"] for item in content] if content else logprobs.get("tokens") or []


def merged_logprobs(parts: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The logprobs objects of a stream's chunks as one, as a response that was not streamed carries them."""
    if not parts:
        return None
    merged: dict[str, Any] = dict(parts[0])
    for part in parts[1:]:
        for key, value in part.items():
            merged[key] = [*(merged.get(key) or []), *value] if isinstance(value, list) else merged.get(key)
    return merged
