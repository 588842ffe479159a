"""Publishes an evaluation: files in the run's folder, the critic's calibration, MLflow, and a table for the log."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from irlops.contracts.evaluation import Calibration, DatasetFacts, Estimate, Evaluation, FirstError
from irlops.contracts.jobs import EvaluateJob
from irlops.contracts.pair import summarise_evaluation
from irlops.errors import StorageError
from irlops_jobs.evaluation.carriers import CorruptedTrace, ScoredProblem
from irlops_jobs.evaluation.first_error import choose_rules, localise
from irlops_jobs.evaluation.measure import Measured, calibrate, compare, measure
from irlops_jobs.evaluation.own_errors import own_errors
from irlops_jobs.evaluation.pictures import draw_evaluation, draw_training
from irlops_jobs.evaluation.report import Picture, render_report
from irlops_jobs.session import METRICS_FILE, Session

CALIBRATION_FILE = "calibration.json"


def publish_evaluations(
    session: Session,
    job: EvaluateJob,
    *,
    dev: Sequence[ScoredProblem],
    rows: Mapping[str, Sequence[ScoredProblem]],
    corrupted_dev: Sequence[CorruptedTrace],
    corrupted: Sequence[CorruptedTrace],
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Evaluation]:
    """Measure every row and publish it; called by the first process only.

    Leaves in ``<run>/evaluation/``: ``evaluation.json`` (the pair's row), ``evaluation-<row>.json`` for each row,
    ``calibration.json``, ``report.html`` and pictures. ``calibration.json`` goes into the critic's folder too when that
    is a run's of this state directory.

    Args:
        dev: Held-out problems on which the critic is calibrated.
        rows: Test problems by row, ``job.row`` among them.
        corrupted_dev: Expert dev solutions with a known error, to choose how it is looked for.
        corrupted: Expert test solutions with a known error.
    Returns:
        Evaluations by row.
    Raises:
        DataError: no problem, or broken numbers.
        StorageError: the disk is full.
    """
    started = time.monotonic()
    calibration = calibrate(dev, seed=job.seed)
    first_errors = (
        _localised(job, corrupted_dev, corrupted),
        _localised(job, own_errors(dev), own_errors(rows[job.row])),
    )
    measured = _measure_all(session, job, calibration, rows, first_errors)
    timings = {"sampling": started - session.started_at, "measuring": time.monotonic() - started}
    pair_row = compare(measured[job.row], {name: one for name, one in measured.items() if name != job.row})
    evaluations = {
        name: _described(session, job, name, pair_row if name == job.row else one.evaluation, timings)
        for name, one in measured.items()
    }
    folder = session.run_dir / "evaluation"
    pictures = [
        *_training_picture(session, job, folder),
        *draw_evaluation(
            dataclasses.replace(measured[job.row], evaluation=evaluations[job.row]),
            rows[job.row],
            corrupted,
            tokenizer,
            folder,
        ),
    ]
    _write(folder / "report.html", render_report(evaluations, job.row, pictures))
    for name, evaluation in evaluations.items():
        _write_json(folder / f"evaluation-{name}.json", evaluation.body())
    _write_json(folder / "evaluation.json", evaluations[job.row].body())
    for place in (folder, _own_critic_folder(session, job)):
        if place is not None:
            _write_json(place / CALIBRATION_FILE, calibration.model_dump(mode="json", by_alias=True))
    _track(session, job, evaluations, folder)
    for line in table_lines(evaluations, job.row):
        session.say(line)
    session.say(f"measured in {time.monotonic() - started:.1f} s: {folder / 'evaluation.json'}")
    return evaluations


def _localised(job: EvaluateJob, dev: Sequence[CorruptedTrace], test: Sequence[CorruptedTrace]) -> FirstError | None:
    """First errors of test problems, looked for by rules chosen on dev problems."""
    return localise(test, rules=choose_rules(dev), seed=job.seed, num_resamples=job.bootstrap_resamples)


def table_lines(evaluations: Mapping[str, Evaluation], pair_row: str) -> list[str]:
    """Rows as a compact table for a log; the pair's row is last, all numbers but AUROC in percent."""
    names = sorted(evaluations, key=lambda name: name == pair_row)
    num = evaluations[pair_row].samples_per_problem
    header = (
        f"{'':<12}{'pass@1':>14}{'reward@' + str(num):>12}{'majority':>10}{'weighted':>10}{'adaptive':>15}{'AUROC':>8}"
    )
    return [header, *(_line(name, evaluations[name]) for name in names)]


def _line(name: str, evaluation: Evaluation) -> str:
    chosen = {selector: _percent(by_k[1]) for selector, by_k in evaluation.selectors.items()}
    point = next(
        (p for p in evaluation.adaptive if p.confidence == evaluation.calibration.stop_confidence),
        evaluation.adaptive[-1],
    )
    alone = evaluation.pass_at_k[1]
    spread = "" if alone.ci95 is None else f" ±{50 * (alone.ci95[1] - alone.ci95[0]):.1f}"
    area = "-" if evaluation.critic.auroc is None else f"{evaluation.critic.auroc:.3f}"
    adaptive = f"{100 * point.accuracy:.1f} at {point.mean_samples:.1f}"
    return (
        f"{name:<12}{_percent(alone) + spread:>14}{chosen['reward']:>12}{chosen['majority']:>10}"
        f"{chosen['weighted_majority']:>10}{adaptive:>15}{area:>8}"
    )


def _percent(estimate: Estimate) -> str:
    return "-" if estimate.mean is None else f"{100 * estimate.mean:.1f}"


def _measure_all(
    session: Session,
    job: EvaluateJob,
    calibration: Calibration,
    rows: Mapping[str, Sequence[ScoredProblem]],
    first_errors: tuple[FirstError | None, FirstError | None],
) -> dict[str, Measured]:
    data = session.demonstrations
    dataset = DatasetFacts(name=data.name, digest=data.digests["test"], num_problems=len(data.test))
    measured: dict[str, Measured] = {}
    for name, problems in rows.items():
        session.say(f"{job.run_name}: measuring {name}, {len(problems)} problems")
        measured[name] = measure(
            problems,
            calibration,
            row=name,
            dataset=dataset,
            seed=job.seed,
            num_resamples=job.bootstrap_resamples,
            # The critic's own numbers, and their baseline is the pair's policy: they belong to no other row.
            first_errors=first_errors if name == job.row else (None, None),
        )
    return measured


def _described(
    session: Session, job: EvaluateJob, name: str, evaluation: Evaluation, timings_s: dict[str, float]
) -> Evaluation:
    """With what was evaluated and how."""
    policy_from = job.model.policy_from if name == job.row else job.compare[name]
    rollouts = job.rollouts
    return evaluation.model_copy(
        update={
            "pair": {
                "policy": policy_from or f"preset {job.model.preset}, untrained",
                "critic": job.model.critic_from,
                "lineage": _lineage(session, policy_from),
            },
            "sampling": {
                "engine": rollouts.engine,
                "temperature": rollouts.temperature,
                "top_p": rollouts.top_p,
                "max_new_tokens": rollouts.max_new_tokens,
            },
            "timings_s": {part: round(seconds, 2) for part, seconds in timings_s.items()},
        }
    )


def _lineage(session: Session, policy_from: str | None) -> dict[str, Any] | None:
    """What the policy's run said of itself, when it did."""
    file = session.environment.state_dir / (policy_from or "") / "lineage.json"
    return json.loads(file.read_text(encoding="utf-8")) if policy_from and file.is_file() else None


def _own_critic_folder(session: Session, job: EvaluateJob) -> Path | None:
    """The critic's folder when a run of this state directory made it; nobody else's folder is written to."""
    critic_from = Path(job.model.critic_from or "/")
    return None if critic_from.is_absolute() else session.environment.state_dir / critic_from


_OF_OTHER_ROWS = ("transfer.", "untrained.")  # each row has metrics of its own


def _track(session: Session, job: EvaluateJob, evaluations: Mapping[str, Evaluation], folder: Path) -> None:
    """Numbers as metrics (``airl/critic.auroc``), files as artifacts under ``evaluation/``."""
    for name, evaluation in evaluations.items():
        metrics = summarise_evaluation(evaluation.body()).metrics
        session.tracking.log_metrics(
            {
                f"{name}/{metric.replace('@', '_at_')}": value  # MLflow takes no @ in a name
                for metric, value in metrics.items()
                if not metric.startswith(_OF_OTHER_ROWS)
            },
            step=0,
        )
    session.tracking.set_tags(
        {"evaluated_policy": str(job.model.policy_from), "evaluated_critic": str(job.model.critic_from)}
    )
    session.tracking.log_artifact(folder, "evaluation")


def _training_picture(session: Session, job: EvaluateJob, folder: Path) -> list[Picture]:
    """Of the run that trained the critic, when its metrics lie beside it."""
    critic = session.environment.state_dir / (job.model.critic_from or "")
    picture = draw_training(critic.parent / METRICS_FILE, folder)
    return [picture] if picture else []


def _write_json(path: Path, body: Mapping[str, Any]) -> None:
    _write(path, json.dumps(body, indent=1, allow_nan=False) + "\n")


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise StorageError(f"{path} can't be written: {error}. Free space and start the evaluation again.") from error
