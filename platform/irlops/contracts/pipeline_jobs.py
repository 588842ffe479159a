"""The job files that a ReasoningPipeline's spec asks for: one for each stage, and the evaluation's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from irlops.contracts.pipeline import PipelineSpec
from irlops.errors import ManifestError


def training_document(spec: PipelineSpec, index: int, run: str) -> dict[str, Any]:
    """The job file of stage ``index`` (from 0) of ``run``, ready for ``irlops.contracts.jobs.parse_job``.

    Each stage starts from the policy that the stage before it left on the state volume.

    Example: stages sft, airl of run ``gsm8k-1`` -> run names ``gsm8k-1-sft``, ``gsm8k-1-airl``.
    """
    stage = spec.stages[index]
    model = _model_section(spec)
    if index > 0:
        before = run_name(run, spec.stages[index - 1].name)
        model["policy_from"] = f"{before}/policy"
        if stage.kind == "airl":
            has_critic = spec.stages[index - 1].kind == "airl"
            model["critic_from"] = f"{before}/critic" if has_critic else spec.base_models.critic_from or "policy"
    return _with_settings(spec, stage.settings, stage.kind, run_name(run, stage.name), model)


def evaluation_document(spec: PipelineSpec, run: str) -> dict[str, Any]:
    """The job file that evaluates what the last stage left; a run without a critic is evaluated without one."""
    last = spec.stages[-1]
    model = _model_section(spec) | {"policy_from": f"{run_name(run, last.name)}/policy", "critic_from": None}
    if last.kind == "airl":
        model["critic_from"] = f"{run_name(run, last.name)}/critic"
    settings = {
        "row": last.kind,
        **spec.evaluation.settings,
        "samples_per_problem": spec.evaluation.samples_per_problem,
    }
    return _with_settings(spec, settings, "evaluate", run_name(run, "evaluation"), model)


def run_name(run: str, stage: str) -> str:
    """Folder and MLflow run of one stage."""
    return f"{run}-{stage}"


_SET_BY_THE_PIPELINE = ("kind", "run_name", "data", "model")


def _with_settings(
    spec: PipelineSpec, settings: Mapping[str, Any], kind: str, name: str, model: Mapping[str, Any]
) -> dict[str, Any]:
    taken = [key for key in _SET_BY_THE_PIPELINE if key in settings]
    if taken:
        raise ManifestError(
            f"The settings of {name} hold {', '.join(taken)}, which the pipeline sets itself. "
            "Use spec.data and spec.baseModels, and the stage's name and kind."
        )
    data = spec.data.model_dump(exclude={"claim_name", "sub_path"}, exclude_none=True)
    return {**settings, "kind": kind, "run_name": name, "data": data, "model": dict(model)}


def _model_section(spec: PipelineSpec) -> dict[str, Any]:
    return spec.base_models.model_dump(exclude_none=True)
