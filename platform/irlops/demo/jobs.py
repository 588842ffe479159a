"""The demo's jobs: the same manifests that a cluster would run, with this run's seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import irlops
from irlops.contracts.jobs import Job
from irlops.contracts.training_manifest import read_training_manifest
from irlops.demo.progress import JobProgress
from irlops.demo.screen import StageView
from irlops.errors import ConfigError
from irlops.local.overrides import check_job_file, with_overrides
from irlops.local.training import RUNNER, LocalJobResult, run_pytorchjob

_J = TypeVar("_J", bound=Job)


_GRACE_S = 5.0
"""For workers that are asked to stop: the next demo begins anew, so what they would save is of no use."""


class JobFailedError(Exception):
    """A job ended badly; carries the exit code that the command ends with."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class PlannedJob:
    """A manifest that was read and checked before anything started.

    Made by ``plan_job``; consumed by ``run_job``.
    Example: ``PlannedJob(Path("manifests/training/sft-tiny.yaml"), {"seed": 7}, SftJob(...), num_workers=1)``
    """

    manifest: Path
    overrides: Mapping[str, Any]
    job: Job
    num_workers: int


def find_manifests(given: Path | None) -> Path:
    """The folder with the training manifests: the given one, the installed package's, or the repository's.

    Raises:
        ConfigError: there is none.
    """
    package = Path(irlops.__file__).parent
    places = [given] if given else [package / "manifests" / "training", package.parents[1] / "manifests" / "training"]
    for place in places:
        if (place / "sft-tiny.yaml").is_file():
            return place
    raise ConfigError(
        f"No sft-tiny.yaml in {' or '.join(map(str, places))}. Name the repository's folder of training manifests: "
        "--manifests-dir manifests/training."
    )


def plan_job(manifest_path: Path, overrides: Mapping[str, Any], kind: type[_J]) -> PlannedJob:
    """Read and check a manifest with this run's values.

    Raises:
        ManifestError: the file is no training manifest.
        ConfigError: its job file is wrong, or of another kind.
    """
    manifest = with_overrides(read_training_manifest(manifest_path), overrides)
    job = check_job_file(manifest)
    if not isinstance(job, kind):
        raise ConfigError(
            f"{manifest_path} runs {job.kind if job else 'no job of ours'}; the demo needs an {kind.__name__} there."
        )
    num_workers = sum(replica.replicas for _, replica in manifest.job.spec.replicas())
    return PlannedJob(manifest_path, dict(overrides), job, num_workers)


def run_job(
    planned: PlannedJob, view: StageView, progress: JobProgress, *, state_dir: Path, tracking_uri: str
) -> LocalJobResult:
    """Run a job to its end, its lines shown as one.

    Raises:
        JobFailedError: it failed, with its own last words and where all of them are.
        IrlopsError: it could not be started.
    """
    has_begun = False

    def show(who: str, line: str) -> None:
        nonlocal has_begun
        if who == RUNNER:
            if has_begun or line.startswith("stopping"):  # before that it tells of folders; now of restarts
                view.warn(line)
            return
        has_begun = True
        if progress.read(line):
            for warning in progress.warnings:
                view.warn(warning)
            progress.warnings.clear()
            view.update(progress.text, progress.done, progress.total)

    view.update(f"starting {planned.num_workers} worker{'s' if planned.num_workers > 1 else ''}")
    result = run_pytorchjob(
        planned.manifest,
        state_dir=state_dir,
        tracking_uri=tracking_uri,
        overrides=planned.overrides,
        on_line=show,
        max_grace_s=_GRACE_S,
    )
    if not result.succeeded:
        logs = ", ".join(str(file) for file in result.log_files.values())
        raise JobFailedError(
            f"{result.name} failed after {result.wall_s:.0f} s: {result.reason} Logs: {logs}", result.exit_code
        )
    return result
