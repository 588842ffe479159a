"""``python -m irlops.operator``: what the chart's Deployment runs. OperatorSettings come from the environment."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import kopf
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from irlops.cluster.api import JSON, Answer, Body, Connection, HttpTransport, KubernetesApi, Params, Transport
from irlops.contracts.exit_codes import ExitCode, exit_code_for
from irlops.contracts.operator import FIELD_MANAGER, OperatorSettings, load_operator_settings
from irlops.errors import ConfigError, IrlopsError
from irlops.operator.controller import Controller, kopf_settings
from irlops.operator.gateway import HttpGateway
from irlops.operator.leader import Leader
from irlops.operator.metrics import OperatorMetrics
from irlops.operator.observing import Eyes
from irlops.operator.reconciler import Reconciler
from irlops.operator.registry import MlflowRegistry, RestClient
from irlops.operator.webhook import MAX_BODY_BYTES, PATH, handler, keep_registered

_log = logging.getLogger("irlops.operator")

TOKEN_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


class FencedTransport:
    """Lets no write through once the Lease isn't surely ours: a call may have waited while it was lost."""

    def __init__(self, inner: Transport, may_write: Callable[[], bool]) -> None:
        self._inner, self._may_write = inner, may_write

    async def send(
        self, method: str, path: str, params: Params, body: Body | None = None, content_type: str = JSON
    ) -> Answer:
        """As the inner one."""
        if method != "GET" and not self._may_write():
            raise ConnectionError("this process no longer holds the Lease")
        return await self._inner.send(method, path, params, body, content_type)


def find_cluster() -> tuple[Connection, kopf.ConnectionInfo]:
    """The cluster that this pod runs in, or the one that KUBECONFIG names.

    Raises:
        ConfigError: there is neither.
    """
    settings = kopf_settings()
    inside = kopf.login_with_service_account(settings=settings)
    found = inside or kopf.login_with_kubeconfig(settings=settings)
    if found is None:
        raise ConfigError("There is no cluster: no service account is mounted, and KUBECONFIG is not set.")
    tls = found.as_ssl_context() if found.server.startswith("https") else None
    token_file = TOKEN_FILE if inside is not None else None
    return Connection(found.server, found.as_http_headers(), tls, token_file), found


async def run_operator(settings: OperatorSettings, stop: asyncio.Event) -> None:
    """Until ``stop``: stand by, lead, and leave when the Lease is lost."""
    metrics = OperatorMetrics()
    connection, login = find_cluster()
    async with HttpTransport(connection) as transport:
        plain = KubernetesApi(transport, settings.namespace, field_manager=FIELD_MANAGER, on_write=metrics.wrote)
        leader = Leader(
            plain, name=settings.lease_name, identity=settings.identity, duration_s=settings.lease_duration_s
        )
        fenced = FencedTransport(transport, lambda: leader.is_leader)
        api = KubernetesApi(fenced, settings.namespace, field_manager=FIELD_MANAGER, on_write=metrics.wrote)
        registry = MlflowRegistry(settings.tracking_uri)
        controller = Controller(api, registry, settings, metrics)
        eyes = Eyes(api, registry, HttpGateway(settings.gateway_url), settings)
        reconciler = Reconciler(api, eyes, registry, settings, metrics, owner=controller.gateway_owner)
        async with _answering(settings, metrics, controller):
            try:
                await _lead(leader, metrics, stop, lambda: _work(controller, reconciler, login, settings, stop))
            finally:
                metrics.is_leader.set(0)
                await leader.step_down()


async def _work(
    controller: Controller,
    reconciler: Reconciler,
    login: kopf.ConnectionInfo,
    settings: OperatorSettings,
    stop: asyncio.Event,
) -> None:
    """What the holder of the Lease does."""
    registering: asyncio.Task[None] | None = None
    if settings.webhook_secret and settings.webhook_url:
        registering = asyncio.create_task(
            keep_registered(
                RestClient(settings.tracking_uri),
                name=f"irlops-{settings.namespace}-{settings.release}",
                url=settings.webhook_url,
                secret=settings.webhook_secret.get_secret_value(),
                retry_s=settings.registry_poll_s,
            )
        )
    try:
        await controller.run(reconciler, login, stop)
    finally:
        if registering is not None:
            registering.cancel()


async def _lead(leader: Leader, metrics: OperatorMetrics, stop: asyncio.Event, work: Callable[[], Any]) -> None:
    """Renew while working; a lost Lease ends the process, and its successor begins with a clean memory."""
    working: asyncio.Task[Any] | None = None
    stopping = asyncio.create_task(stop.wait())
    try:
        while not stop.is_set():
            leads = await leader.try_to_lead()
            metrics.is_leader.set(int(leads))
            if leads and working is None:
                _log.info("This process holds the Lease and begins.")
                working = asyncio.create_task(work())
            if working is not None and not leads:
                raise ConnectionError("The Lease was lost; another operator may have begun. This one starts anew.")
            waiting = {stopping} | ({working} if working else set())
            await asyncio.wait(waiting, timeout=leader.next_try_s, return_when=asyncio.FIRST_COMPLETED)
            if working is not None and working.done():
                working.result()
    finally:
        begun = [task for task in (stopping, working) if task is not None]
        for task in begun:
            task.cancel()
        await asyncio.gather(*begun, return_exceptions=True)


@asynccontextmanager
async def _answering(
    settings: OperatorSettings, metrics: OperatorMetrics, controller: Controller
) -> AsyncIterator[None]:
    """/healthz, /metrics and MLflow's webhook, each on its port; standbys are healthy too."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="stuck", status=503) if controller.is_stuck else web.Response(text="ok")

    async def series(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    runners = [
        await _serve(settings.health_port, [web.get("/healthz", healthz)]),
        await _serve(settings.metrics_port, [web.get("/metrics", series)]),
    ]
    if settings.webhook_secret:
        nudged = handler(settings.webhook_secret.get_secret_value(), controller.registry_moved.set)
        runners.append(await _serve(settings.webhook_port, [web.post(PATH, nudged)]))
    try:
        yield
    finally:
        for runner in runners:
            await runner.cleanup()


async def _serve(port: int, routes: Sequence[web.RouteDef]) -> web.AppRunner:
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.add_routes(routes)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", port).start()  # noqa: S104 - probes and Prometheus come from outside the pod
    return runner


async def _run_until_signalled(settings: OperatorSettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await run_operator(settings, stop)


def main() -> int:
    """Run the operator; the exit code says how it ended."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        settings = load_operator_settings()
        logging.basicConfig(
            level=settings.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
        )
        logging.getLogger("kopf").setLevel(logging.WARNING)
        asyncio.run(_run_until_signalled(settings))
    except IrlopsError as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        return int(exit_code_for(error))
    except ConnectionError as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        return int(ExitCode.UNAVAILABLE)
    return int(ExitCode.OK)


if __name__ == "__main__":
    sys.exit(main())
