"""The embedded MLflow server, and pairs and runs through its HTTP interface."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from irlops.contracts.pair import CRITIC_MODEL, POLICY_MODEL, Gate
from irlops.errors import ConfigError, StorageError, UnavailableError
from irlops.registry.aliases import aliases_of
from irlops.registry.client import find_tracking_uri, open_client
from irlops.registry.pairs import PairRegistry
from irlops.registry.server import MlflowServer, find_mlflow_server, start_mlflow_server
from irlops.registry.tracking import open_training_run
from irlops.registry.weights import fetch_pair
from support.mlflow_server import mlflow_server  # noqa: F401 - a fixture
from support.pair_folders import evaluation_body, write_pair

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning:mlflow")]


@pytest.fixture
def server(mlflow_server: MlflowServer) -> MlflowServer:  # noqa: F811
    return mlflow_server


def test_a_second_start_for_the_same_folder_takes_the_running_server(server: MlflowServer) -> None:
    again = start_mlflow_server(server.state_dir)
    assert (again.uri, again.is_ours) == (server.uri, False)
    again.stop()  # leaves a server alone that another one started
    assert find_mlflow_server(server.state_dir) is not None


def test_a_running_server_is_found_without_a_setting(server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert find_tracking_uri(server.state_dir) == server.uri


def test_a_port_in_use_is_one_clear_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Port {port} for the MLflow server can.t be taken"):
            start_mlflow_server(tmp_path, port=port)


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="can't be written"):
        start_mlflow_server(tmp_path / "file" / "mlflow")


def test_a_server_that_dies_while_it_starts_is_reported_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database at all, and longer than a header of one\n" * 9)
    with pytest.raises(UnavailableError, match=r"stopped while it started.*whole log: .*mlflow-server\.log"):
        start_mlflow_server(tmp_path)
    assert find_mlflow_server(tmp_path, healthy=False) is None


def test_only_this_machine_may_ask(server: MlflowServer) -> None:
    request = urllib.request.Request(
        f"{server.uri}/api/2.0/mlflow/experiments/search", headers={"Host": "evil.example"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    assert refused.value.code == 403
    assert {found.laddr.ip for found in listening(server)} == {"127.0.0.1"}


def test_a_pair_goes_through_its_whole_life(server: MlflowServer, tmp_path: Path) -> None:
    registry = PairRegistry(server.uri)
    pairs = [
        registry.register(*write_pair(tmp_path / f"run-{weights}", weights=weights), evaluation=evaluation_body())
        for weights in (1, 2)
    ]
    gate = Gate(metric="critic.auroc", minimum=0.75)
    versions = [pair.policy.version for pair in pairs]
    for pair in pairs:
        registry.promote(f"v{pair.policy.version}", gates=[gate])
    client = open_client(server.uri)
    assert aliases_of(client, POLICY_MODEL)["champion"] == versions[1]
    assert aliases_of(client, CRITIC_MODEL)["champion"] == pairs[1].critic.version
    assert registry.rollback().policy.version == versions[0]
    assert fetch_pair(registry.resolve("champion"), tmp_path, server.uri).critic.weights_digest == (
        pairs[0].critic.weights_digest
    )


def test_weights_are_copied_as_files_and_not_through_the_server(server: MlflowServer, tmp_path: Path) -> None:
    pair = PairRegistry(server.uri).register(*write_pair(tmp_path / "run", weights=3))
    assert pair.policy.local_path is not None
    assert pair.policy.local_path.is_relative_to(server.state_dir / "artifacts")
    assert (pair.policy.local_path / "model.safetensors").exists()


@pytest.mark.parametrize("uri", ["pvc://state/run/policy", "s3://bucket/run/policy", "hf://owner/model:abc"])
def test_the_server_takes_weights_by_uri(server: MlflowServer, tmp_path: Path, uri: str) -> None:
    policy, critic = write_pair(tmp_path / "run", weights=4)
    pair = PairRegistry(server.uri).register(policy, critic, policy_uri=uri, critic_uri=uri)
    assert pair.policy.uri == uri


def promote_repeatedly(uri: str, version: int, times: int) -> None:
    registry = PairRegistry(uri)
    for _ in range(times):
        registry.promote(f"v{version}")


def test_two_processes_that_promote_at_once_leave_one_whole_champion(server: MlflowServer, tmp_path: Path) -> None:
    registry = PairRegistry(server.uri)
    pairs = [registry.register(*write_pair(tmp_path / f"run-{weights}", weights=weights)) for weights in (5, 6)]
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=promote_repeatedly, args=(server.uri, pair.policy.version, 5)) for pair in pairs]
    for process in others:
        process.start()
    for process in others:
        process.join(60)
    assert [process.exitcode for process in others] == [0, 0]
    assert registry.problems() == []
    assert registry.resolve("champion").policy.version in {pair.policy.version for pair in pairs}


def test_training_goes_on_while_the_server_stands_still(server: MlflowServer, tmp_path: Path) -> None:
    run = open_training_run(tmp_path, experiment="irlops", run_name="airl", tracking_uri=server.uri)
    assert run.flush()
    workers = psutil.Process(server.record.pid).children(recursive=True)
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)
    try:
        started = time.monotonic()
        for step in range(200):
            run.log_metrics({"loss": 1 / (step + 1)}, step=step)
        assert time.monotonic() - started < 10  # whoever waited for the server would wait for ever
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGCONT)
    run.finish()
    history = open_client(server.uri).get_metric_history(run.run_id or "", "loss")
    assert [metric.step for metric in history] == list(range(200))


def test_the_server_runs_without_telemetry_and_without_our_credentials(server: MlflowServer) -> None:
    environment = psutil.Process(server.record.pid).environ()
    assert (environment["MLFLOW_DISABLE_TELEMETRY"], environment["DO_NOT_TRACK"]) == ("true", "true")
    assert not [name for name in environment if name.startswith("MLFLOW_TRACKING")]
    assert os.getpid() == psutil.Process(server.record.pid).ppid()


def listening(server: MlflowServer) -> list:
    processes = psutil.Process(server.record.pid).children(recursive=True)
    return [
        connection
        for process in processes
        for connection in process.connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
