"""Draws and saves an evaluation's pictures, with what each one shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from irlops_jobs.evaluation import figures
from irlops_jobs.evaluation.carriers import CorruptedTrace, ScoredProblem
from irlops_jobs.evaluation.first_error import DEFAULT_RULE
from irlops_jobs.evaluation.heatmaps import pick_passages, token_heatmaps
from irlops_jobs.evaluation.measure import Measured
from irlops_jobs.evaluation.report import Picture
from irlops_jobs.evaluation.style import save


def draw_training(metrics: Path, folder: Path) -> Picture | None:
    """``training.png`` from a run's metrics.jsonl; None when there is none.

    Raises:
        StorageError: the picture can't be written.
    """
    rows = read_metrics(metrics)
    if not rows:
        return None
    return Picture(
        save(figures.training_curves(rows), folder / "training.png"),
        "Reward and correctness over the training that made this pair. Solid lines are the run's own samples, dashed ones "
        "held-out questions. The critic learns all the time, so rewards of different rounds share no scale, and rewards of "
        "training samples are clipped as the policy gets them.",
    )


def draw_evaluation(
    measured: Measured,
    problems: Sequence[ScoredProblem],
    corrupted: Sequence[CorruptedTrace],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
) -> list[Picture]:
    """All pictures of the pair's row.

    Raises:
        StorageError: a picture can't be written.
    """
    evaluation = measured.evaluation
    return [
        Picture(
            save(figures.reward_distributions(measured), folder / "rewards.png"),
            "How the critic rewards right and wrong solutions. Each side is drawn with the same area, however many there are.",
        ),
        Picture(
            save(figures.selector_curves(evaluation), folder / "selectors.png"),
            "How often one of the k solutions that a selector puts first is right. Voting selectors name one solution for each "
            "of their first k answers. Random is the exact expectation.",
        ),
        Picture(
            save(_heatmaps(measured, problems, corrupted, tokenizer), folder / "heatmaps.png"),
            "Token rewards, not picked for looks: the first problem with both a right and a wrong sample, and the first "
            "corrupted expert solution. White is the mean over all sampled tokens, ■ the end.",
        ),
        Picture(
            save(figures.correlations(evaluation), folder / "correlations.png"),
            "A critic should go with being right, and little with looks or length.",
        ),
        Picture(
            save(figures.calibration_curve(evaluation), folder / "calibration.png"),
            "What the critic calls a chance of 70 % should be right in 70 % of cases; below, how many samples got each chance.",
        ),
        Picture(
            save(figures.samples_against_accuracy(evaluation), folder / "samples.png"),
            "Sampling that stops as soon as rewards and agreement make the leading answer sure, against the same number of "
            "samples for every problem.",
        ),
    ]


def read_metrics(file: Path) -> list[Mapping[str, Any]]:
    """Whole rows of metrics.jsonl; none when it isn't there."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError:
        return []
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def _heatmaps(
    measured: Measured,
    problems: Sequence[ScoredProblem],
    corrupted: Sequence[CorruptedTrace],
    tokenizer: PreTrainedTokenizerBase,
) -> Any:
    found = measured.evaluation.first_error
    rule, below = (DEFAULT_RULE, None) if found is None else (found.rule, found.threshold)
    rewards = [reward for problem in problems for sample in problem.samples for reward in sample.token_rewards]
    passages = pick_passages(problems, measured.table.right_PN.tolist(), corrupted, tokenizer, rule, below)
    return token_heatmaps(passages, centre=float(np.mean(rewards)) if rewards else 0.0)
