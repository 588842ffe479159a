"""Samples per second of a whole training round: our `grpo` and `airl` jobs, and TRL's GRPOTrainer; then each pass by itself.

    python -m benchmarks.training_throughput [--rounds 10] [--repetitions 5] [--threads N] [--without-trl] [--without-passes]

All sides start from the same weights, get the same questions (8 a round, 16 samples each of up to 60 new tokens) and take
turns, each run in a process of its own. The first round of a run warms up and the last one checks held-out questions;
both are left out. docs/benchmarks-training.md says what differs between the sides.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gateway_support import REPO
from benchmarks.training_support import (
    NUM_TRAIN,
    PROMPTS,
    SAMPLES,
    START,
    STATE_DIR,
    Run,
    markdown,
    run_ours,
    run_trl,
    spread,
    trl_python,
    warm_start,
)

TRL_VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "TRL as it comes": {"bf16": True, "gradient_checkpointing": True, "attention": "sdpa"},
    "TRL tuned, bfloat16": {"bf16": True, "gradient_checkpointing": False, "attention": "eager"},
    "TRL tuned, float32": {"bf16": False, "gradient_checkpointing": False, "attention": "eager"},
}
IN_PROPORTION = "airl, branch updates in proportion"
OURS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "grpo": ("grpo", {}),
    "airl": ("airl", {}),
    # The recipe makes six for 256 samples; here are 128.
    IN_PROPORTION: ("airl", {"branch_updates_per_round": 3}),
}
"""The job of each side and changes of its ``critic`` section."""
WANTED = {"grpo": 2.0, "airl": 1.0, IN_PROPORTION: 1.0}
"""Times the fastest TRL."""


def questions(num_rounds: int) -> list[dict[str, Any]]:
    """The rows that our jobs will ask about in their rounds, in that order."""
    from transformers import AutoTokenizer

    from irlops.contracts.jobs import DataConfig, JobEnvironment
    from irlops_jobs.demonstrations.load import load_demonstrations
    from irlops_jobs.models.prompts import encode_prompt
    from irlops_jobs.rollouts.rounds import questions_of_round

    config = DataConfig(name="arithmetic", num_train=NUM_TRAIN, num_dev=8)
    rows = load_demonstrations(config, JobEnvironment(state_dir=STATE_DIR)).train
    tokenizer = AutoTokenizer.from_pretrained(STATE_DIR / START / "policy")
    chosen = [rows[i] for one in range(num_rounds) for i in questions_of_round(rows, one, num=PROMPTS, seed=0)]  # pyright: ignore[reportArgumentType] - only counted
    return [
        {"question": row.question, "answer": row.answer, "prompt_ids": list(encode_prompt(tokenizer, row.question))}
        for row in chosen
    ]


def measure(num_rounds: int, repetitions: int, threads: int, *, with_trl: bool) -> dict[str, list[Run]]:
    """All sides in turn, ``repetitions`` times."""
    rows = questions(num_rounds)
    python = trl_python() if with_trl else None
    runs: dict[str, list[Run]] = {}
    for repetition in range(repetitions):
        for name, (kind, critic) in OURS.items():
            runs.setdefault(name, []).append(run_ours(kind, num_rounds, threads, **critic))
        for name, variant in TRL_VARIANTS.items() if python else ():
            runs.setdefault(name, []).append(run_trl(python, variant, rows, threads))  # pyright: ignore[reportArgumentType]
        seen = ", ".join(f"{name} {many[-1].samples_per_s:.0f}" for name, many in runs.items())
        print(f"repetition {repetition + 1} of {repetitions}, samples/s: {seen}", flush=True)
    return runs


def report(runs: Mapping[str, Sequence[Run]]) -> None:
    """Print the tables and the verdicts."""
    rates = {name: [run.samples_per_s for run in many] for name, many in runs.items()}
    trl = {name: statistics.median(values) for name, values in rates.items() if name in TRL_VARIANTS}
    fastest = max(trl, key=lambda name: trl[name]) if trl else None
    columns = [
        "side",
        "samples/s, median (range)",
        "seconds a round",
        "tokens a sample",
        "groups left out",
        "times the fastest TRL",
    ]
    table = []
    for name, many in runs.items():
        ratio = f"{statistics.median(_ratios(rates, name, fastest)):.2f}" if fastest else "not run"
        per_round = statistics.median(second for run in many for second in run.seconds)
        tokens = statistics.mean(run.tokens_per_sample for run in many)
        left_out = statistics.mean(run.groups_left_out for run in many)
        table.append((name, spread(rates[name]), per_round, f"{tokens:.1f}", f"{left_out:.1f} of {PROMPTS}", ratio))
    print(f"\n{markdown(columns, table)}\n")
    for name, wanted in WANTED.items() if fastest else ():
        ratios = _ratios(rates, name, fastest)  # pyright: ignore[reportArgumentType]
        print(f"{name} / {fastest} = {spread(ratios, '.2f')} (wanted: at least {wanted:g})")
    parts = list(runs["airl"][0].parts)
    seconds = [[run.parts[part] for run in runs["airl"]] for part in parts]
    print(
        f"\n{markdown(['part of an airl round', 'seconds'], list(zip(parts, map(_three_digits, seconds), strict=True)))}"
    )


def _ratios(rates: Mapping[str, Sequence[float]], name: str, other: str) -> list[float]:
    """Of the runs that stood next to each other."""
    return [mine / theirs for mine, theirs in zip(rates[name], rates[other], strict=True)]


def _three_digits(values: Sequence[float]) -> str:
    return spread(values, ".3f")


def main() -> None:
    """Run and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="timed rounds of a run")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="torch threads of every side")
    parser.add_argument("--sft-steps", type=int, default=560, help="of the warm start, made once")
    parser.add_argument("--without-trl", action="store_true")
    parser.add_argument("--without-passes", action="store_true")
    options = parser.parse_args()
    warm_start(options.sft_steps)
    print(f"{PROMPTS} prompts x {SAMPLES} samples, {options.threads} threads, {options.rounds} timed rounds a run\n")
    report(measure(options.rounds + 2, options.repetitions, options.threads, with_trl=not options.without_trl))
    if not options.without_passes:
        command = [sys.executable, "-m", "benchmarks.training_passes", "--sft-steps", str(options.sft_steps)]
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        subprocess.run([*command, "--repetitions", str(options.repetitions)], cwd=REPO, env=environment, check=True)


if __name__ == "__main__":
    main()
