"""A pair behind its gateway on this machine: one answer, clear failures, and nothing left alive."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import torch
from transformers import LlamaForTokenClassification

from irlops.errors import ConfigError, PairError, UnavailableError
from irlops.local.serve import Ports, ServedPair, serve_pair, stop_released
from support.servers import descendants_of, wait_until_gone
from support.tiny_models import save_tiny_critic, save_tiny_policy
from support.trace_collector import Received, trace_collector

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pair_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    save_tiny_policy(folder / "policy")
    save_tiny_critic(folder / "critic")
    calibration = {"schema": 1, "aggregation": "min", "gamma": 0.9, "temperature": 1.0, "bias": 0.0}
    (folder / "critic" / "calibration.json").write_text(json.dumps(calibration))
    return folder


@pytest.fixture(scope="module")
def collected() -> Iterator[Received]:
    """Spans of all servers: where the gateway's traces go is said, the others' follows."""
    with trace_collector() as (url, received), pytest.MonkeyPatch.context() as environment:
        environment.setenv("IRLOPS_GATEWAY_OTLP_ENDPOINT", url)
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        yield received


@pytest.fixture(scope="module")
def served(pair_dir: Path, collected: Received) -> Iterator[ServedPair]:
    with serve_pair(
        pair_dir / "policy",
        pair_dir / "critic",
        backend="transformers",
        versions=("7", "8"),
        log_dir=pair_dir / "logs",
    ) as servers:
        yield servers.wait_until_ready(timeout_s=200)


def _ask(url: str, headers: dict[str, str] | None = None) -> dict:
    body = {
        "model": "reranked",
        "messages": [{"role": "user", "content": "2+2"}],
        "max_tokens": 8,
        "seed": 0,
        "rerank": {"candidates": 3, "selector": "reward", "return_candidates": True},
    }
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["rerank"]


def test_the_gateway_answers_with_the_candidate_the_critic_rewards_most(served: ServedPair):
    rerank = _ask(served.urls.gateway)
    rewards = [candidate["reward"] for candidate in rerank["candidates"]]
    assert (rerank["degraded"], rerank["candidates_scored"]) == (None, 3)
    assert rerank["chosen_index"] == rewards.index(max(rewards))


def test_answers_name_the_pair_and_use_its_calibration(served: ServedPair):
    rerank = _ask(served.urls.gateway)
    assert rerank["pair"] == {"policy_version": "7", "critic_version": "8"}
    assert rerank["aggregation"] == "min"  # the critic's calibration.json


def test_all_three_servers_report_their_part_of_one_trace(served: ServedPair, collected: Received):
    trace = "0af7651916cd43dd8448eb211c80319c"
    _ask(served.urls.gateway, {"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
    expected = {
        ("irlops-gateway", "gateway.reranked"),
        ("irlops-policy", "chat policy"),
        ("irlops-critic", "score critic"),
    }
    deadline = time.monotonic() + 20
    while not expected <= (arrived := {(s, name) for s, name, of in collected if of == trace}):
        assert time.monotonic() < deadline, arrived
        time.sleep(0.1)


def test_nothing_listens_beyond_this_machine(served: ServedPair):
    pids = {pid for process in served.processes for pid in descendants_of(process.guard_process.pid)}
    listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid in pids]
    assert len(listening) >= 3
    assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}


def test_progress_says_when_each_server_became_ready(served: ServedPair):
    status = served.status()
    assert [(server.name, server.is_ready) for server in status] == [
        ("policy", True),
        ("critic", True),
        ("gateway", True),
    ]
    assert all(0 < server.elapsed_s < 200 for server in status)


def test_a_server_that_dies_is_reported_with_its_last_lines_and_not_restarted(served: ServedPair):
    policy = served.processes[0]
    command = next(child for child in psutil.Process(policy.guard_process.pid).children())
    command.kill()
    with pytest.raises(
        UnavailableError, match=r"The policy server has ended \(killed by SIGKILL\)(.|\n)*Serving policy on"
    ):
        served.wait()


def test_a_port_in_use_is_refused_before_anything_starts(pair_dir: Path, tmp_path: Path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ports = Ports(gateway=listener.getsockname()[1])
        with pytest.raises(ConfigError, match="for the gateway can't be taken"):
            serve_pair(pair_dir / "policy", pair_dir / "critic", ports=ports, log_dir=tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


def test_one_port_for_two_servers_is_refused(pair_dir: Path, tmp_path: Path):
    free = socket.create_server(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()
    with pytest.raises(ConfigError, match="asked for twice"):
        serve_pair(pair_dir / "policy", pair_dir / "critic", ports=Ports(port, port), log_dir=tmp_path)


def test_two_halves_swapped_are_refused_before_anything_starts(pair_dir: Path, tmp_path: Path):
    with pytest.raises(PairError, match="Were the two folders swapped"):
        serve_pair(pair_dir / "critic", pair_dir / "policy", log_dir=tmp_path)


def test_a_critic_that_cant_be_loaded_ends_the_start_with_its_own_words(pair_dir: Path, tmp_path: Path):
    broken = save_tiny_critic(tmp_path / "critic")
    model = LlamaForTokenClassification.from_pretrained(broken)
    torch.nn.init.constant_(model.score.weight, float("nan"))
    model.save_pretrained(broken)
    with (
        serve_pair(pair_dir / "policy", broken, backend="transformers", log_dir=tmp_path / "logs") as servers,
        pytest.raises(ConfigError, match=r"(?s)The critic server has ended \(exit code 2\).*not finite numbers"),
    ):
        servers.wait_until_ready(timeout_s=100)
    assert all(not process.is_running for process in servers.processes)


def test_an_owner_killed_during_the_start_leaves_nothing_alive(pair_dir: Path, tmp_path: Path):
    program = f"""
import time
from pathlib import Path
from irlops.local.serve import serve_pair
pair = Path({str(pair_dir)!r})
serve_pair(pair / "policy", pair / "critic", backend="transformers", log_dir=Path({str(tmp_path)!r}))
print("started", flush=True)
time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"started\n"
    deadline = time.monotonic() + 30
    while len(everyone := descendants_of(owner.pid)) < 7 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(everyone) == 7  # the owner, three guards, three servers
    time.sleep(1)  # let the servers get under way
    owner.kill()
    owner.communicate()
    assert wait_until_gone(everyone) == set()


def test_the_command_serves_a_folder_until_ctrl_c(pair_dir: Path, tmp_path: Path):
    command = [sys.executable, "-m", "irlops.cli.main", "serve", "--pair", str(pair_dir), "--port", "0"]
    environment = {**os.environ, "IRLOPS_HOME": str(tmp_path)}
    process = subprocess.Popen(
        [*command, "--policy-backend", "transformers"],
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "stderr").open("w"),
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(5)]
    assert lines[1].split()[0] == "Gateway", (lines, (tmp_path / "stderr").read_text())
    assert _ask(lines[1].split()[1])["candidates_scored"] == 3
    everyone = descendants_of(process.pid)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    process.stdout.close()
    assert wait_until_gone(everyone) == set()


def test_released_servers_stay_until_they_are_stopped_by_their_folder(pair_dir: Path, tmp_path: Path):
    servers = serve_pair(pair_dir / "policy", pair_dir / "critic", backend="transformers", log_dir=tmp_path)
    guards = {process.guard_process.pid for process in servers.processes}
    while any(len(descendants_of(guard)) < 2 for guard in guards):
        time.sleep(0.05)  # a guard that has started its server listens to signals
    everyone = set().union(*map(descendants_of, guards))
    servers.release()
    servers.stop()
    assert wait_until_gone(guards, timeout_s=0.5) == guards
    assert stop_released(tmp_path)
    # This very process is still their parent, and the first to be able to collect them.
    for guard in guards:
        os.waitpid(guard, 0)
    assert wait_until_gone(everyone) == set()
    assert not stop_released(tmp_path)
