"""Numbers of the finished stages, as short sentences and as the final table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from irlops.contracts.evaluation import Estimate, Evaluation
from irlops.contracts.summary import SUMMARY_ROWS, SummaryRow
from irlops.errors import DataError

SELECTORS = ("random", "reward", "majority", "weighted_majority")
ROW_TITLES: dict[SummaryRow, str] = {"untrained": "untrained", "sft": "SFT", "airl": "AIRL"}


@dataclass(frozen=True)
class TableRow:
    """One policy in the final table; every number is a part of 1, None where it is not defined.

    Example: ``TableRow("AIRL", pass_at_1=Estimate(mean=0.61), selected={"random": Estimate(mean=0.61), ...}, auroc=0.83)``.
    """

    title: str
    pass_at_1: Estimate
    selected: dict[str, Estimate]
    """Accuracy of the one answer that each selector takes from all samples."""
    auroc: float | None


def table_rows(evaluations: Mapping[SummaryRow, Evaluation]) -> list[TableRow]:
    """The final table, from the untrained policy to the learned one."""
    nothing = Estimate(mean=None)
    return [
        TableRow(
            title=ROW_TITLES[row],
            pass_at_1=evaluations[row].pass_at_k.get(1, nothing),
            selected={name: evaluations[row].selectors.get(name, {}).get(1, nothing) for name in SELECTORS},
            auroc=evaluations[row].critic.auroc,
        )
        for row in SUMMARY_ROWS
    ]


def percent(value: float | None) -> str:
    """``0.412`` -> ``41.2 %``; nothing where there is no number."""
    return "-" if value is None else f"{100 * value:.1f} %"


def half_width(estimate: Estimate) -> str:
    """Half of the 95 % interval in percentage points: ``±2.9``."""
    return "" if estimate.ci95 is None else f"±{50 * (estimate.ci95[1] - estimate.ci95[0]):.1f}"


def describe_sft(run_dir: Path) -> str:
    """``loss 4.71 → 0.62 nats per token``."""
    losses = [row["sft/loss"] for row in read_metrics(run_dir) if "sft/loss" in row]
    return f"loss {losses[0]:.2f} → {losses[-1]:.2f} nats per token" if losses else ""


def describe_airl(run_dir: Path) -> str:
    """What changed on held-out questions: accuracy, and how well the critic tells right from wrong."""
    rows = [row for row in read_metrics(run_dir) if "dev/accuracy" in row]
    if not rows:
        return ""
    first, last = rows[0], rows[-1]
    parts = [f"held-out questions: right {first['dev/accuracy']:.0%} → {last['dev/accuracy']:.0%}"]
    if "dev/auroc" in last:
        parts.append(f"critic AUROC {first.get('dev/auroc', float('nan')):.2f} → {last['dev/auroc']:.2f}")
    if any(row.get("collapse/rolled_back") for row in read_metrics(run_dir)):
        parts.append("training collapsed and was rolled back to its last healthy pair")
    return ", ".join(parts)


def describe_airl_evaluation(evaluation: Evaluation) -> str:
    """The learned policy's accuracy alone, and with the critic choosing."""
    chosen = evaluation.selectors.get("weighted_majority", {}).get(1, Estimate(mean=None))
    alone = evaluation.pass_at_k.get(1, Estimate(mean=None))
    return (
        f"AIRL's policy alone {percent(alone.mean)}; best of {evaluation.samples_per_problem} by the critic "
        f"{percent(chosen.mean)}"
    )


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl; none when the run wrote none."""
    try:
        text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    except OSError:
        return []
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def read_evaluation(file: Path) -> Evaluation:
    """One evaluation.json.

    Raises:
        DataError: it is missing or not what the evaluation job writes.
    """
    try:
        return Evaluation.model_validate_json(file.read_bytes())
    except OSError as error:
        raise DataError(f"The evaluation left no {file} ({error.strerror}). Its log says why.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{file} is no evaluation as this version writes it: {place}: {first['msg']}.") from error


def read_rows(evaluation_dir: Path) -> dict[SummaryRow, Evaluation]:
    """Every row's evaluation, all judged by the same critic.

    Raises:
        DataError: one is missing.
    """
    return {row: read_evaluation(evaluation_dir / f"evaluation-{row}.json") for row in SUMMARY_ROWS}
