"""``python -m irlops.operator`` as a process of its own, against an API, an MLflow and a gateway that are played."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web

from support.kube_api import KubeApi
from support.surveyed_cluster import write_kubeconfig

REPOSITORY = Path(__file__).parents[2]


@dataclass
class OperatorProcess:
    """A running operator. ``metrics()`` is what Prometheus would read."""

    process: asyncio.subprocess.Process
    health_url: str
    metrics_url: str

    async def metrics(self) -> dict[str, float]:
        async with aiohttp.ClientSession() as session, session.get(self.metrics_url) as answer:
            lines = (line for line in (await answer.text()).splitlines() if not line.startswith("#"))
            return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    async def is_healthy(self) -> bool:
        try:
            async with aiohttp.ClientSession() as session, session.get(self.health_url) as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def until_healthy(self) -> None:
        for _ in range(600):
            if await self.is_healthy():
                return
            await asyncio.sleep(0.1)
        raise AssertionError("the operator never answered on /healthz")

    def rss_mib(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    async def stop(self) -> int:
        if self.process.returncode is None:
            self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), 30)


@asynccontextmanager
async def running_operator(
    api: KubeApi, folder: Path, *, identity: str = "operator-0", **changes: str
) -> AsyncIterator[OperatorProcess]:
    """The operator over HTTP; an MLflow that knows no model and a gateway that is never ready are beside it."""
    health, metrics = _free_port(), _free_port()
    async with api.serving() as url, _empty_mlflow() as tracking_uri:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("IRLOPS_", "MLFLOW_", "KUBERNETES_"))
        }
        environment |= {
            "PYTHONPATH": str(REPOSITORY / "platform"),
            "KUBECONFIG": str(write_kubeconfig(folder, url)),
            "MLFLOW_TRACKING_URI": tracking_uri,
            "IRLOPS_OPERATOR_NAMESPACE": api.namespace,
            "IRLOPS_OPERATOR_RELEASE": "irlops",
            "IRLOPS_OPERATOR_IDENTITY": identity,
            "IRLOPS_OPERATOR_LEASE_DURATION_S": "5",
            "IRLOPS_OPERATOR_GATEWAY_URL": "http://127.0.0.1:9",
            "IRLOPS_OPERATOR_GATEWAY_PAIR_CONFIG_MAP": "irlops-gateway-pair",
            "IRLOPS_OPERATOR_POLICY_RUNTIME": "irlops-policy-cpu",
            "IRLOPS_OPERATOR_CRITIC_RUNTIME": "irlops-critic-cpu",
            "IRLOPS_OPERATOR_CRITIC_PROTOCOL": "v2",
            "IRLOPS_OPERATOR_JOB_IMAGE": "localhost/irlops-jobs:0.1.0",
            "IRLOPS_OPERATOR_JOB_SERVICE_ACCOUNT": "irlops-job",
            "IRLOPS_OPERATOR_SERVING_SERVICE_ACCOUNT": "irlops-serving",
            "IRLOPS_OPERATOR_HEALTH_PORT": str(health),
            "IRLOPS_OPERATOR_METRICS_PORT": str(metrics),
            **changes,
        }
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "irlops.operator", env=environment)
        running = OperatorProcess(process, f"http://127.0.0.1:{health}/healthz", f"http://127.0.0.1:{metrics}/metrics")
        try:
            yield running
        finally:
            await running.stop()


@asynccontextmanager
async def _empty_mlflow() -> AsyncIterator[str]:
    async def nothing(_: web.Request) -> web.Response:
        said = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such model"}
        return web.json_response(said, status=404)

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", nothing)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]
