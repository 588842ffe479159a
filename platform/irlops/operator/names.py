"""What everything that belongs to a pipeline is called; all of it follows from the pipeline, nothing is drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from irlops.contracts.pipeline import PipelineSpec
from irlops.contracts.pipeline_status import PairVersions

EVALUATION = "evaluation"
REGISTRATION = "registration"

MAX_JOB_CHARS = 51
"""A pod and its Service are called ``<job>-worker-1023`` at most, and a label takes 63 characters."""
MIN_SERVICE_CHARS = 13
"""Shorter names would say nothing any more. A namespace of more than 39 characters leaves less room than that."""
MAX_RUN_CHARS = 46
"""A run's folder is called ``<run>-<stage>``, at most 63 characters."""

ATTEMPT_ANNOTATION = "irlops.dev/attempt"
GENERATION_ANNOTATION = "irlops.dev/generation"
APPLIED_ANNOTATION = "irlops.dev/applied"
"""Digest of what was applied: an object that carries the wanted one is not written again."""


def digest_of(document: Any, num_chars: int = 10) -> str:
    """The first characters of the SHA-256 of ``document`` as canonical JSON."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:num_chars]


def run_id(pipeline: Mapping[str, Any], spec: PipelineSpec) -> str:
    """The run that this spec asks for: another one as soon as anything changes that would teach something else.

    Gates, serving, resources and retries are left out: a changed gate judges the pair that is there. The uid is part of
    it, so a pipeline that is deleted and made again never goes on in its predecessor's folders. What is left at its default
    isn't, so a release that adds a field doesn't train every pipeline anew.

    Example: ``tiny-4f2a1`` for the pipeline ``tiny``.
    """
    parts = {"data", "base_models", "stages", "evaluation"}
    learned = spec.model_dump(mode="json", include=parts, exclude_defaults=True)
    for stage in learned["stages"]:
        stage.pop("replicas", None)
    metadata = pipeline["metadata"]
    return f"{metadata['name']}-{digest_of([metadata.get('uid'), learned], 5)}"


def stage_names(spec: PipelineSpec) -> list[str]:
    """Every job of a run, in order."""
    return [*(stage.name for stage in spec.stages), EVALUATION, REGISTRATION]


def job_name(run: str, stage: str, generation: int, attempt: int) -> str:
    """Example: ``tiny-4f2a1-sft-1``, and ``tiny-4f2a1-sft-1-2`` for the second attempt."""
    tail = f"-{generation}" + (f"-{attempt}" if attempt > 1 else "")
    return fitted(f"{run}-{stage}", MAX_JOB_CHARS - len(tail)) + tail


def job_file_name(run: str, stage: str) -> str:
    """The ConfigMap with a stage's job file."""
    return fitted(f"{run}-{stage}-job", 63)


def service_name(pipeline: str, role: str, version: str | int, *, namespace: str) -> str:
    """The InferenceService of one half. Example: ``tiny-policy-v7``.

    KServe puts it into a label, ``isvc.<name>-predictor``, and into the first part of a host name,
    ``<name>-predictor-<namespace>``, also where nothing is reached from outside. Either may have 63 characters; above that
    KServe makes no Deployment.
    """
    room = 63 - max(len("isvc.-predictor"), len(f"-predictor-{namespace}"))
    return fitted(f"{pipeline}-{role}-v{version}", max(room, MIN_SERVICE_CHARS))


def claim_name(pipeline: str, spec: PipelineSpec) -> str:
    """The claim that the pipeline's jobs write to."""
    return spec.job_template.state_volume.claim_name or f"{pipeline}-state"


def fitted(name: str, limit: int) -> str:
    """``name``, or its beginning and a digest of the rest where it has more than ``limit`` characters."""
    if len(name) <= limit:
        return name
    return f"{name[: limit - 6].rstrip('-')}-{digest_of(name, 5)}"


def versions_label(pair: PairVersions | None) -> str:
    """Example: ``policy v7 with critic v7``."""
    return f"policy v{pair.policy_version} with critic v{pair.critic_version}" if pair else "no pair"
