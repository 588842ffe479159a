"""What is said to the critic: token ids in, one reward per solution token out, over either protocol."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from irlops_serving.gateway.errors import ApiError
from irlops_serving.gateway.metrics import Metrics
from irlops_serving.gateway.settings import CriticSettings
from irlops_serving.gateway.tracing import Tracer
from irlops_serving.gateway.upstream import Upstream


@dataclass(frozen=True, slots=True)
class TokenizedSolution:
    """What the critic reads. Made from a sampled candidate or by tokenizing a pasted solution.

    Example: ``TokenizedSolution(prompt_ids=(1, 2), solution_ids=(3, 4, 5))`` gets three rewards.
    """

    prompt_ids: tuple[int, ...]
    solution_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.solution_ids)


class CriticClient:
    """Scores solutions."""

    def __init__(
        self, upstream: Upstream, settings: CriticSettings, limit_s: float, metrics: Metrics, tracer: Tracer
    ) -> None:
        self.upstream, self._settings, self._limit_s = upstream, settings, limit_s
        self._metrics, self._tracer = metrics, tracer
        self._call = self._call_v2 if settings.protocol == "v2" else self._call_vllm

    async def score(self, solutions: Sequence[TokenizedSolution]) -> list[list[float]]:
        """Rewards (raw logits) of each solution's tokens, in order.

        Raises:
            ApiError: the critic does not answer, or refuses (a sequence beyond its context).
        """
        rewards: list[list[float]] = []
        for batch in self._batches(solutions):
            rewards += await self._score_batch(batch)
        return rewards

    async def ready(self) -> bool:
        """Whether the critic says that its model is loaded."""
        path = f"/v2/models/{self._settings.model}/ready" if self._settings.protocol == "v2" else "/health"
        return (await self.upstream.get(path, self._limit_s)).status == 200

    def _batches(self, solutions: Sequence[TokenizedSolution]) -> Iterator[list[TokenizedSolution]]:
        batch: list[TokenizedSolution] = []
        tokens = 0
        for solution in solutions:
            full = (
                len(batch) == self._settings.max_batch_items or tokens + len(solution) > self._settings.max_batch_tokens
            )
            if batch and full:
                yield batch
                batch, tokens = [], 0
            batch.append(solution)
            tokens += len(solution)
        if batch:
            yield batch

    async def _score_batch(self, batch: list[TokenizedSolution]) -> list[list[float]]:
        started_s = time.perf_counter()
        with self._tracer.span("critic.score", {"irlops.batch_items": len(batch)}) as headers:
            rewards = await self._call(batch, headers)
        self._metrics.critic_latency.observe(time.perf_counter() - started_s)
        if any(len(scores) != len(item) for scores, item in zip(rewards, batch, strict=True)):
            raise self._wrong("answered with another number of rewards than it was sent tokens")
        if not all(math.isfinite(score) for scores in rewards for score in scores):
            raise self._wrong("answered with rewards that are not finite")
        return [scores[len(item.prompt_ids) :] for scores, item in zip(rewards, batch, strict=True)]

    async def _call_v2(self, batch: list[TokenizedSolution], headers: dict[str, str] | None) -> list[list[float]]:
        ids = [token for item in batch for token in (*item.prompt_ids, *item.solution_ids)]
        lengths = [len(item) for item in batch]
        inputs = [
            {"name": "token_ids", "datatype": "INT64", "shape": [len(ids)], "data": ids},
            {"name": "lengths", "datatype": "INT64", "shape": [len(lengths)], "data": lengths},
        ]
        answer = await self._post(f"/v2/models/{self._settings.model}/infer", {"inputs": inputs}, headers)
        flat = _find_rewards(answer)
        if flat is None or len(flat) != len(ids):
            raise self._wrong("answered without one reward for each token it was sent")
        starts = [sum(lengths[:index]) for index in range(len(lengths))]
        return [flat[start : start + length] for start, length in zip(starts, lengths, strict=True)]

    async def _call_vllm(self, batch: list[TokenizedSolution], headers: dict[str, str] | None) -> list[list[float]]:
        body = {
            "model": self._settings.model,
            "task": "token_classify",
            # Without this vLLM answers with sigmoids, and their tails round to 0 and 1.
            "use_activation": False,
            "encoding_format": "float",
            "input": [[*item.prompt_ids, *item.solution_ids] for item in batch],
        }
        answer = await self._post("/pooling", body, headers)
        try:
            data = sorted(answer["data"], key=lambda item: item["index"])
            rewards = [[float(row[0] if isinstance(row, list) else row) for row in item["data"]] for item in data]
        except (KeyError, TypeError, ValueError, IndexError):
            raise self._wrong("answered without one reward for each token it was sent") from None
        if len(rewards) != len(batch):
            raise self._wrong("answered with another number of rewards than it was sent tokens")
        return rewards

    async def _post(self, path: str, body: dict[str, Any], headers: dict[str, str] | None) -> dict[str, Any]:
        reply = await self.upstream.post(
            path, orjson.dumps(body), call="score", limit_s=self._limit_s, idempotent=True, headers=headers
        )
        return self.upstream.parse(reply.body)

    def _wrong(self, what: str) -> ApiError:
        return self.upstream.not_understood(what)


def _find_rewards(answer: dict[str, Any]) -> list[float] | None:
    for output in answer.get("outputs") or []:
        if isinstance(output, dict) and output.get("name") == "rewards":
            data = output.get("data")
            if isinstance(data, list) and all(type(value) in (int, float) for value in data):
                return data
    return None
