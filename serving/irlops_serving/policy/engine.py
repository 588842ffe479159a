"""Decodes: one prefill for a request, its samples side by side, requests in turn.

    generate(prompt_ids, sampling) -> lists of Piece, one list a decoding step

A single thread owns the model and gives every running request one step in turn, so that a long answer never blocks a
short one and a caller who leaves is noticed within a step. Samples of one request have the same length at every step:
no padding, no attention mask.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from irlops_serving.policy.checkpoint import LoadedPolicy
from irlops_serving.policy.growing_cache import growing_cache
from irlops_serving.policy.requests import Sampling
from irlops_serving.policy.sampling import TokenLogprobs, draw_tokens, generators_of, read_logprobs
from irlops_serving.policy.text import TextBuilder

MAX_RUNNING_SAMPLES = 256
"""Samples decoded at a time over all requests; later requests wait. Bounds the key-value caches."""


@dataclass(frozen=True)
class Piece:
    """What one step added to one sample.

    Made by the engine; consumed by the reply builders.
    Example: ``Piece(index=3, text=" 42", token_id=511, logprobs=None, finish_reason=None, stop_reason=None)``.
    """

    index: int
    text: str
    token_id: int
    logprobs: TokenLogprobs | None
    finish_reason: str | None
    """``stop`` or ``length`` on a sample's last piece."""
    stop_reason: str | int | None
    """The stop string or stop token that ended it; None for the end-of-text token."""


Emit = Callable[[list[Piece] | Exception | None], None]


@dataclass
class _Sample:
    """A sample that is still being decoded."""

    index: int
    generator: torch.Generator
    text: TextBuilder
    num_tokens: int = 0
    last_token: int = -1


class _Generation:
    """One request on its way; touched by the engine's thread only, but for ``cancel``."""

    def __init__(self, prompt_ids: Sequence[int], sampling: Sampling, emit: Emit) -> None:
        self.prompt_ids, self.sampling, self.emit = prompt_ids, sampling, emit
        self.is_cancelled = False
        self.samples: list[_Sample] = []
        self.cache: Cache | None = None

    def cancel(self) -> None:
        self.is_cancelled = True


class Engine:
    """Runs a policy. Made by the server; ``stop`` it at the end."""

    def __init__(self, policy: LoadedPolicy) -> None:
        self.policy = policy
        self._waiting: deque[_Generation] = deque()
        self._running: deque[_Generation] = deque()
        self._changed = threading.Condition()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._work, name="policy", daemon=True)
        self._thread.start()

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[list[Piece], None]:
        """Pieces of all samples, a list for each step. Leaving the loop early stops the decoding."""
        loop = asyncio.get_running_loop()
        steps: asyncio.Queue[list[Piece] | Exception | None] = asyncio.Queue()

        def emit(step: list[Piece] | Exception | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(steps.put_nowait, step)

        generation = _Generation(prompt_ids, sampling, emit)
        with self._changed:
            self._waiting.append(generation)
            self._changed.notify()
        try:
            while (step := await steps.get()) is not None:
                if isinstance(step, Exception):
                    raise step
                yield step
        finally:
            generation.cancel()

    def stop(self) -> None:
        """End the thread; requests under way are dropped."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def num_requests(self) -> int:
        """Running and waiting; 0 when the engine is idle."""
        return len(self._running) + len(self._waiting)

    @torch.inference_mode()
    def _work(self) -> None:
        while self._wait_for_work():
            generation = self._running[0]
            is_done = True
            if not generation.is_cancelled:
                try:
                    is_done = self._advance(generation)
                except Exception as error:
                    generation.emit(error)
            self._running.popleft()
            if is_done:
                generation.emit(None)
            else:
                self._running.append(generation)

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not (self._running or self._waiting or self._is_stopping):
                self._changed.wait()
            num_samples = sum(generation.sampling.num_samples for generation in self._running)
            while self._waiting:
                num_samples += self._waiting[0].sampling.num_samples
                if self._running and num_samples > MAX_RUNNING_SAMPLES:
                    break
                self._running.append(self._waiting.popleft())
            return not self._is_stopping

    def _advance(self, generation: _Generation) -> bool:
        """One token for every sample; whether the request is done."""
        logits_BV = self._decode(generation) if generation.samples else self._prefill(generation)
        drawn = draw_tokens(logits_BV, generation.sampling, [sample.generator for sample in generation.samples])
        num_top = generation.sampling.num_top_logprobs
        logprobs = [None] * len(drawn) if num_top is None else read_logprobs(logits_BV, drawn, num_top)
        pieces = [
            self._piece(generation.sampling, sample, token, entry)
            for sample, token, entry in zip(generation.samples, drawn, logprobs, strict=True)
        ]
        generation.emit(pieces)
        kept = [row for row, piece in enumerate(pieces) if piece.finish_reason is None]
        if len(kept) < len(pieces):
            generation.samples = [generation.samples[row] for row in kept]
            assert generation.cache is not None
            if kept:
                generation.cache.batch_select_indices(torch.tensor(kept))
        return not kept

    def _prefill(self, generation: _Generation) -> Tensor:
        cache = generation.cache = growing_cache(self.policy.model.config)
        prompt = torch.tensor([list(generation.prompt_ids)])
        logits = self.policy.model(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[
            :, -1
        ]
        sampling = generation.sampling
        generation.samples = [
            _Sample(index, generator, self._text(generation)) for index, generator in enumerate(generators_of(sampling))
        ]
        if sampling.num_samples > 1:
            cache.batch_repeat_interleave(sampling.num_samples)
        return logits.float().expand(sampling.num_samples, -1)

    def _text(self, generation: _Generation) -> TextBuilder:
        sampling = generation.sampling
        return TextBuilder(
            self.policy.fast_tokenizer, generation.prompt_ids, sampling.stop, keep_stop=sampling.keep_stop_in_text
        )

    def _decode(self, generation: _Generation) -> Tensor:
        tokens = torch.tensor([[sample.last_token] for sample in generation.samples])
        logits = self.policy.model(input_ids=tokens, past_key_values=generation.cache, use_cache=True).logits[:, -1]
        return logits.float()

    def _piece(self, sampling: Sampling, sample: _Sample, token: int, logprobs: TokenLogprobs | None) -> Piece:
        sample.last_token = token
        sample.num_tokens += 1
        is_end = token in self.policy.end_ids and not sampling.ignore_eos
        is_stop_token = is_end or token in sampling.stop_token_ids
        # A token that ends the text is not part of it.
        stop_string = sample.text.add(token) if not is_stop_token or sampling.keep_stop_in_text else None
        is_stopped = is_stop_token or stop_string is not None
        is_finished = is_stopped or sample.num_tokens >= sampling.max_tokens
        stop_token = token if is_stop_token and not (is_end and token == self.policy.end_ids[0]) else None
        return Piece(
            index=sample.index,
            text=sample.text.take(is_finished=is_finished),
            token_id=token,
            logprobs=logprobs,
            finish_reason="stop" if is_stopped else "length" if is_finished else None,
            stop_reason=stop_string if stop_string is not None else stop_token,
        )
