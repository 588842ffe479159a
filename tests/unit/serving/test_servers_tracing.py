"""Policy and critic add their span to the trace of the request that the gateway got."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from kserve import InferInput, InferRequest
from kserve.errors import InvalidInput
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from irlops_serving.critic.server import CriticModel, CriticServerSettings
from irlops_serving.gateway.tracing import traced_with
from irlops_serving.policy.app import PolicyRoutes
from irlops_serving.policy.checkpoint import load_policy
from irlops_serving.policy.engine import Engine
from irlops_serving.tracing import ServerTracer, exporting_processor, make_server_tracer, provider_with
from support.gateway_rig import QUESTION, RIGHT, rig
from support.tiny_models import save_tiny_critic, save_tiny_policy

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
CHAT = "/v1/chat/completions"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter: InMemorySpanExporter) -> ServerTracer:
    return ServerTracer(provider_with(SimpleSpanProcessor(exporter), "irlops-test"))


@pytest.fixture
def critic(tmp_path: Path, tracer: ServerTracer) -> CriticModel:
    model = CriticModel(CriticServerSettings(model_dir=save_tiny_critic(tmp_path / "critic")), tracer)
    model.load()
    return model


@pytest.fixture
def policy(tmp_path: Path, tracer: ServerTracer) -> Iterator[httpx.AsyncClient]:
    engine = Engine(load_policy(save_tiny_policy(tmp_path / "policy")))
    transport = httpx.ASGITransport(PolicyRoutes(engine, "policy", tracer).app())
    yield httpx.AsyncClient(transport=transport, base_url="http://policy")
    engine.stop()


def _request(token_ids: list[int], lengths: list[int]) -> InferRequest:
    named = {"token_ids": token_ids, "lengths": lengths}
    return InferRequest("critic", [InferInput(name, [len(data)], "INT64", data) for name, data in named.items()])


def _spans(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


async def test_gateway_policy_and_critic_share_one_trace(
    exporter: InMemorySpanExporter, policy: httpx.AsyncClient, critic: CriticModel
) -> None:
    body = {"model": "reranked", "messages": QUESTION, "rerank": {"candidates": 2, "selector": "reward"}}
    async with rig({"solutions": [RIGHT]}, tracer=traced_with(SimpleSpanProcessor(exporter))) as r:
        await r.post(CHAT, body, headers=CALLER)
        # What the gateway sent to its upstreams reaches the real servers.
        sent = {"traceparent": r.policy.headers[0]["traceparent"]}
        await policy.post(CHAT, json={"messages": QUESTION, "max_tokens": 2}, headers=sent)
        await critic.predict(_request([1, 3], [2]), headers=r.critic.headers[0])
    spans = _spans(exporter)
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {TRACE}
    for server, client in (("chat policy", "policy.sample"), ("score critic", "critic.score")):
        parent = spans[server].parent
        assert parent is not None
        assert parent.span_id == spans[client].context.span_id
        assert spans[server].kind.name == "SERVER"


async def test_the_critics_span_counts_items_and_tokens(exporter: InMemorySpanExporter, critic: CriticModel) -> None:
    await critic.predict(_request([1, 3, 50, 9, 8], [3, 2]), headers=CALLER)
    attributes = _spans(exporter)["score critic"].attributes
    assert attributes == {
        "gen_ai.operation.name": "score",
        "gen_ai.request.model": "critic",
        "irlops.batch_items": 2,
        "gen_ai.usage.input_tokens": 5,
    }


async def test_a_refused_request_is_a_span_that_failed(exporter: InMemorySpanExporter, critic: CriticModel) -> None:
    with pytest.raises(InvalidInput):
        await critic.predict(_request([1, 3], [3]))
    span = _spans(exporter)["score critic"]
    assert (span.status.status_code.name, (span.attributes or {})["error.type"]) == ("ERROR", "InvalidInput")
    assert span.parent is None  # nobody's trace, so one of its own


@pytest.mark.parametrize("stream", [False, True])
async def test_the_policys_span_counts_samples_and_tokens(
    exporter: InMemorySpanExporter, policy: httpx.AsyncClient, stream: bool
) -> None:
    body = {"prompt": [5, 6, 7], "n": 2, "max_tokens": 4, "ignore_eos": True, "stream": stream}
    await policy.post("/v1/completions", json=body, headers=CALLER)
    attributes = _spans(exporter)["text_completion policy"].attributes or {}
    assert attributes["irlops.batch_items"] == attributes["gen_ai.request.choice.count"] == 2
    assert attributes["gen_ai.usage.input_tokens"] == 3
    assert attributes["gen_ai.usage.output_tokens"] == 8  # two samples of four tokens


def test_without_an_endpoint_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert exporting_processor() is None
    with make_server_tracer("irlops-critic").request("score critic", CALLER, {}) as facts:
        assert facts == {}
