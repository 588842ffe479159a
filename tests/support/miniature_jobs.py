"""Training jobs so small that they take seconds, run in this process or as torchelastic workers of their own."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from irlops.contracts.jobs import JobEnvironment, parse_job

_DATA = {"name": "arithmetic", "num_train": 48, "num_dev": 8, "num_test": 8, "min_steps": 1, "max_steps": 2}
_MODEL = {"preset": "tiny", "max_length": 128}
_ROUNDS: dict[str, Any] = {
    "num_rounds": 4,
    "prompts_per_round": 4,
    "rollouts": {"samples_per_prompt": 3, "max_new_tokens": 12},
    "evaluate_every": 2,
    "evaluate_prompts": 8,
    "checkpoints": {"every": 2},
    "collapse": {"action": "warn"},
}
MINIATURES: dict[str, dict[str, Any]] = {
    "sft": {
        "num_steps": 6,
        "batch_size": 8,
        "evaluate_every": 6,
        "evaluate_prompts": 8,
        "checkpoints": {"every": 3},
        "optimizer": {"learning_rate": 0.003, "schedule": "linear"},
    },
    # Random weights solve nothing: with the expert in the group, and a critic of any spread, there is something to learn.
    "grpo": {
        **_ROUNDS,
        "policy": {"expert_in_group": True, "mask_truncated": False, "optimizer": {"learning_rate": 0.001}},
    },
    "airl": {
        **_ROUNDS,
        "critic": {
            "warmup_rounds": 1,
            "branch_warmup_updates": 1,
            "branch_updates_per_round": 1,
            "branch_batch_size": 4,
            "branches_per_expert": 8,
            "replay_capacity": 64,
            "replay_fraction": 0.5,
            # Any faster and all rewards of a question come out alike: their spread, which advantages divide by, is rounding.
            "optimizer": {"learning_rate": 0.001},
        },
        "reward": {"normalise": "running"},
        "policy": {
            "branches_per_sample": 4,
            "min_group_std": 1e-9,
            "mask_truncated": False,
            "optimizer": {"learning_rate": 0.001},
        },
    },
}


def miniature(kind: str, **changes: Any) -> dict[str, Any]:
    """The job file of a miniature run; ``changes`` are laid over it section by section."""
    document = {"kind": kind, "run_name": f"mini-{kind}", "data": _DATA, "model": _MODEL, **MINIATURES[kind]}
    return _merged(copy.deepcopy(document), changes)


def _merged(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(below.get(key), dict)
        below[key] = _merged(below[key], value) if both else value
    return below


def run_here(document: Mapping[str, Any], state_dir: Path) -> Path:
    """Run a job in this process as a group of one; its errors are raised. Returns its run folder."""
    job = parse_job(document, origin="the test's job")
    function: Callable[..., None] = getattr(import_module(f"irlops_jobs.{job.kind}"), job.kind)
    with _one_thread(), _restored_sigterm(), torch.random.fork_rng(devices=[]):
        function(job, JobEnvironment(state_dir=state_dir))
    return state_dir / job.run_name


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the workers, so that sums are added up in the same order
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _restored_sigterm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def sigterm_after(step: int, run_dir: Path) -> Iterator[None]:
    """Send SIGTERM to this process once the run has recorded ``step``."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            if recorded_steps(run_dir)[-1:] >= [step]:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@dataclass(frozen=True)
class Ended:
    """How a launched job ended."""

    code: int
    output: str


def launch(
    document: Mapping[str, Any],
    state_dir: Path,
    *,
    num_processes: int,
    sigterm_at: str | None = None,
    **environment: str,
) -> Ended:
    """``python -m irlops_jobs.launch`` with so many workers on this machine, as in a pod.

    Args:
        sigterm_at: send the launcher SIGTERM when this text is in its output.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    job_file = state_dir / f"{document['run_name']}.yaml"
    job_file.write_text(yaml.safe_dump(dict(document)))
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PET_", "MLFLOW_TRACKING"))} | {
        "IRLOPS_JOB_FILE": str(job_file),
        "IRLOPS_STATE_DIR": str(state_dir),
        "PET_NPROC_PER_NODE": str(num_processes),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        **environment,
    }
    command = [sys.executable, "-m", "irlops_jobs.launch"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        lines: list[str] = []
        try:
            for line in process.stdout or ():
                lines.append(line)
                if sigterm_at and sigterm_at in line:
                    process.send_signal(signal.SIGTERM)
                    sigterm_at = None
        finally:  # its workers follow it, also when pytest's timeout ends the test
            if process.poll() is None and sys.exc_info()[0]:
                process.kill()
    return Ended(process.returncode, "".join(lines))


def recorded(run_dir: Path) -> dict[int, dict[str, float]]:
    """metrics.jsonl by step; a step recorded twice is an error of the run."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    result: dict[int, dict[str, float]] = {}
    for row in rows:
        known = result.setdefault(row.pop("step"), {})
        assert not known.keys() & row.keys() - {"wall_s"}, f"recorded twice: {row}"
        known |= row
    return result


def recorded_steps(run_dir: Path) -> list[int]:
    """Steps in metrics.jsonl, while it is being written."""
    try:
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def weights(run_dir: Path, half: str = "policy") -> dict[str, Tensor]:
    """What a run exported."""
    return load_file(run_dir / half / "model.safetensors")


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    """Whether ``condition`` came true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
