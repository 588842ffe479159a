"""Everything of ours in a namespace, one row each: pipelines and jobs.

overview(connection) -> (Row(kind="PyTorchJob", name="airl-tiny", phase="Running", ...), ...)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from irlops.cluster.connection import TIMEOUT_S, Connection, explaining
from irlops.cluster.job_states import job_state
from irlops.errors import PermanentError

PIPELINE_GROUP, PIPELINE_VERSION, PIPELINE_PLURAL = "irlops.dev", "v1alpha1", "reasoningpipelines"
PIPELINE_LABEL = "irlops.dev/pipeline"
"""On every pod that the operator starts for a pipeline."""


@dataclass(frozen=True)
class Row:
    """One line of ``irlops status``.

    Example: ``Row(kind="ReasoningPipeline", name="tiny", phase="Training", progress="stage airl", message="",
    created_at="2026-11-23T10:00:00Z")``
    """

    kind: str
    name: str
    phase: str
    progress: str
    """Pods that run, or a pipeline's stage and pair."""
    message: str
    created_at: str
    """RFC 3339."""


def overview(connection: Connection) -> tuple[Row, ...]:
    """Pipelines, then jobs, each by name; a kind that the cluster does not know has no rows.

    Raises:
        PermanentError: neither kind is installed, or they may not be listed.
        UnavailableError: the API does not answer.
    """
    pipelines = _listed(connection, PIPELINE_GROUP, PIPELINE_VERSION, PIPELINE_PLURAL)
    jobs = _listed(connection, "kubeflow.org", "v1", "pytorchjobs")
    if pipelines is None and jobs is None:
        raise PermanentError(
            f"The cluster at {connection.host} knows neither PyTorchJobs nor ReasoningPipelines. `irlops doctor` says how to "
            "install them."
        )
    return (*map(_pipeline_row, pipelines or []), *map(_job_row, jobs or []))


def find_pipeline(connection: Connection, name: str) -> Row | None:
    """A pipeline's row, None when there is none of that name; errors as ``overview``."""
    from kubernetes.client.exceptions import ApiException

    with explaining(f"read the ReasoningPipeline {name} in {connection.namespace}", connection):
        try:
            found = _custom_objects(connection).get_namespaced_custom_object(
                PIPELINE_GROUP,
                PIPELINE_VERSION,
                connection.namespace,
                PIPELINE_PLURAL,
                name,
                _request_timeout=TIMEOUT_S,
            )
        except ApiException as error:
            if error.status == 404:
                return None
            raise
    return _pipeline_row(found)


def _listed(connection: Connection, group: str, version: str, plural: str) -> list[Mapping[str, Any]] | None:
    """None when the cluster does not know the kind."""
    from kubernetes.client.exceptions import ApiException

    with explaining(f"list {plural}.{group} in {connection.namespace}", connection):
        try:
            found = _custom_objects(connection).list_namespaced_custom_object(
                group, version, connection.namespace, plural, _request_timeout=TIMEOUT_S
            )
        except ApiException as error:
            if error.status == 404:
                return None
            raise
    return sorted(found["items"], key=lambda one: one["metadata"]["name"])


def _custom_objects(connection: Connection) -> Any:
    import kubernetes.client

    client: Any = kubernetes.client
    return client.CustomObjectsApi(client.ApiClient(connection.configuration))


def _job_row(job: Mapping[str, Any]) -> Row:
    state = job_state(job)
    return Row(
        kind="PyTorchJob",
        name=state.name,
        phase=state.phase,
        progress=f"{state.num_active}/{state.num_wanted} pods",
        message="" if state.phase in ("Running", "Created", "Succeeded") else state.message,
        created_at=state.created_at,
    )


def _pipeline_row(pipeline: Mapping[str, Any]) -> Row:
    status: Mapping[str, Any] = pipeline.get("status") or {}
    stage = (status.get("run") or {}).get("stage")
    pair = (status.get("pairs") or {}).get("serving") or {}
    serving = f"serves policy {pair['policyVersion']}, critic {pair['criticVersion']}" if pair else ""
    return Row(
        kind="ReasoningPipeline",
        name=pipeline["metadata"]["name"],
        phase=str(status.get("phase") or "Pending"),
        progress=", ".join(part for part in (f"stage {stage}" if stage else "", serving) if part),
        message=str(status.get("message") or ""),
        created_at=str(pipeline["metadata"].get("creationTimestamp") or ""),
    )
