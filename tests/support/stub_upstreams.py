"""Stub policy and critic at the HTTP border: raw aiohttp servers that speak vLLM's and KServe's shapes and misbehave on demand.

A token is one word with the space before it; its id is its place in a vocabulary that grows as words come.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

WORD = re.compile(r"\s*\S+|\s+$")
PROMPT_IDS = [1, 2, 3]


def byte_level(word: str) -> str:
    """The word as a byte-level vocabulary spells it: printable Latin-1 as itself, other bytes from U+0100 up."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return "".join(chr(byte if byte in printable else 256 + others.index(byte)) for byte in word.encode())


class Vocabulary:
    """Ids of words, shared by the two stubs so that a critic can reward a word."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._words: dict[int, str] = {}

    def encode(self, text: str) -> list[int]:
        return [self._id(word) for word in WORD.findall(text)]

    def word(self, token_id: int) -> str:
        return self._words.get(token_id, "")

    def _id(self, word: str) -> int:
        if word not in self._ids:
            self._ids[word] = len(self._ids) + 10
            self._words[self._ids[word]] = word
        return self._ids[word]


@dataclass
class StubPolicy:
    """Answers with ``solutions``, in turn; sample i of a request with seed s is solution s + i."""

    vocabulary: Vocabulary
    solutions: Sequence[str] = ("two and two is 4 #### 4",)
    delay_s: float = 0.0
    """Before the first token."""
    token_delay_s: float = 0.0
    fail: Callable[[dict[str, Any]], web.StreamResponse | None] = lambda _: None
    """Given the request's body; a response replaces the answer."""
    cut_after_chunks: int | None = None
    """Close the connection of a stream after so many chunks."""
    holds_after_chunks: int | None = None
    """Write so many chunks of a stream (0: answer nothing, also what is no stream), and go on when ``may_go_on`` is set."""
    may_go_on: asyncio.Event = field(default_factory=asyncio.Event)
    healthy: bool = True
    with_token_ids: bool = True
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    tokenized: list[dict[str, Any]] = field(default_factory=list)
    cancelled: int = 0
    running: int = 0
    written: int = 0
    """Chunks of all streams."""
    turn: int = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_get("/health", self._health)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if (failure := self.fail(body)) is not None:
            return failure
        n = int(body.get("n") or 1)  # 2.0 is an integer in JSON, to vLLM as well
        first = int(body["seed"]) if body.get("seed") is not None else self.turn
        self.turn += n
        texts = [self.solutions[(first + index) % len(self.solutions)] for index in range(n)]
        self.running += 1
        try:
            await asyncio.sleep(self.delay_s)
            if self.holds_after_chunks == 0:
                await self.may_go_on.wait()
            answer = self._stream if body.get("stream") else self._whole
            return await answer(request, body, texts)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        except ConnectionError:
            self.cancelled += 1
            return web.Response()
        finally:
            self.running -= 1

    def _usage(self, texts: Sequence[str]) -> dict[str, int]:
        completion = sum(len(self.vocabulary.encode(text)) for text in texts)
        return {"prompt_tokens": 3, "completion_tokens": completion, "total_tokens": completion + 3}

    async def _whole(self, request: web.Request, body: dict[str, Any], texts: list[str]) -> web.Response:
        is_chat = request.path.endswith("chat/completions")
        longest = max(len(self.vocabulary.encode(text)) for text in texts)
        await asyncio.sleep(self.token_delay_s * longest)
        choices = []
        for index, text in enumerate(texts):
            ids = self.vocabulary.encode(text)
            choice: dict[str, Any] = {"index": index, "finish_reason": "stop", "logprobs": None}
            choice |= {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
            if body.get("logprobs"):
                choice["logprobs"] = self._logprobs(ids, is_chat)
            if body.get("return_token_ids") and self.with_token_ids:
                choice["token_ids"] = ids
                if not is_chat:
                    choice["prompt_token_ids"] = PROMPT_IDS
            choices.append(choice)
        kind = "chat.completion" if is_chat else "text_completion"
        answer = {"id": "x", "object": kind, "model": body["model"], "choices": choices}
        answer["usage"] = self._usage(texts)
        if is_chat and body.get("return_token_ids"):
            answer["prompt_token_ids"] = PROMPT_IDS
        return web.json_response(answer)

    def _logprobs(self, ids: Sequence[int], is_chat: bool) -> dict[str, Any]:
        words = [self.vocabulary.word(token) for token in ids]
        if is_chat:
            return {"content": [{"token": word, "logprob": -0.5, "top_logprobs": []} for word in words]}
        return {"tokens": words, "token_logprobs": [-0.5] * len(words)}

    async def _stream(self, request: web.Request, body: dict[str, Any], texts: list[str]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for sent, chunk in enumerate(self._chunks(request.path.endswith("chat/completions"), body, texts)):
            if sent == self.cut_after_chunks:
                assert request.transport is not None
                request.transport.abort()
                return response
            if sent == self.holds_after_chunks:
                await self.may_go_on.wait()
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            self.written += 1
            await asyncio.sleep(self.token_delay_s)
        await response.write(b"data: [DONE]\n\n")
        return response

    def _chunks(self, is_chat: bool, body: dict[str, Any], texts: list[str]) -> list[dict[str, Any]]:
        head = {"id": "x", "object": "chat.completion.chunk", "model": body["model"]}
        with_ids = body.get("return_token_ids") and self.with_token_ids
        chunks: list[dict[str, Any]] = []
        if is_chat:
            for index in range(len(texts)):
                choice = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                chunks.append(head | {"choices": [choice]} | ({"prompt_token_ids": PROMPT_IDS} if with_ids else {}))
        tokens = [self.vocabulary.encode(text) for text in texts]
        for place in range(max(map(len, tokens))):
            for index, ids in enumerate(tokens):
                if place < len(ids):
                    chunks.append(head | {"choices": [self._delta(is_chat, body, index, ids, place)]})
        if (body.get("stream_options") or {}).get("include_usage"):
            chunks.append(head | {"choices": [], "usage": self._usage(texts)})
        return chunks

    def _delta(self, is_chat: bool, body: dict[str, Any], index: int, ids: list[int], place: int) -> dict[str, Any]:
        word, is_last = self.vocabulary.word(ids[place]), place + 1 == len(ids)
        choice: dict[str, Any] = {"index": index, "finish_reason": "stop" if is_last else None}
        choice |= {"delta": {"content": word}} if is_chat else {"text": word}
        if body.get("logprobs"):
            choice["logprobs"] = self._logprobs([ids[place]], is_chat)
        if body.get("return_token_ids") and self.with_token_ids:
            choice["token_ids"] = [ids[place]]
            if not is_chat and place == 0:
                choice["prompt_token_ids"] = PROMPT_IDS
        return choice

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.tokenized.append(body)
        if "messages" in body:
            return web.json_response({"count": 3, "max_model_len": 1024, "tokens": PROMPT_IDS})
        ids = self.vocabulary.encode(body["prompt"])
        words = [byte_level(self.vocabulary.word(token)) for token in ids]
        return web.json_response({"count": len(ids), "max_model_len": 1024, "tokens": ids, "token_strs": words})


@dataclass
class StubCritic:
    """Rewards every token of a solution with what ``reward`` says of its word; prompt tokens get 0."""

    vocabulary: Vocabulary
    reward: Callable[[str], float] = lambda word: 1.0 if word.strip() == "4" else 0.0
    delay_s: float = 0.0
    fail: Callable[[], web.Response | None] = lambda: None
    healthy: bool = True
    cut_calls: int = 0
    """So many calls lose their connection before they are answered."""
    calls: list[list[list[int]]] = field(default_factory=list)
    """Token id lists of each call."""
    headers: list[dict[str, str]] = field(default_factory=list)
    cancelled: int = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v2/models/critic/infer", self._infer)
        app.router.add_post("/pooling", self._pool)
        app.router.add_get("/v2/models/critic/ready", self._health)
        app.router.add_get("/health", self._health)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def _answer(self, request: web.Request, sequences: list[list[int]]) -> web.Response | None:
        self.calls.append(sequences)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.cut_calls > 0:
            self.cut_calls -= 1
            assert request.transport is not None
            request.transport.abort()
        return self.fail()

    def _rewards(self, ids: list[int]) -> list[float]:
        return [self.reward(word) if (word := self.vocabulary.word(token)) else 0.0 for token in ids]

    async def _infer(self, request: web.Request) -> web.Response:
        inputs = {item["name"]: item["data"] for item in (await request.json())["inputs"]}
        ends = list(itertools.accumulate(inputs["lengths"]))
        sequences = [inputs["token_ids"][start:end] for start, end in zip([0, *ends], ends, strict=False)]
        if (failure := await self._answer(request, sequences)) is not None:
            return failure
        flat = [reward for ids in sequences for reward in self._rewards(ids)]
        output = {"name": "rewards", "datatype": "FP32", "shape": [len(flat)], "data": flat}
        return web.json_response({"model_name": "critic", "outputs": [output]})

    async def _pool(self, request: web.Request) -> web.Response:
        body = await request.json()
        assert body["task"] == "token_classify"
        assert body["use_activation"] is False
        if (failure := await self._answer(request, body["input"])) is not None:
            return failure
        data = [
            {"index": index, "object": "pooling", "data": [[reward] for reward in self._rewards(ids)]}
            for index, ids in enumerate(body["input"])
        ]
        return web.json_response({"object": "list", "model": "critic", "data": data})


@asynccontextmanager
async def served(app: web.Application, port: int = 0) -> AsyncIterator[str]:
    """The URL of ``app`` on a free port of this machine."""
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
