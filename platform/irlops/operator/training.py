"""How far a run is, and what its next job is; from what is seen alone.

stage 1 -> ... -> stage n -> evaluation -> registration -> gates -> alias
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from irlops.contracts.operator import RUN_LABEL, STAGE_LABEL, OperatorSettings
from irlops.contracts.pipeline import PipelineSpec
from irlops.contracts.pipeline_status import HistoryEntry, Phase, PipelineStatus, RunStatus
from irlops.errors import PermanentError
from irlops.operator.conditions import read, seconds_until, written
from irlops.operator.failures import describe_failure
from irlops.operator.jobs import job_document, job_file, state_claim, training_job
from irlops.operator.names import (
    ATTEMPT_ANNOTATION,
    EVALUATION,
    GENERATION_ANNOTATION,
    REGISTRATION,
    job_file_name,
    job_name,
    run_id,
    stage_names,
)
from irlops.operator.observed import Action, Apply, Body, Delete, Merge, Observed, Tell


@dataclass(frozen=True)
class Progress:
    """Where a run is. ``phase`` None: every job of it has succeeded."""

    run: RunStatus | None
    phase: Phase | None
    reason: str = ""
    message: str = ""
    actions: tuple[Action, ...] = ()
    look_again_s: float | None = None
    failure: str | None = None
    """Why no further attempt is made."""


def advance(o: Observed, spec: PipelineSpec, status: PipelineStatus, settings: OperatorSettings) -> Progress:
    """The run's next step, as far as jobs go."""
    step = _Step(o, spec, status, settings)
    leftovers = step.clear_other_runs()
    progress = step.advance()
    return replace(progress, actions=(*leftovers, *progress.actions))


def decision_on(status: PipelineStatus, run: str, generation: int) -> HistoryEntry | None:
    """What became of ``run``; a spec that changed since opens every outcome but a promotion again."""
    entry = next((one for one in status.history if one.run == run), None)
    return entry if entry and (entry.outcome == "Promoted" or entry.generation == generation) else None


class _Step:
    """One look at the jobs of one run."""

    def __init__(self, o: Observed, spec: PipelineSpec, status: PipelineStatus, settings: OperatorSettings) -> None:
        self.o, self.spec, self.status, self.settings = o, spec, status, settings
        self.generation: int = o.pipeline["metadata"].get("generation", 1)
        self.id = run_id(o.pipeline, spec)
        self.jobs = [job for job in o.jobs if _label(job, RUN_LABEL) == self.id]
        self.stages = stage_names(spec)

    def advance(self) -> Progress:
        """Passes every stage whose job has succeeded."""
        if faults := self._spec_fault():
            return Progress(self._known_run(), "Failed", *faults)
        run = self._run()
        for stage in self.stages[self._first_open_stage(run) :]:
            if stage != run.stage:
                run = run.model_copy(update={"stage": stage, "attempts": 0, "job_name": None, "not_before": None})
            job = self._newest(stage, run.generation)
            if job is None or not _has(job, "Succeeded"):
                return self._open_stage(run, stage, job)
            run = _of_job(run, job)
        return Progress(run, None)

    def clear_other_runs(self) -> list[Action]:
        """Jobs of a run that the spec no longer asks for, with their job files."""
        stale = [job for job in self.o.jobs if _label(job, RUN_LABEL) != self.id]
        return [
            action
            for job in stale
            for action in (
                Delete("PyTorchJob", job["metadata"]["name"]),
                Delete("ConfigMap", job_file_name(_label(job, RUN_LABEL), _label(job, STAGE_LABEL))),
            )
        ]

    def _spec_fault(self) -> tuple[str, str] | None:
        """What makes this spec impossible before any pod starts."""
        if {stage.name for stage in self.spec.stages} & {EVALUATION, REGISTRATION}:
            return "SpecInvalid", f"Stages can't be called {EVALUATION} or {REGISTRATION}. Rename the stage."
        if self.spec.stages[-1].kind != "airl":
            return "NoCritic", (
                f"The last stage, {self.spec.stages[-1].name}, is of kind {self.spec.stages[-1].kind} and leaves no critic, so "
                "there would be no pair. End with a stage of kind airl, or run the job alone with `irlops train`."
            )
        try:
            for stage in self.stages:
                job_document(self.spec, self.id, stage)
        except PermanentError as error:
            reason = "UnknownDataset" if "data.name" in str(error) else "JobInvalid"
            return reason, str(error)
        return None

    def _known_run(self) -> RunStatus | None:
        run = self.status.run
        return run if run is not None and run.id == self.id else None

    def _run(self) -> RunStatus:
        run = self._known_run()
        if run is None:
            return RunStatus(
                id=self.id, generation=self._first_generation(), stage=self.stages[0], started_at=written(self.o.now)
            )
        earlier = next((one for one in self.status.history if one.run == self.id), None)
        if earlier is not None and earlier.outcome == "Failed" and earlier.generation < self.generation:
            # The spec was changed after the failure: the stage goes on from its checkpoints, with all its attempts.
            reset = {"generation": self.generation, "attempts": 0, "job_name": None, "not_before": None}
            return run.model_copy(update=reset) if run.generation < self.generation else run
        return run

    def _first_generation(self) -> int:
        """Of jobs that were started before a status told of them."""
        return max((_number(job, GENERATION_ANNOTATION) for job in self.jobs), default=self.generation)

    def _first_open_stage(self, run: RunStatus) -> int:
        """A stage is behind us when the status says so, or when a later one has a job."""
        started = [_label(job, STAGE_LABEL) for job in self.jobs] + [run.stage]
        return max((self.stages.index(stage) for stage in started if stage in self.stages), default=0)

    def _newest(self, stage: str, generation: int) -> Body | None:
        jobs = [
            job
            for job in self.jobs
            if _label(job, STAGE_LABEL) == stage
            and (_number(job, GENERATION_ANNOTATION) >= generation or _has(job, "Succeeded"))
        ]
        return max(
            jobs, key=lambda job: (_number(job, GENERATION_ANNOTATION), _number(job, ATTEMPT_ANNOTATION)), default=None
        )

    def _open_stage(self, run: RunStatus, stage: str, job: Body | None) -> Progress:
        if job is not None and _number(job, ATTEMPT_ANNOTATION) >= run.attempts:
            run = _of_job(run, job)
            return self._after_failure(run, job) if _has(job, "Failed") else self._running(run, job)
        if run.job_name is not None:
            gone = f"The PyTorchJob {run.job_name} was deleted while it ran"
            return self._retry(run, gone, "JobDeleted", self.o.now)
        return self._start(run, stage)

    def _start(self, run: RunStatus, stage: str) -> Progress:
        if self.spec.suspend:
            return Progress(run, "Suspended", "Suspended", f"Stage {stage} waits. Set spec.suspend to false to go on.")
        if "PyTorchJob" in self.o.missing_kinds:
            return Progress(run, "Failed", "JobsUnavailable", _NO_JOBS, look_again_s=60)
        if self.o.missing_claims:
            return Progress(run, "Pending", "ClaimMissing", _no_claim(self.o.missing_claims), look_again_s=60)
        attempt = run.attempts + 1
        name = job_name(self.id, stage, run.generation, attempt)
        actions = [
            Apply(body)
            for body in (
                state_claim(self.o.pipeline, self.spec, self.settings) if attempt == 1 else None,
                job_file(self.o.pipeline, self.spec, stage, self.settings),
                training_job(
                    self.o.pipeline,
                    self.spec,
                    stage,
                    generation=run.generation,
                    attempt=attempt,
                    settings=self.settings,
                ),
            )
            if body is not None
        ]
        message = f"Stage {stage}, attempt {attempt}: the PyTorchJob {name} was started."
        run = run.model_copy(update={"stage": stage, "job_name": name, "attempts": attempt, "not_before": None})
        told = Tell("Normal", "JobStarted", message)
        return Progress(run, _phase(stage), _phase(stage), message, (*actions, told))

    def _running(self, run: RunStatus, job: Body) -> Progress:
        name, stage = job["metadata"]["name"], run.stage or ""
        is_stopped = bool(job["spec"].get("runPolicy", {}).get("suspend"))
        if self.spec.suspend:
            actions = () if is_stopped else (Merge("PyTorchJob", name, {"spec": {"runPolicy": {"suspend": True}}}),)
            message = f"{name} is suspended after its checkpoint. Set spec.suspend to false to go on."
            return Progress(run, "Suspended", "Suspended", message, actions)
        if is_stopped and self.spec.job_template.queue_name is None:
            go_on = Merge("PyTorchJob", name, {"spec": {"runPolicy": {"suspend": False}}})
            return Progress(run, _phase(stage), _phase(stage), f"{name} goes on.", (go_on,))
        if is_stopped:
            message = f"{name} waits for Kueue's queue {self.spec.job_template.queue_name}."
            return Progress(run, "Pending", "Queued", message)
        return Progress(run, _phase(stage), _phase(stage), f"Stage {stage}: the PyTorchJob {name} runs.")

    def _after_failure(self, run: RunStatus, job: Body) -> Progress:
        failure = describe_failure(job, self.o.pods)
        if failure.is_retryable:
            return self._retry(run, failure.message, failure.reason, failure.at or self.o.now)
        message = f"Stage {run.stage} failed: {failure.message} Nothing is tried again until the spec changes."
        return self._failed(run, failure.reason, message)

    def _retry(self, run: RunStatus, what: str, reason: str, at: datetime) -> Progress:
        retries = self.spec.retries
        what = what.rstrip(".")
        if run.attempts > retries.limit:
            message = (
                f"Stage {run.stage} failed {run.attempts} times, the last time: {what}. Correct the cause, then change the "
                "spec (spec.retries.limit, for example): the stage goes on from its last checkpoint."
            )
            return self._failed(run, reason, message)
        delay_s = min(retries.backoff_seconds * 2 ** (run.attempts - 1), retries.max_backoff_seconds)
        not_before = run.not_before or written(at + timedelta(seconds=delay_s))
        if self.spec.suspend:
            run = run.model_copy(update={"not_before": not_before})
            return Progress(run, "Suspended", "Suspended", f"{what}. Set spec.suspend to false to try again.")
        if seconds_until(not_before, self.o.now) == 0:
            return self._start(run.model_copy(update={"not_before": not_before}), run.stage or "")
        message = f"{what}. Attempt {run.attempts + 1} of {retries.limit + 1} starts at {not_before}; spec.suspend: true prevents it."
        run = run.model_copy(update={"not_before": not_before})
        told = Tell("Warning", reason, message)
        wait_s = (read(not_before) - self.o.now).total_seconds()
        return Progress(run, _phase(run.stage or ""), reason, message, (told,), look_again_s=wait_s)

    def _failed(self, run: RunStatus, reason: str, message: str) -> Progress:
        return Progress(run, "Failed", reason, message, (Tell("Warning", reason, message),), failure=message)


_NO_JOBS = (
    "This cluster has no PyTorchJobs, so nothing can train. Install the Kubeflow training operator 1.9.4 "
    "(docs/guides/install-on-kind.md, step 2); `irlops doctor` checks it. It is looked for again every minute."
)


def _no_claim(names: Sequence[str]) -> str:
    return (
        f"There is no PersistentVolumeClaim {' and no '.join(names)} in this namespace. Create it, or correct "
        "spec.data.claimName and spec.jobTemplate.stateVolume.claimName. It is looked for again every minute."
    )


def _phase(stage: str) -> Phase:
    return {EVALUATION: "Evaluating", REGISTRATION: "Registering"}.get(stage, "Training")  # pyright: ignore[reportReturnType]


def _of_job(run: RunStatus, job: Body) -> RunStatus:
    update = {
        "stage": _label(job, STAGE_LABEL),
        "job_name": job["metadata"]["name"],
        "attempts": _number(job, ATTEMPT_ANNOTATION),
        "not_before": run.not_before if run.job_name == job["metadata"]["name"] else None,
    }
    return run.model_copy(update=update)


def _has(job: Body, kind: str) -> bool:
    conditions = job.get("status", {}).get("conditions", [])
    return any(one.get("type") == kind and one.get("status") == "True" for one in conditions)


def _label(body: Body, name: str) -> str:
    return body["metadata"].get("labels", {}).get(name, "")


def _number(body: Body, annotation: str) -> int:
    text = body["metadata"].get("annotations", {}).get(annotation, "")
    return int(text) if text.isdigit() else 1
