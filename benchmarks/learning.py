"""What is learned in the arithmetic world: untrained, SFT, outcome GRPO and AIRL over several seeds, from the manifests.

    python -m benchmarks.learning [--seeds 0 1 2 3 4] [--state-dir out/learning] [--num-test 250] [--only-table]

Each seed runs sft, airl, grpo and evaluate (10 minutes or so on two cores) and keeps its folder, so a stopped run goes on
where it was. Prints the tables of docs/results.md: one row a seed, then mean and spread.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from irlops.local.training import run_pytorchjob

MANIFESTS = Path(__file__).parents[1] / "manifests/training"
ROWS = ("untrained", "sft", "grpo", "airl")
Body = dict[str, Any]


def run_seed(seed: int, state_dir: Path, num_test: int) -> dict[str, Body]:
    """Train and evaluate one seed; its rows' evaluation.json bodies."""
    folder = state_dir / f"seed-{seed}"
    for job in ("sft", "airl", "grpo"):
        done = folder / f"{job}.done"
        if not done.exists():
            result = run_pytorchjob(
                MANIFESTS / f"{job}-tiny.yaml",
                state_dir=folder,
                overrides={"seed": seed},
                on_line=headlines(f"seed {seed}"),
            )
            result.raise_if_failed()
            done.write_text(f"{result.wall_s:.0f}\n")
    done = folder / "evaluate.done"
    if not done.exists():
        overrides = {"seed": seed, "data.num_test": num_test, "compare.grpo": "grpo-tiny/policy"}
        run_pytorchjob(
            MANIFESTS / "evaluate-tiny.yaml", state_dir=folder, overrides=overrides, on_line=headlines(f"seed {seed}")
        ).raise_if_failed()
        done.write_text("\n")
    return read_seed(folder)


def read_seed(folder: Path) -> dict[str, Body]:
    """The rows that one seed left."""
    (evaluations,) = folder.glob("*/evaluate-tiny/evaluation")
    return {row: json.loads((evaluations / f"evaluation-{row}.json").read_text()) for row in ROWS}


def headlines(label: str) -> Callable[[str, str], None]:
    """Print the workers' lines, less what is indented, behind ``label``; the rendezvous decides which of them is rank 0."""

    def say(who: str, line: str) -> None:
        if who.startswith("worker-") and not line.startswith(" "):
            print(f"{label} | {line}", flush=True)

    return say


def _adaptive(body: Body) -> Body:
    stop = body["calibration"]["stop_confidence"]
    return next((point for point in body["adaptive"] if point["confidence"] == stop), body["adaptive"][-1])


def _selector(name: str) -> Callable[[Body], float]:
    return lambda body: 100 * body["selectors"][name]["1"]["mean"]


POLICY_COLUMNS: dict[str, Callable[[Body], float]] = {
    "pass@1 = random": _selector("random"),
    "reward@16": _selector("reward"),
    "majority@16": _selector("majority"),
    "weighted@16": _selector("weighted_majority"),
    "logprob@16": _selector("logprob"),
    "longest@16": _selector("longest"),
    "adaptive": lambda body: 100 * _adaptive(body)["accuracy"],
    "samples": lambda body: _adaptive(body)["mean_samples"],
}
CRITIC_COLUMNS: dict[str, Callable[[Body], float | None]] = {
    "AUROC": lambda body: body["critic"]["auroc"],
    "within question": lambda body: body["critic"]["auroc_within_question"],
    "answer span": lambda body: body["critic"]["auroc_answer_span"],
    "ECE": lambda body: body["critic"]["ece"],
    "ECE before": lambda body: body["critic"]["ece_before"],
    "r correct": lambda body: body["critic"]["pearson_correctness"],
    "r format": lambda body: body["critic"]["pearson_format"],
    "r correct, raw": lambda body: body["critic"].get("pearson_correctness_raw"),
    "r format, raw": lambda body: body["critic"].get("pearson_format_raw"),
    "Hit@1": lambda body: body["first_error"] and body["first_error"]["hit_at_1"],
    "chance": lambda body: body["first_error"] and body["first_error"]["chance"],
    "Hit@1 logprob": lambda body: body["first_error"] and body["first_error"]["logprob_hit_at_1"],
    "Hit@1 both": lambda body: body["first_error"] and body["first_error"]["recovered_hit_at_1"],
    "own Hit@1": lambda body: body["first_own_error"] and body["first_own_error"]["hit_at_1"],
    "own chance": lambda body: body["first_own_error"] and body["first_own_error"]["chance"],
    "own Hit@1 logprob": lambda body: body["first_own_error"] and body["first_own_error"]["logprob_hit_at_1"],
    "own Hit@1 both": lambda body: body["first_own_error"] and body["first_own_error"]["recovered_hit_at_1"],
}


def table(title: str, row: str, columns: dict[str, Any], seeds: dict[int, dict[str, Body]], digits: int) -> list[str]:
    """One row of bodies as Markdown, a line a seed, then mean ± sample standard deviation."""
    lines = [f"\n{title}\n", f"| seed | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    cells: dict[str, list[float]] = {name: [] for name in columns}
    for seed, rows in sorted(seeds.items()):
        values = {name: read(rows[row]) for name, read in columns.items()}
        for name, value in values.items():
            cells[name] += [] if value is None else [value]
        lines.append(f"| {seed} | {' | '.join('-' if v is None else f'{v:.{digits}f}' for v in values.values())} |")
    lines.append(f"| mean ± sd | {' | '.join(_spread(values, digits) for values in cells.values())} |")
    return lines


def _spread(values: list[float], digits: int) -> str:
    if not values:
        return "-"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ± {deviation:.{digits}f}"


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--state-dir", type=Path, default=Path("out/learning"))
    parser.add_argument("--num-test", type=int, default=250)
    parser.add_argument("--only-table", action="store_true", help="of what earlier runs left")
    options = parser.parse_args()
    seeds: dict[int, dict[str, Body]] = {}
    for seed in options.seeds:
        folder = options.state_dir / f"seed-{seed}"
        seeds[seed] = read_seed(folder) if options.only_table else run_seed(seed, options.state_dir, options.num_test)
    names = {"untrained": "Untrained", "sft": "SFT", "grpo": "Outcome GRPO", "airl": "AIRL"}
    for row in ROWS:
        print("\n".join(table(f"{names[row]}, percent (samples: a number)", row, POLICY_COLUMNS, seeds, 1)))
    for row in ("sft", "airl"):
        print("\n".join(table(f"AIRL's critic on samples of {names[row]}", row, CRITIC_COLUMNS, seeds, 3)))


if __name__ == "__main__":
    main()
