"""What the training benchmarks share: job files, runs of our jobs and of TRL in processes of their own, markdown tables."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from benchmarks.gateway_support import REPO, tool_environment

STATE_DIR = REPO / "out" / "bench" / "training"
TRL = ("--no-deps", "trl==1.16.0")
"""Without what it depends on: that is here already, and its torch would be a CUDA build."""
PROMPTS, SAMPLES, MAX_NEW_TOKENS = 8, 16, 60
NUM_TRAIN = 1024
KL_COEFFICIENT = 0.05
LEARNING_RATE = 1e-6
"""Of every policy that is timed: so small that samples keep the length they have after the warm start."""
START = "sft-start"


@dataclass(frozen=True)
class Run:
    """One run's rounds, its first and last left out.

    Example:
        ``Run(seconds=(1.1, 1.0), tokens_per_sample=41.3, parts={"rollouts": 0.5})``
    """

    seconds: tuple[float, ...]
    """Of each round."""
    tokens_per_sample: float
    parts: Mapping[str, float]
    """Mean seconds a round of its parts, where the job tells."""
    groups_left_out: float = 0.0
    """Mean groups a round that had no spread in their rewards: our jobs don't compute what would be zero, TRL does."""

    @property
    def samples_per_s(self) -> float:
        return PROMPTS * SAMPLES * len(self.seconds) / sum(self.seconds)


def recipe(name: str) -> dict[str, Any]:
    """The job document inside ``manifests/training/<name>.yaml``."""
    documents = yaml.safe_load_all((REPO / "manifests" / "training" / f"{name}.yaml").read_text())
    return yaml.safe_load(next(documents)["data"]["job.yaml"])


def reinforcement_document(kind: str, num_rounds: int, **critic: Any) -> dict[str, Any]:
    """The tiny recipe of ``grpo`` or ``airl`` at the compared size: one update a round, checks and saves at the end only.

    Args:
        critic: changes of an airl recipe's ``critic`` section.
    """
    document = recipe(f"{kind}-tiny")
    document |= {"run_name": f"bench-{kind}", "num_rounds": num_rounds, "prompts_per_round": PROMPTS}
    document["data"] |= {"num_train": NUM_TRAIN, "num_dev": 8}
    document["model"] |= {"policy_from": f"{START}/policy"}
    document["rollouts"] = {"samples_per_prompt": SAMPLES, "temperature": 1.0, "max_new_tokens": MAX_NEW_TOKENS}
    document |= {"evaluate_every": num_rounds, "evaluate_prompts": 8, "checkpoints": {"every": num_rounds}}
    document["collapse"] = {"action": "warn"}
    document["policy"] |= {"kl_coefficient": KL_COEFFICIENT, "updates_per_round": 1}
    optimizer = "adamw" if kind == "grpo" else document["policy"]["optimizer"]["name"]
    document["policy"]["optimizer"] = {"name": optimizer, "learning_rate": LEARNING_RATE}
    if kind == "airl":
        document["critic"] |= {"warmup_rounds": 0, "branch_warmup_updates": 1} | critic
    return document


def warm_start(num_steps: int) -> Path:
    """The weights that every side starts from: a short supervised run by our own job, kept between runs."""
    folder, marker = STATE_DIR / START, STATE_DIR / START / f"trained-{num_steps}-steps"
    if not marker.exists():
        document = recipe("sft-tiny") | {"run_name": START, "num_steps": num_steps}
        document["checkpoints"] = {"every": num_steps}
        _run_job(document, len(os.sched_getaffinity(0)))
        marker.touch()
    return folder / "policy"


def short_pair() -> Path:
    """Folder of a policy and a critic from two rounds of airl, made once: enough where only their speed counts."""
    folder = STATE_DIR / "bench-pair"
    if not (folder / "critic").exists():
        warm_start(560)
        _run_job(reinforcement_document("airl", 2) | {"run_name": folder.name}, len(os.sched_getaffinity(0)))
    return folder


def run_ours(kind: str, num_rounds: int, threads: int, **critic: Any) -> Run:
    """One run of the job as a process, read from its own record."""
    folder = _run_job(reinforcement_document(kind, num_rounds, **critic), threads)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    walls = {row["step"]: row["wall_s"] for row in rows}
    timed = [
        row for row in rows if 1 < row["step"] < num_rounds
    ]  # the last one waits for a check of held-out questions
    parts = {
        key.removeprefix("time/").removesuffix("_s"): statistics.mean(row[key] for row in timed)
        for key in timed[0]
        if key.startswith("time/")
    }
    return Run(
        tuple(walls[row["step"]] - walls[row["step"] - 1] for row in timed),
        statistics.mean(row["rollout/num_tokens"] for row in timed),
        parts,
        statistics.mean(row.get("policy/groups_without_spread", 0.0) for row in timed),
    )


def _run_job(document: dict[str, Any], threads: int) -> Path:
    folder = STATE_DIR / document["run_name"]
    shutil.rmtree(folder, ignore_errors=True)  # what is there would be resumed
    folder.mkdir(parents=True)
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", f"irlops_jobs.{document['kind']}"]
    run_logged(command, folder / "log.txt", threads, IRLOPS_JOB_FILE=str(file), IRLOPS_STATE_DIR=str(STATE_DIR))
    return folder


def trl_python() -> Path:
    """The interpreter of an environment that holds TRL and sees ours behind it: the same torch, the same transformers."""
    folder = tool_environment("trl", *TRL)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    link = folder / "lib" / version / "site-packages" / "irlops-environment.pth"
    link.write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin" / "python"


def run_trl(python: Path, variant: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], threads: int) -> Run:
    """One run of TRL's GRPOTrainer on ``rows`` (question, answer, prompt_ids), eight of them a step."""
    folder = STATE_DIR / "trl"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    settings = {
        "model": str(STATE_DIR / START / "policy"),
        "rows": list(rows),
        "prompts": PROMPTS,
        "samples": SAMPLES,
        "max_new_tokens": MAX_NEW_TOKENS,
        "kl_coefficient": KL_COEFFICIENT,
        "learning_rate": LEARNING_RATE,
        **variant,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    run_logged([str(python), "-m", "benchmarks.training_trl", str(folder)], folder / "log.txt", threads)
    result = json.loads((folder / "result.json").read_text())
    return Run(tuple(result["seconds"][1:-1]), statistics.mean(result["tokens_per_sample"][1:-1]), {})


def run_logged(command: Sequence[str], log_file: Path, threads: int, **environment: str) -> None:
    """Run to the end with ``threads`` torch threads.

    Raises:
        RuntimeError: it failed; the message ends with its last lines.
    """
    path = os.pathsep.join(str(REPO / root) for root in ("platform", "jobs", "."))
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_TRACKING", "PET_"))}
    environment = kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"} | environment
    with log_file.open("w") as log:
        code = subprocess.run(command, cwd=REPO, env=environment, stdout=log, stderr=log, check=False).returncode
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{log_file.read_text()[-3000:]}")


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table as the documentation holds it."""
    cells = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (list(columns), ["---"] * len(columns), *cells))


def spread(values: Sequence[float], form: str = ".0f") -> str:
    """Median, and smallest to largest, of the repetitions."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"
