"""A real MLflow calls the operator when an alias moves, as the chart sets both up."""

import asyncio
import base64
import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from aiohttp import web

from irlops.contracts.pair import POLICY_MODEL
from irlops.operator.controller import Controller
from irlops.operator.metrics import OperatorMetrics
from irlops.operator.registry import MlflowRegistry, RestClient
from irlops.operator.webhook import PATH, handler, register
from support.kube_api import KubeApi
from support.kube_world import SETTINGS, pipeline

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning:mlflow")]

SECRET = "not-a-real-secret"


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory):
    """An MLflow with the chart's settings for webhooks."""
    folder = tmp_path_factory.mktemp("mlflow-webhook")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if "MLFLOW_" not in name} | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": base64.b64encode(b"k" * 32).decode(),
    }
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder)]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_healthy(url, server, folder / "log")
            yield url
        finally:
            server.terminate()
            server.wait(20)


def _wait_healthy(url, server, log):
    end = time.monotonic() + 120
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=2):
            return
        time.sleep(0.2)
    raise AssertionError(f"MLflow did not come up:\n{log.read_text()[-3000:]}")


@contextlib.asynccontextmanager
async def listening(controller: Controller):
    """The operator's webhook port; its address."""
    app = web.Application()
    app.router.add_post(PATH, handler(SECRET, controller.registry_moved.set))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}{PATH}"
    finally:
        await runner.cleanup()


async def test_a_moved_alias_is_looked_at_long_before_the_next_poll(tracking_uri):
    from mlflow import MlflowClient

    mlflow = MlflowClient(tracking_uri, tracking_uri)
    mlflow.create_registered_model(POLICY_MODEL)
    version = mlflow.create_model_version(POLICY_MODEL, "s3://bucket/weights", await_creation_for=0).version
    settings = SETTINGS.model_copy(update={"registry_poll_s": 3600.0})
    controller = Controller(KubeApi("team-a"), MlflowRegistry(tracking_uri), settings, OperatorMetrics())
    await controller.seen_pipeline("ADDED", pipeline())
    await controller.queue.done(await asyncio.wait_for(controller.queue.take(), 20))  # it is new
    async with listening(controller) as url:
        await asyncio.to_thread(register, RestClient(tracking_uri), name="irlops", url=url, secret=SECRET)
        polling = asyncio.create_task(controller.poll_registry())
        try:
            await controller.queue.done(await asyncio.wait_for(controller.queue.take(), 20))  # the first poll
            await asyncio.to_thread(mlflow.set_registered_model_alias, POLICY_MODEL, "champion", version)
            assert await asyncio.wait_for(controller.queue.take(), 20) == "tiny"
        finally:
            polling.cancel()
