"""A real MLflow store (SQLite) without a server, and a client whose connection breaks when told to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def empty_mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, made once: it takes seconds, copying the file does not."""
    from irlops.registry.client import open_client

    database = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    open_client(f"sqlite:///{database}").search_experiments(max_results=1)
    return database


@pytest.fixture
def tracking_uri(empty_mlflow_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tracking URI of its own for each test; MLFLOW_TRACKING_URI stays unset."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "mlflow"
    folder.mkdir()
    shutil.copy(empty_mlflow_database, folder / "mlflow.db")
    return f"sqlite:///{folder / 'mlflow.db'}"


class BreakingClient:
    """A real client through which calls pass, until ``breaks(name, arguments)`` says that the connection is gone.

    A fake of the network, not of MLflow: what arrived before stays in the store.
    """

    def __init__(self, client: Any, breaks: Callable[[str, tuple[Any, ...]], bool]) -> None:
        self._client, self._breaks = client, breaks

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if self._breaks(name, arguments):
                from mlflow.exceptions import MlflowException

                raise MlflowException(f"API request failed: connection refused ({name})")
            return method(*arguments, **options)

        return call
