"""The routes: OpenAI's completions and models, vLLM's /tokenize and /health."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from irlops_serving.policy.engine import Engine, Piece
from irlops_serving.policy.replies import Asked, ChatReply, CompletionReply
from irlops_serving.policy.requests import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    RequestError,
    Sampling,
    TokenizeRequest,
    parse_request,
)
from irlops_serving.tracing import ServerTracer

MAX_BODY_BYTES = 4 * 2**20
DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default for plain completions; a chat may use the rest of the context."""
CLIENT_LEFT_STATUS = 499

Steps = AsyncGenerator[list[Piece], None]


class PolicyRoutes:
    """Handlers over one engine."""

    def __init__(self, engine: Engine, model_name: str, tracer: ServerTracer | None = None) -> None:
        self._engine, self._policy, self._model_name = engine, engine.policy, model_name
        self._tracer = tracer or ServerTracer()
        self._started_s = int(time.time())

    def app(self) -> Starlette:
        routes = [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/health", self.health),
        ]
        return Starlette(
            routes=routes,
            exception_handlers={RequestError: _refuse, HTTPException: _refuse_http, Exception: _fail},
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Send the last spans while the process still runs: uvicorn ends it by the signal that asked for its end."""
        yield
        await asyncio.to_thread(self._tracer.close)

    async def health(self, _: Request) -> Response:
        return Response()

    async def models(self, _: Request) -> Response:
        model = {
            "id": self._model_name,
            "object": "model",
            "created": self._started_s,
            "owned_by": "irlops",
            "root": self._policy.folder.name,
            "parent": None,
            "max_model_len": self._policy.context_tokens,
            "permission": [],
        }
        return _json({"object": "list", "data": [model]})

    async def tokenize(self, request: Request) -> Response:
        asked = parse_request(TokenizeRequest, await _read_json(request))
        self._check_model(asked.model)
        if asked.messages is not None:
            ids = self._policy.chat_ids(asked.messages, add_generation_prompt=asked.add_generation_prompt)
        elif asked.prompt is not None:
            ids = self._policy.text_ids(asked.prompt, add_special_tokens=asked.add_special_tokens is not False)
        else:
            raise RequestError("Neither prompt nor messages is there; /tokenize needs one.", param="prompt")
        names = self._policy.tokenizer.convert_ids_to_tokens(ids) if asked.return_token_strs else None
        return _json(
            {"count": len(ids), "max_model_len": self._policy.context_tokens, "tokens": ids, "token_strs": names}
        )

    async def chat(self, request: Request) -> Response:
        body = parse_request(ChatRequest, await _read_json(request))
        prompt = self._policy.chat_ids(body.messages, add_generation_prompt=body.add_generation_prompt)
        return await self._answer(request, body, [prompt], ChatReply, default_max_tokens=None)

    async def completions(self, request: Request) -> Response:
        body = parse_request(CompletionRequest, await _read_json(request))
        return await self._answer(
            request, body, self._prompts(body), CompletionReply, default_max_tokens=DEFAULT_COMPLETION_TOKENS
        )

    def _prompts(self, body: CompletionRequest) -> list[list[int]]:
        """Token ids of every prompt; a prompt may be text or token ids, one or a list of them."""
        match body.prompt:
            case str(text):
                return [self._policy.text_ids(text, add_special_tokens=body.add_special_tokens)]
            case [int(), *_] as ids:
                return [cast("list[int]", ids)]
            case [str(), *_] as texts:
                add_special_tokens = body.add_special_tokens
                return [
                    self._policy.text_ids(text, add_special_tokens=add_special_tokens)
                    for text in cast("list[str]", texts)
                ]
            case lists:
                return cast("list[list[int]]", lists) or [[]]

    async def _answer(
        self,
        request: Request,
        body: GenerationRequest,
        prompts: list[list[int]],
        reply_kind: type[ChatReply] | type[CompletionReply],
        *,
        default_max_tokens: int | None,
    ) -> Response:
        self._check_model(body.model)
        self._check_prompts(prompts)
        room = self._policy.context_tokens - max(map(len, prompts))
        sampling = body.sampling(
            default_max_tokens=min(default_max_tokens or room, room), context_tokens=self._policy.context_tokens
        )
        asked = Asked(
            model=self._model_name,
            prompt_ids=tuple(prompts),
            num_samples=sampling.num_samples,
            with_token_ids=bool(body.return_token_ids),
            num_top_logprobs=sampling.num_top_logprobs,
            tokenizer=self._policy.fast_tokenizer,
        )
        sampling = dataclasses.replace(sampling, max_tokens=min(sampling.max_tokens, room))
        steps = self._traced(request, self._steps(prompts, sampling), prompts, sampling)
        if body.stream:
            events = _events(reply_kind(asked), steps, with_usage=body.include_usage())
            return StreamingResponse(events, media_type="text/event-stream")
        return await _whole(request, reply_kind(asked), steps)

    async def _traced(self, request: Request, steps: Steps, prompts: list[list[int]], sampling: Sampling) -> Steps:
        """The same steps; one span from the first to the last, or to the moment when the client leaves."""
        operation = "chat" if request.url.path.endswith("/chat/completions") else "text_completion"
        asked = {
            "gen_ai.operation.name": operation,
            "gen_ai.request.model": self._model_name,
            "gen_ai.request.choice.count": sampling.num_samples,
            "gen_ai.request.max_tokens": sampling.max_tokens,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.usage.input_tokens": sum(map(len, prompts)),
            "irlops.batch_items": len(prompts) * sampling.num_samples,
        }
        num_tokens = 0
        with self._tracer.request(f"{operation} {self._model_name}", request.headers, asked) as facts:
            try:
                async for step in steps:
                    num_tokens += len(step)
                    yield step
            finally:
                facts["gen_ai.usage.output_tokens"] = num_tokens
                await steps.aclose()

    async def _steps(self, prompts: list[list[int]], sampling: Sampling) -> Steps:
        """Pieces of one prompt after the other, indexed over all of them."""
        for place, prompt in enumerate(prompts):
            start = place * sampling.num_samples
            pieces = self._engine.generate(prompt, sampling)
            try:
                async for step in pieces:
                    yield [dataclasses.replace(piece, index=start + piece.index) for piece in step]
            finally:
                await pieces.aclose()

    def _check_model(self, name: str | None) -> None:
        if name not in (None, self._model_name):
            raise RequestError(
                f"The model `{name}` does not exist. This server has `{self._model_name}`.",
                param="model",
                status=404,
                kind="NotFoundError",
            )

    def _check_prompts(self, prompts: list[list[int]]) -> None:
        for prompt in prompts:
            if not prompt:
                raise RequestError("prompt is empty; a completion needs at least one token.", param="prompt")
            if len(prompt) >= self._policy.context_tokens:
                raise RequestError(
                    f"The prompt has {len(prompt)} tokens; the model's context of {self._policy.context_tokens} leaves no room "
                    "for an answer. Shorten the prompt.",
                    param="input_tokens",
                )
            wrong = [token for token in prompt if not 0 <= token < self._policy.vocabulary_size]
            if wrong:
                raise RequestError(f"Token id {wrong[0]} is out of vocabulary.", param="prompt")


async def _whole(request: Request, reply: ChatReply | CompletionReply, steps: Steps) -> Response:
    """The whole answer; decoding stops when the client leaves."""
    collecting = asyncio.create_task(_collect(steps))
    leaving = asyncio.create_task(_client_left(request))
    try:
        await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            return Response(status_code=CLIENT_LEFT_STATUS)
        return _json(reply.whole(collecting.result()))
    finally:
        for task in (collecting, leaving):
            task.cancel()
        await asyncio.gather(collecting, leaving, return_exceptions=True)


async def _collect(steps: Steps) -> dict[int, list[Piece]]:
    samples: dict[int, list[Piece]] = {}
    async for step in steps:
        for piece in step:
            samples.setdefault(piece.index, []).append(piece)
    return samples


async def _client_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(reply: ChatReply | CompletionReply, steps: Steps, *, with_usage: bool) -> AsyncIterator[bytes]:
    num_tokens = 0
    try:
        for chunk in reply.first_chunks():
            yield _event(chunk)
        async for step in steps:
            num_tokens += len(step)
            for piece in step:
                yield _event(reply.chunk(piece))
        if with_usage:
            yield _event(reply.last_chunk(num_tokens))
    except Exception as error:
        # The status line is long gone; an event is all that is left.
        yield _event(_error_body(f"The answer broke off: {error}", None, "InternalServerError", 500))
    finally:
        await steps.aclose()  # stops the decoding when the client has left
    yield b"data: [DONE]\n\n"


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


async def _read_json(request: Request) -> Any:
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                raise RequestError(
                    f"The request is larger than {MAX_BODY_BYTES} bytes.", status=413, kind="RequestTooLargeError"
                )
    except ClientDisconnect as error:
        raise RequestError("The client left.", status=CLIENT_LEFT_STATUS) from error
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"The body is not JSON: {error}.", param="body") from error


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status_code=status, media_type="application/json")


def _error_body(message: str, param: str | None, kind: str, status: int) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _json(_error_body(str(error), error.param, error.kind, error.status), error.status)


async def _refuse_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json(_error_body(error.detail, None, "NotFoundError", error.status_code), error.status_code)


async def _fail(_: Request, error: Exception) -> Response:
    return _json(_error_body(f"The policy failed: {error}", None, "InternalServerError", 500), 500)
