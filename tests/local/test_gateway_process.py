"""The gateway as a process: started as users start it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
ROOTS = os.pathsep.join(str(REPO / root) for root in ("platform", "jobs", "serving"))
UNREACHABLE = {"policy": {"url": "http://127.0.0.1:9"}, "critic": {"url": "http://127.0.0.1:9"}}
COMMAND = [sys.executable, "-m", "irlops_serving.gateway"]


def _environment():
    kept = {name: value for name, value in os.environ.items() if not name.startswith("IRLOPS_GATEWAY_")}
    return kept | {"PYTHONPATH": ROOTS}


def _config(tmp_path, **settings):
    path = tmp_path / "gateway.yaml"
    path.write_text(yaml.safe_dump({"pair": UNREACHABLE, "port": 0, **settings}))
    return path


def _run(*arguments):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], env=_environment(), capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def started(tmp_path):
    children = []

    def start(**settings):
        child = subprocess.Popen(
            [*COMMAND, "--config", str(_config(tmp_path, **settings))],
            env=_environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        children.append(child)
        for line in child.stderr:
            if (event := json.loads(line)).get("event") == "listening":
                threading.Thread(target=child.stderr.read, daemon=True).start()
                return child, event["url"]
        raise AssertionError(f"the gateway ended with {child.wait()}")

    yield start
    for child in children:
        child.kill()
        child.wait()


def _status(url):
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_it_starts_answers_and_ends_on_sigterm(started):
    child, url = started()
    assert (_status(f"{url}/healthz"), _status(f"{url}/readyz"), _status(f"{url}/docs")) == (200, 503, 200)
    child.send_signal(signal.SIGTERM)
    assert child.wait(30) == 0


def test_it_loads_no_weights_libraries(started):
    child, url = started()
    assert _status(f"{url}/healthz") == 200
    mapped = Path(f"/proc/{child.pid}/maps").read_text()
    assert "httptools" in mapped
    for library in ("libtorch", "vllm", "sklearn", "mlflow"):
        assert library not in mapped


def test_it_refuses_to_be_exposed_without_authentication(tmp_path):
    ended = _run("--config", _config(tmp_path), "--host", "0.0.0.0")
    assert ended.returncode == 2
    assert "neither auth.keys_file nor auth.oidc is set" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_in_use_is_said_in_one_message(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = _run("--config", _config(tmp_path), "--port", taken.getsockname()[1])
    assert ended.returncode == 2
    assert re.search(r"Can't listen on 127\.0\.0\.1:\d+: Address already in use. Choose another --port", ended.stderr)


def test_settings_that_are_missing_are_said_in_one_message(tmp_path):
    ended = _run("--config", tmp_path / "none.yaml")
    assert (ended.returncode, "Traceback" in ended.stderr) == (2, False)
    assert "is not there" in ended.stderr


def test_sighup_reads_the_files_again_at_once(started, tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text("keys: []")
    child, url = started(auth={"keys_file": str(keys)}, reload_interval_s=3600)
    digest = "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"  # SHA-256 of "key"
    keys.write_text(yaml.safe_dump({"keys": [{"name": "a", "sha256": digest}]}))
    child.send_signal(signal.SIGHUP)
    request = urllib.request.Request(f"{url}/v1/models", headers={"authorization": "Bearer key"})
    end = time.monotonic() + 20
    while _status(request) != 200:
        assert time.monotonic() < end
        time.sleep(0.05)
