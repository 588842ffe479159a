"""The application: routes, request ids, authentication, errors, metrics and the access log of every request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from irlops_serving.gateway.admission import Gate
from irlops_serving.gateway.agreement import BoundedAgreement
from irlops_serving.gateway.allowances import Allowances
from irlops_serving.gateway.auth import Authenticator
from irlops_serving.gateway.backends import Backends, Pairs
from irlops_serving.gateway.callers import Caller
from irlops_serving.gateway.certificate import ServedCertificate
from irlops_serving.gateway.errors import ApiError, ClientGone, internal, unknown_route, wrong_method
from irlops_serving.gateway.exchange import CancelWhenGone, Exchange, Receive, Scope, Send, Usage
from irlops_serving.gateway.logs import log_request, logger
from irlops_serving.gateway.metrics import Metrics, labelled
from irlops_serving.gateway.openapi import DOCS_HEADERS, docs_page, openapi_document
from irlops_serving.gateway.pages import Pages
from irlops_serving.gateway.passthrough import pass_through, stream_through
from irlops_serving.gateway.policy import CHAT, COMPLETIONS
from irlops_serving.gateway.reloading import Reloader
from irlops_serving.gateway.requests import CompletionRequest, read_completion
from irlops_serving.gateway.reranked import answer_stream, answer_whole, make_chooser, make_plan
from irlops_serving.gateway.rewards import read_rewards, score_items
from irlops_serving.gateway.settings import GatewaySettings
from irlops_serving.gateway.stream_rewards import stream_with_rewards
from irlops_serving.gateway.tracing import Tracer, make_tracer

Handler = Callable[[Exchange], Awaitable[None]]
MODELS = ("reranked", "policy", "critic")
PLAIN = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]
OPERATIONS = {CHAT: "chat", COMPLETIONS: "text_completion", "/v1/rewards": "rewards"}


class Gateway:
    """The ASGI application. ``Gateway(settings)`` is inert until its lifespan starts."""

    def __init__(
        self, settings: GatewaySettings, config_file: Path | None = None, tracer: Tracer | None = None
    ) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.tracer = tracer or make_tracer(settings.otlp_endpoint)
        self.draining = False
        self._logs_requests = settings.log_level in ("debug", "info")
        self.certificate: ServedCertificate | None = None
        """Set by the server that speaks TLS."""
        self._authenticator = Authenticator(settings.auth, self.metrics)
        self._allowances = Allowances(settings.limits)
        limits = settings.limits
        self._gates = {
            kind: Gate(kind, places, limits.max_queued, limits.queue_timeout_s, self.metrics)
            for kind, places in (("policy", limits.max_concurrent), ("reranked", limits.max_concurrent_reranked))
        }
        self._agreement = BoundedAgreement()
        self._pages = Pages()
        self._started_at = int(time.time())
        self._reloader = Reloader(self, config_file)
        self._openapi = openapi_document()
        self.pairs: Pairs
        self._routes: dict[str, dict[str, Handler]] = {
            CHAT: {"POST": self._complete},
            COMPLETIONS: {"POST": self._complete},
            "/v1/rewards": {"POST": self._reward},
            "/v1/models": {"GET": self._list_models},
            "/healthz": {"GET": self._health},
            "/readyz": {"GET": self._readiness},
            "/metrics": {"GET": self._show_metrics},
            "/openapi.json": {"GET": self._show_openapi},
            "/docs": {"GET": self._show_docs},
        }
        self._routes |= {f"/v1/models/{model}": {"GET": self._show_model} for model in MODELS}

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open connections and begin to watch files and servers."""
        self.pairs = Pairs(self.new_backends(self.settings), self.metrics)
        await self.pairs.current.probe()
        self._reloader.start()

    async def stop(self) -> None:
        """Close what ``start`` opened."""
        await self._reloader.stop()
        await self.pairs.current.close()
        self._agreement.close()
        self.tracer.close()

    def new_backends(self, settings: GatewaySettings) -> Backends:
        """Clients of the pair that ``settings`` name."""
        return Backends(settings, self.metrics, self.tracer)

    def reload_now(self) -> None:
        """Look at the key file, the certificate and the config file without waiting."""
        self._reloader.look()

    def reload_keys(self) -> None:
        """Read the key file again if it changed."""
        self._authenticator.reload_if_changed()

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self.start()
                except Exception as error:
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    raise
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    # --- every request ------------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            limits = self.settings.limits
            exchange = Exchange(scope, receive, send, limits.max_body_bytes, self.settings.timeouts.body_s)
            await self._answer(exchange)
        else:
            raise NotImplementedError(f"the gateway does not speak {scope['type']}")

    async def _answer(self, exchange: Exchange) -> None:
        try:
            await self._route(exchange)(exchange)
        except ApiError as error:
            await self._answer_error(exchange, error)
        except ClientGone:
            self.metrics.cancelled.inc()
            # nginx's status for it; nobody receives it.
            exchange.facts["client_gone"], exchange.status = True, exchange.status or 499
        except Exception:
            logger.exception("unhandled_error", request_id=exchange.request_id, path=exchange.path)
            await self._answer_error(exchange, internal())
        self._observe(exchange)
        self._log(exchange)

    async def _answer_error(self, exchange: Exchange, error: ApiError) -> None:
        await exchange.respond_error(error)
        if error.status >= 500 or error.status == 429:
            exchange.facts["message"] = str(error)

    def _route(self, exchange: Exchange) -> Handler:
        methods = self._routes.get(exchange.path)
        if methods is None:
            if exchange.method in ("GET", "HEAD") and self._pages.has(exchange.path):
                return self._pages.show
            return _raising(unknown_route(exchange.method, exchange.path))
        method = "GET" if exchange.method == "HEAD" else exchange.method
        handler = methods.get(method)
        if handler is None:
            exchange.response_headers.append((b"allow", ", ".join(methods).encode()))
            return _raising(wrong_method(exchange.method, exchange.path))
        return handler

    def _log(self, exchange: Exchange) -> None:
        if not self._logs_requests or exchange.path in ("/healthz", "/readyz", "/metrics"):
            return
        log_request(
            {
                "request_id": exchange.request_id,
                "caller": exchange.caller,
                "method": exchange.method,
                "path": exchange.path[:200],
                "status": exchange.status,
                "duration_ms": round((time.perf_counter() - exchange.started_s) * 1000, 2),
                **exchange.facts,
            }
        )

    async def _enter(self, exchange: Exchange) -> Caller:
        """Who calls, and whether they may call now."""
        if self.draining:
            exchange.response_headers.append((b"connection", b"close"))
        caller = await self._authenticator.authenticate(exchange.header(b"authorization"))
        exchange.caller = caller.name
        return caller

    async def _admit(self, exchange: Exchange, caller: Caller, *models: str) -> None:
        for model in models:
            if refusal := caller.refusal_of(model):
                raise refusal
        exchange.response_headers += await self._allowances.admit(caller)

    def _trace_headers(self, exchange: Exchange) -> dict[str, str]:
        """What goes on to policy and critic: the trace and the request id, nothing else of the client's."""
        headers = {"x-request-id": exchange.request_id}
        for name in (b"traceparent", b"tracestate"):
            value = exchange.header(name)
            if value is not None:
                headers[name.decode()] = value.decode("latin-1")
        return headers

    # --- completions --------------------------------------------------------------------------------------------

    async def _complete(self, exchange: Exchange) -> None:
        caller = await self._enter(exchange)
        request = read_completion(exchange.path, await exchange.read_body(), self.settings.limits)  # type: ignore[arg-type]
        exchange.facts["model"] = request.model
        # A stream with rewards asks the critic once a step: it needs the right to, and a place among those who do.
        with_rewards = request.stream_rewards is not None
        await self._admit(exchange, caller, request.model, *(["critic"] if with_rewards else []))
        gate = self._gates["reranked" if with_rewards else request.model]
        self.tracer.enter_request(self._trace_headers(exchange))
        try:
            with CancelWhenGone(exchange):
                async with gate, self.pairs.lease() as backends:
                    with self.tracer.span(f"gateway.{request.model}") as headers:
                        await self._answer_completion(exchange, request, backends, headers)
        finally:
            await self._charge(exchange, caller)

    async def _answer_completion(
        self, exchange: Exchange, request: CompletionRequest, backends: Backends, headers: dict[str, str] | None
    ) -> None:
        if request.model == "reranked":
            await self._answer_reranked(exchange, request, backends)
        elif request.stream_rewards is not None:
            await stream_with_rewards(exchange, request, request.stream_rewards, backends)
        elif request.stream:
            await self._stream(exchange, request, backends, headers)
        else:
            await pass_through(exchange, request, backends.policy, headers)

    async def _stream(
        self, exchange: Exchange, request: CompletionRequest, backends: Backends, headers: dict[str, str] | None
    ) -> None:
        times = await stream_through(exchange, request, backends.policy, headers)
        usage = exchange.usage
        labels = (OPERATIONS[exchange.path], request.model)
        labelled(self.metrics.time_to_first_token, *labels).observe(times.first_s - exchange.started_s)
        if usage.completion_tokens > 1:
            gap_s = (times.last_s - times.first_s) / (usage.completion_tokens - 1)
            labelled(self.metrics.time_per_output_token, *labels).observe(gap_s)

    async def _answer_reranked(self, exchange: Exchange, request: CompletionRequest, backends: Backends) -> None:
        plan = make_plan(request, self.settings.rerank, self.settings.limits, backends, exchange.started_s)
        chooser = make_chooser(plan, backends, self._agreement)
        if request.stream:
            keep_alive_s = self.settings.timeouts.keep_alive_s
            reranked = await answer_stream(exchange, request, backends, chooser, keep_alive_s)
        else:
            reranked = await answer_whole(exchange, request, backends, chooser)
        reranked.choice.observe(self.metrics)
        exchange.facts |= {
            "degraded": reranked.result.degraded,
            "candidates": reranked.result.candidates_sampled,
            "pair": reranked.result.pair.model_dump(),
        }

    async def _charge(self, exchange: Exchange, caller: Caller) -> None:
        """Count what was used, however the request ended: leaving before the end is no way around a budget."""
        await self._allowances.charge(caller, exchange.usage.total_tokens)

    def _observe(self, exchange: Exchange) -> None:
        model = exchange.facts.get("model")
        if model is None:
            return
        operation, usage = OPERATIONS[exchange.path], exchange.usage
        seconds = time.perf_counter() - exchange.started_s
        labelled(self.metrics.request_duration, operation, model, str(exchange.status)).observe(seconds)
        if usage.total_tokens:
            exchange.facts["tokens"] = usage.total_tokens
            labelled(self.metrics.token_usage, operation, model, "input").observe(usage.prompt_tokens)
            labelled(self.metrics.token_usage, operation, model, "output").observe(usage.completion_tokens)

    # --- rewards ------------------------------------------------------------------------------------------------

    async def _reward(self, exchange: Exchange) -> None:
        caller = await self._enter(exchange)
        request = read_rewards(await exchange.read_body())
        exchange.facts["model"] = "critic"
        await self._admit(exchange, caller, "critic")
        self.tracer.enter_request(self._trace_headers(exchange))
        try:
            with CancelWhenGone(exchange):
                async with self._gates["reranked"], self.pairs.lease() as backends:
                    with self.tracer.span("gateway.rewards"):
                        rewards = await score_items(request, backends)
                    exchange.usage = Usage(rewards.usage.prompt_tokens, rewards.usage.completion_tokens)
                    await exchange.respond_json(rewards.model_dump())
        finally:
            await self._charge(exchange, caller)

    # --- everything else ----------------------------------------------------------------------------------------

    async def _list_models(self, exchange: Exchange) -> None:
        caller = await self._enter(exchange)
        models = [self._describe(model) for model in MODELS if caller.refusal_of(model) is None]
        await exchange.respond_json({"object": "list", "data": models})

    async def _show_model(self, exchange: Exchange) -> None:
        caller = await self._enter(exchange)
        model = exchange.path.rpartition("/")[2]
        if refusal := caller.refusal_of(model):
            raise refusal
        await exchange.respond_json(self._describe(model))

    def _describe(self, model: str) -> dict[str, Any]:
        pair = self.pairs.current.versions.model_dump()
        return {"id": model, "object": "model", "created": self._started_at, "owned_by": "irlops", "pair": pair}

    async def _health(self, exchange: Exchange) -> None:
        await exchange.respond_json({"alive": True})

    async def _readiness(self, exchange: Exchange) -> None:
        ready, body = self.pairs.readiness()
        if self.draining:
            ready, body = False, body | {"ready": False, "draining": True}
        await exchange.respond_json(body, 200 if ready else 503)

    async def _show_metrics(self, exchange: Exchange) -> None:
        if self.settings.auth.protect_metrics:
            await self._enter(exchange)
        body = await asyncio.to_thread(self.metrics.render)
        await exchange.respond(200, body, PLAIN)

    async def _show_openapi(self, exchange: Exchange) -> None:
        await exchange.respond(200, self._openapi)

    async def _show_docs(self, exchange: Exchange) -> None:
        await exchange.respond(200, docs_page(), DOCS_HEADERS)


def _raising(error: ApiError) -> Handler:
    async def refuse(_: Exchange) -> None:
        raise error

    return refuse
