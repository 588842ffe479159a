"""What every job has around its loop: the job file, the process group, the run's folder, data, tokens and records."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from irlops.contracts.jobs import Job, JobEnvironment
from irlops.errors import DataError, PreemptedError, StorageError
from irlops.registry.tracking import TrainingRun, open_training_run
from irlops_jobs.demonstrations.carriers import Demonstration, DemonstrationSet
from irlops_jobs.demonstrations.load import load_demonstrations
from irlops_jobs.distributed.runtime import Runtime, start_runtime
from irlops_jobs.models.prompts import encode_prompt

METRICS_FILE = "metrics.jsonl"


@dataclass
class Session:
    """One process's view of a running job.

    Example:
        ``with open_session(job, JobEnvironment()) as session: session.record(1, {"sft/loss": 2.3})``
    """

    job: Job
    environment: JobEnvironment
    runtime: Runtime
    tracking: TrainingRun
    started_at: float = field(default_factory=time.monotonic)

    @property
    def run_dir(self) -> Path:
        return self.environment.state_dir / self.job.run_name

    @cached_property
    def demonstrations(self) -> DemonstrationSet:
        return load_demonstrations(self.job.data, self.environment)

    def say(self, text: str) -> None:
        """One line for whoever follows the log; the first process speaks for all."""
        if self.runtime.is_main:
            print(text, flush=True)

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Keep numbers of one step, in metrics.jsonl and on the tracking server."""
        if not self.runtime.is_main:
            return
        row = {"step": step, "wall_s": round(time.monotonic() - self.started_at, 2), **values}
        try:
            with (self.run_dir / METRICS_FILE).open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise StorageError(
                f"Could not add to {self.run_dir / METRICS_FILE}: {error}. Free space and start again."
            ) from error
        self.tracking.log_metrics(values, step)

    @contextmanager
    def timed(self, name: str, into: dict[str, float]) -> Iterator[None]:
        """Seconds of a part of a round, added to ``into`` as ``time/<name>_s``."""
        start = time.perf_counter()
        yield
        into[f"time/{name}_s"] = into.get(f"time/{name}_s", 0.0) + time.perf_counter() - start

    def forget_after(self, step: int) -> None:
        """Drop rows of steps that a restart will do again, so that metrics.jsonl holds each step once."""
        path = self.run_dir / METRICS_FILE
        if self.runtime.is_main and path.exists():
            rows = [line for line in path.read_text().splitlines() if line.endswith("}")]
            kept = [line for line in rows if json.loads(line)["step"] <= step]
            path.write_text("".join(line + "\n" for line in kept))

    def stop_if_asked(self) -> None:
        """Raise once a SIGTERM has reached any process; call where a checkpoint has just been saved."""
        if self.runtime.stop_requested:
            raise PreemptedError(
                f"{self.job.run_name} was asked to stop and saved its state. Start the same job again to go on from there."
            )

    def log_data(self) -> None:
        """Record what trains, by digest, and say what was left out of it."""
        data = self.demonstrations
        if data.num_skipped:
            told = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in data.num_skipped.items())
            self.say(f"left out {sum(data.num_skipped.values())} rows of {data.name}: {told}")
        splits: tuple[tuple[Literal["train", "dev", "test"], tuple[Demonstration, ...]], ...]
        splits = (("train", data.train), ("dev", data.dev), ("test", data.test))
        for context, rows in splits:
            self.tracking.log_dataset(
                data.name,
                data.digests[context],
                source=self.job.data.source or data.name,
                num_rows=len(rows),
                context=context,
            )


@contextmanager
def open_session(job: Job, environment: JobEnvironment) -> Iterator[Session]:
    """Join the process group, make the run's folder and open its record; closes all of it again."""
    runtime = start_runtime()
    torch.manual_seed(job.seed)
    run_dir = environment.state_dir / job.run_name
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"Could not make {run_dir}: {error}. Set IRLOPS_STATE_DIR to a folder that can be written."
        ) from error
    tracking = TrainingRun()
    if runtime.is_main:
        tracking = open_training_run(run_dir, experiment=job.experiment, run_name=job.run_name)
    with tracking:
        if runtime.is_main:
            tracking.log_config(job)
        yield Session(job, environment, runtime, tracking)
    runtime.close()


@dataclass(frozen=True)
class EncodedDemonstration:
    """A demonstration in tokens.

    Example:
        ``EncodedDemonstration(prompt_ids=(1, 3, 40, 4), solution_ids=(50, 51, 2), demonstration=...)``
    """

    prompt_ids: tuple[int, ...]
    solution_ids: tuple[int, ...]
    demonstration: Demonstration


def encode_demonstration(
    tokenizer: PreTrainedTokenizerBase, demonstration: Demonstration, *, max_length: int
) -> EncodedDemonstration | None:
    """Tokens of a demonstration, or None when prompt and solution together are longer than ``max_length``."""
    prompt_ids = encode_prompt(tokenizer, demonstration.question)
    solution_ids = encode_solution(tokenizer, demonstration.solution)
    if len(prompt_ids) + len(solution_ids) > max_length:
        return None
    return EncodedDemonstration(prompt_ids, solution_ids, demonstration)


def encode_all(
    session: Session, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Demonstration]
) -> list[EncodedDemonstration]:
    """All demonstrations that fit the model; those that don't are counted in one line.

    Raises:
        DataError: none fits.
    """
    encoded = [encode_demonstration(tokenizer, row, max_length=session.job.model.max_length) for row in rows]
    fitting = [one for one in encoded if one is not None]
    if not fitting:
        raise DataError(
            f"None of {len(rows)} demonstrations fits in model.max_length {session.job.model.max_length} tokens. Raise it."
        )
    if len(fitting) < len(rows):
        session.say(
            f"left out {len(rows) - len(fitting)} demonstrations longer than {session.job.model.max_length} tokens"
        )
    return fitting


def encode_solution(tokenizer: PreTrainedTokenizerBase, solution: str) -> tuple[int, ...]:
    """Solution tokens with the end token, as the policy is meant to write them."""
    return (*tokenizer(solution, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)  # pyright: ignore
