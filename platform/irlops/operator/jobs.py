"""The objects that one stage of a run asks for: a PyTorchJob, its job file and, once, the state volume. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import yaml

from irlops.contracts.jobs import parse_job
from irlops.contracts.operator import (
    PIPELINE_LABEL,
    RELEASE_LABEL,
    ROLE_LABEL,
    RUN_LABEL,
    STAGE_LABEL,
    OperatorSettings,
)
from irlops.contracts.pipeline import PipelineSpec
from irlops.contracts.pipeline_jobs import evaluation_document, run_name, training_document
from irlops.contracts.pytorchjob import CONTAINER, DEFAULT_PORT, PORT_NAME
from irlops.operator.names import (
    ATTEMPT_ANNOTATION,
    EVALUATION,
    GENERATION_ANNOTATION,
    REGISTRATION,
    claim_name,
    job_file_name,
    job_name,
    run_id,
)

Body = dict[str, Any]

STATE_DIR = "/var/lib/irlops"
DATA_DIR = "/var/lib/irlops-data"
JOB_DIR = "/etc/irlops"
USER_ID = 10001
"""Of all our images."""
GRACE_S = 120
"""To finish a round and write a checkpoint."""
REGISTRATION_RESOURCES = {
    "requests": {"cpu": "100m", "memory": "512Mi"},
    "limits": {"cpu": "1", "memory": "1Gi"},
}
"""It reads digests of files, and needs no accelerator."""


def job_document(spec: PipelineSpec, run: str, stage: str) -> Body | None:
    """The job file of a stage, checked; None for the registration, which takes arguments.

    Raises:
        ConfigError: the stage's settings are no job file's.
        ManifestError: the settings set what the pipeline sets itself.
    """
    if stage == REGISTRATION:
        return None
    if stage == EVALUATION:
        document = evaluation_document(spec, run)
    else:
        index = next(index for index, one in enumerate(spec.stages) if one.name == stage)
        document = training_document(spec, index, run)
    parse_job(document, origin=f"The job file of stage {stage}")
    return document


def owner_reference(pipeline: Mapping[str, Any]) -> Body:
    """What makes the API server delete an object together with its pipeline."""
    metadata = pipeline["metadata"]
    return {
        "apiVersion": pipeline["apiVersion"],
        "kind": pipeline["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def state_claim(pipeline: Mapping[str, Any], spec: PipelineSpec, settings: OperatorSettings) -> Body | None:
    """The claim that the operator makes; None for one of the user's. Not owned by the pipeline: weights outlive it."""
    volume = spec.job_template.state_volume
    if volume.claim_name is not None:
        return None
    name = pipeline["metadata"]["name"]
    wanted: Body = {
        "accessModes": [volume.access_mode],
        "resources": {"requests": {"storage": str(volume.size)}},
    }
    if volume.storage_class_name:
        wanted["storageClassName"] = volume.storage_class_name
    labels = _labels(settings) | {PIPELINE_LABEL: name}
    metadata = {"name": claim_name(name, spec), "labels": labels}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": wanted}


def job_file(pipeline: Mapping[str, Any], spec: PipelineSpec, stage: str, settings: OperatorSettings) -> Body | None:
    """The ConfigMap that a stage's pods mount."""
    run = run_id(pipeline, spec)
    document = job_document(spec, run, stage)
    if document is None:
        return None
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    metadata = _metadata(pipeline, job_file_name(run, stage), run, stage, settings)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"job.yaml": text}}


def training_job(
    pipeline: Mapping[str, Any],
    spec: PipelineSpec,
    stage: str,
    *,
    generation: int,
    attempt: int,
    settings: OperatorSettings,
) -> Body:
    """The PyTorchJob of one attempt at a stage. Workers only: beside a Master the training operator puts an init container
    into pods that a restricted namespace refuses."""
    run, template = run_id(pipeline, spec), spec.job_template
    metadata = _metadata(pipeline, job_name(run, stage, generation, attempt), run, stage, settings)
    metadata["annotations"] = {ATTEMPT_ANNOTATION: str(attempt), GENERATION_ANNOTATION: str(generation)}
    if template.queue_name:
        metadata["labels"]["kueue.x-k8s.io/queue-name"] = template.queue_name
    replicas = _replicas(spec, stage)
    elastic = template.elastic if stage not in (EVALUATION, REGISTRATION) else None
    run_policy: Body = {
        # Restarts of containers inside their pods; what is started anew as a whole is counted in spec.retries.
        "backoffLimit": template.elastic.max_restarts if template.elastic else 3,
        "cleanPodPolicy": "Running",
        "activeDeadlineSeconds": template.active_deadline_seconds,
        "ttlSecondsAfterFinished": template.ttl_seconds_after_finished,
    }
    if template.priority_class_name:
        run_policy["schedulingPolicy"] = {"priorityClass": template.priority_class_name}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": metadata,
        "spec": {
            "runPolicy": run_policy,
            "nprocPerNode": "1" if stage == REGISTRATION else str(template.processes_per_replica),
            "elasticPolicy": {
                "rdzvBackend": "c10d",
                "minReplicas": min(elastic.min_replicas, replicas) if elastic else replicas,
                "maxReplicas": elastic.max_replicas if elastic else replicas,
                "maxRestarts": elastic.max_restarts if elastic else 3,
            },
            "pytorchReplicaSpecs": {
                "Worker": {
                    "replicas": replicas,
                    "restartPolicy": "ExitCode",
                    "template": _pod_template(pipeline, spec, stage, run, settings),
                }
            },
        },
    }


def _replicas(spec: PipelineSpec, stage: str) -> int:
    if stage == REGISTRATION:
        return 1
    own = next((one.replicas for one in spec.stages if one.name == stage), None)
    return own or spec.job_template.replicas


def _labels(settings: OperatorSettings) -> dict[str, str]:
    return {
        "app.kubernetes.io/part-of": "irlops",
        "app.kubernetes.io/managed-by": "irlops-operator",
        RELEASE_LABEL: settings.release,
    }


def _metadata(pipeline: Mapping[str, Any], name: str, run: str, stage: str, settings: OperatorSettings) -> Body:
    of = pipeline["metadata"]["name"]
    labels = _labels(settings) | {PIPELINE_LABEL: of, RUN_LABEL: run, STAGE_LABEL: stage}
    return {"name": name, "labels": labels, "ownerReferences": [owner_reference(pipeline)]}


def _pod_template(
    pipeline: Mapping[str, Any], spec: PipelineSpec, stage: str, run: str, settings: OperatorSettings
) -> Body:
    name = pipeline["metadata"]["name"]
    labels = _labels(settings) | {PIPELINE_LABEL: name, RUN_LABEL: run, STAGE_LABEL: stage, ROLE_LABEL: "job"}
    pod: Body = {
        "serviceAccountName": settings.job_service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(pipeline, spec, stage, run, settings)],
        "volumes": _volumes(name, spec, stage, run),
    }
    if spec.job_template.priority_class_name:
        # The scheduling policy's class means something to gang schedulers only.
        pod["priorityClassName"] = spec.job_template.priority_class_name
    if settings.job_image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret} for secret in settings.job_image_pull_secrets]
    rendered = {"metadata": {"labels": labels}, "spec": pod}
    return merged(rendered, spec.job_template.pod_template or {})


def _container(
    pipeline: Mapping[str, Any], spec: PipelineSpec, stage: str, run: str, settings: OperatorSettings
) -> Body:
    registers = stage == REGISTRATION
    name = pipeline["metadata"]["name"]
    resources = spec.job_template.resources.model_dump(exclude_defaults=True)
    command = ["python", "-m", "irlops_jobs.launch"]
    if registers:
        command = ["python", "-m", "irlops.operator.registration", *_registration_arguments(name, spec, run)]
    return {
        "name": CONTAINER,
        "image": spec.job_template.image or settings.job_image,
        "imagePullPolicy": settings.job_image_pull_policy,
        "command": command,
        "env": _environment(spec, settings),
        "ports": [{"name": PORT_NAME, "containerPort": DEFAULT_PORT}],
        "resources": REGISTRATION_RESOURCES if registers else resources,
        # The last lines of a job that failed become part of the pipeline's condition.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": _mounts(spec, stage),
    }


def _registration_arguments(pipeline: str, spec: PipelineSpec, run: str) -> list[str]:
    last = run_name(run, spec.stages[-1].name)
    return [
        f"--run={last}",
        f"--evaluation={run_name(run, EVALUATION)}/evaluation/evaluation.json",
        f"--claim={claim_name(pipeline, spec)}",
    ]


def _environment(spec: PipelineSpec, settings: OperatorSettings) -> list[Body]:
    environment: list[Body] = [
        {"name": "IRLOPS_JOB_FILE", "value": f"{JOB_DIR}/job.yaml"},
        {"name": "IRLOPS_STATE_DIR", "value": STATE_DIR},
        {"name": "MLFLOW_TRACKING_URI", "value": settings.tracking_uri},
        {"name": "HOME", "value": "/tmp"},  # noqa: S108 - the pod's own emptyDir
    ]
    if spec.data.claim_name:
        folder = DATA_DIR + (f"/{spec.data.sub_path}" if spec.data.sub_path else "")
        environment.append({"name": "IRLOPS_DATA_DIR", "value": folder})
    if settings.job_credentials_secret:
        for variable, key in (("MLFLOW_TRACKING_USERNAME", "username"), ("MLFLOW_TRACKING_PASSWORD", "password")):
            reference = {"name": settings.job_credentials_secret, "key": key}
            environment.append({"name": variable, "valueFrom": {"secretKeyRef": reference}})
    return cast("list[Body]", merged(environment, spec.job_template.env))


def _mounts(spec: PipelineSpec, stage: str) -> list[Body]:
    mounts: list[Body] = [{"name": "state", "mountPath": STATE_DIR}, {"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108
    if stage != REGISTRATION:
        mounts.insert(0, {"name": "job", "mountPath": JOB_DIR, "readOnly": True})
    if spec.data.claim_name:
        mounts.append({"name": "data", "mountPath": DATA_DIR, "readOnly": True})
    return mounts


def _volumes(pipeline: str, spec: PipelineSpec, stage: str, run: str) -> list[Body]:
    volumes: list[Body] = [
        {"name": "state", "persistentVolumeClaim": {"claimName": claim_name(pipeline, spec)}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
    ]
    if stage != REGISTRATION:
        volumes.insert(0, {"name": "job", "configMap": {"name": job_file_name(run, stage)}})
    if spec.data.claim_name:
        claim = {"claimName": spec.data.claim_name, "readOnly": True}
        volumes.append({"name": "data", "persistentVolumeClaim": claim})
    return volumes


def merged(base: Any, over: Any) -> Any:
    """``over`` merged into ``base``: objects key by key (null removes), lists of named items by name, others replaced."""
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        ours, theirs = cast("Mapping[str, Any]", base), cast("Mapping[str, Any]", over)
        result = {key: value for key, value in ours.items() if not (key in theirs and theirs[key] is None)}
        for key, value in theirs.items():
            if value is not None:
                result[key] = merged(result[key], value) if key in result else value
        return result
    if isinstance(base, list) and isinstance(over, list) and _are_named(base) and _are_named(over):
        by_name = {item["name"]: item for item in cast("list[Body]", base)}
        for item in cast("list[Body]", over):
            by_name[item["name"]] = merged(by_name[item["name"]], item) if item["name"] in by_name else item
        return list(by_name.values())
    return over


def _are_named(items: list[Any]) -> bool:
    return all(isinstance(item, Mapping) and "name" in item for item in items)
