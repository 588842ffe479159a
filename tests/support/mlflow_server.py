"""One real embedded MLflow server for all tests that want one: starting it takes ten seconds."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from irlops.registry.server import MlflowServer, start_mlflow_server


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """Running and healthy; nothing of it is left at the end."""
    server = start_mlflow_server(tmp_path_factory.mktemp("mlflow-server"))
    guard = psutil.Process(server.record.pid)
    processes = [guard, *guard.children(recursive=True)]
    yield server
    server.stop()
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert alive == []
