"""Prometheus series. The gen_ai names are OpenTelemetry's, as Prometheus spells them; ours start with irlops_gateway.

Label values come from closed sets (routes, models, statuses, reasons), never from a request: clients can't make series.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)
RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
LOGITS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)


class Metrics:
    """Every series of one gateway, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._gen_ai()
        self._best_of_n()
        self._operation()

    def _gen_ai(self) -> None:
        labels = ("gen_ai_operation_name", "gen_ai_request_model")
        self.request_duration = self._histogram(
            "gen_ai_server_request_duration_seconds",
            "Whole requests, from the first byte read to the last sent.",
            (*labels, "http_response_status_code"),
            SECONDS,
        )
        self.token_usage = self._histogram(
            "gen_ai_client_token_usage",
            "Tokens of one request; every sampled candidate counts as output.",
            (*labels, "gen_ai_token_type"),
            TOKENS,
        )
        self.time_to_first_token = self._histogram(
            "gen_ai_server_time_to_first_token_seconds", "Until the first token left, on streams.", labels, SECONDS
        )
        self.time_per_output_token = self._histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Between tokens after the first, on streams.",
            labels,
            SECONDS,
        )

    def _best_of_n(self) -> None:
        self.candidates = self._histogram(
            "irlops_gateway_candidates", "Candidates of one reranked answer.", ("stage",), RANKS
        )
        self.reward_spread = self._histogram(
            "irlops_gateway_reward_spread",
            "Largest minus smallest candidate reward of one answer (logits).",
            (),
            LOGITS,
        )
        self.chosen_rank = self._histogram(
            "irlops_gateway_chosen_rank", "Rank by reward of the chosen candidate; 1 is the highest.", (), RANKS
        )
        self.agreement = self._histogram(
            "irlops_gateway_agreement", "Share of the candidates that give the chosen answer.", (), SHARES
        )
        self.degraded = self._counter(
            "irlops_gateway_degraded_answers", "Answers chosen with less than was asked for.", ("reason",)
        )
        self.stopped_early = self._counter("irlops_gateway_stopped_early", "Adaptive sampling that ended early.", ())

    def _operation(self) -> None:
        self.upstream_latency = self._histogram(
            "irlops_gateway_upstream_seconds", "Calls of policy and critic until their answer began.",
            ("upstream", "call"), SECONDS,
        )  # fmt: skip
        self.critic_latency = self._histogram(
            "irlops_gateway_critic_seconds", "Scoring calls until all rewards were there.", (), SECONDS
        )
        self.upstream_errors = self._counter(
            "irlops_gateway_upstream_errors", "Failed calls of policy and critic.", ("upstream", "kind")
        )
        self.retries = self._counter("irlops_gateway_upstream_retries", "Calls sent a second time.", ("upstream",))
        self.breaker_open = self._gauge(
            "irlops_gateway_breaker_open", "1 while calls of an upstream are refused without trying.", ("upstream",)
        )
        self.upstream_ready = self._gauge(
            "irlops_gateway_upstream_ready", "1 when the last probe was fine.", ("upstream",)
        )
        self.in_flight = self._gauge("irlops_gateway_in_flight", "Requests being answered.", ("kind",))
        self.tasks = self._gauge(
            "irlops_gateway_tasks", "Asyncio tasks at the last probe; grows without end when one is lost.", ()
        )
        self.queued = self._gauge("irlops_gateway_queued", "Requests waiting for a place.", ("kind",))
        self.refused = self._counter("irlops_gateway_refused", "Requests refused before any work.", ("reason",))
        self.cancelled = self._counter("irlops_gateway_cancelled", "Requests whose client left.", ())
        self.reloads = self._counter("irlops_gateway_reloads", "Keys and pairs read again.", ("what", "outcome"))
        self.pair = self._gauge(
            "irlops_gateway_pair_info", "1 for the pair that answers.", ("policy_version", "critic_version")
        )

    def _histogram(self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def render(self) -> bytes:
        """The text exposition of every series."""
        return generate_latest(self.registry)


M = TypeVar("M", bound=MetricWrapperBase)


@lru_cache(maxsize=4096)
def labelled(metric: M, *values: str) -> M:
    """``metric.labels(*values)`` without its lock and dictionary work on the hot path."""
    return metric.labels(*values)
