"""One look at one pipeline: only what its present step needs is read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from pydantic import ValidationError

from irlops.cluster.api import CLAIM, CONFIGMAP, INFERENCESERVICE, POD, PYTORCHJOB, ApiMissingError, KubernetesApi
from irlops.contracts.operator import PIPELINE_LABEL, RUN_LABEL, STAGE_LABEL, OperatorSettings
from irlops.contracts.pipeline import PipelineSpec
from irlops.contracts.pipeline_jobs import run_name
from irlops.contracts.pipeline_status import PipelineStatus
from irlops.errors import PairError, UnavailableError
from irlops.operator.names import REGISTRATION, claim_name, run_id
from irlops.operator.observed import GatewayAnswer, Observed, RegisteredPair, RegistryView
from irlops.operator.reconcile import read_status
from irlops.operator.registry import Registry, versions_in
from irlops.operator.training import decision_on

Body = dict[str, Any]


class Gateway(Protocol):
    """Asks the gateway which pair it answers with."""

    async def answer(self) -> GatewayAnswer: ...


class Caller(Protocol):
    """Runs a registry call that blocks."""

    async def __call__(self, function: Callable[..., Any], /, *arguments: Any) -> Any: ...


@dataclass
class Eyes:
    """Where to look."""

    api: KubernetesApi
    registry: Registry
    gateway: Gateway
    settings: OperatorSettings
    call: Caller = asyncio.to_thread

    async def observe(self, pipeline: Body, *, now: datetime, gateway_owner: str | None) -> Observed:
        """Everything about ``pipeline`` as it is this moment.

        Raises:
            ApiUnavailableError, ApiRefusedError: of the Kubernetes API.
        """
        status = read_status(pipeline)
        try:
            spec = PipelineSpec.model_validate(pipeline.get("spec"))
        except ValidationError:
            return Observed(pipeline, now)  # reconcile says what is wrong with it
        run = run_id(pipeline, spec)
        is_open = decision_on(status, run, pipeline["metadata"].get("generation", 1)) is None
        serves = spec.serving is not None and gateway_owner == pipeline["metadata"]["name"]
        jobs, missing_kinds = await self._jobs(pipeline) if is_open else ([], [])
        services, unserved_kinds = await self._services(pipeline) if serves or status.pairs is not None else ([], [])
        return Observed(
            pipeline,
            now,
            jobs=jobs,
            pods=await self._pods(jobs),
            services=services,
            missing_claims=await self._missing_claims(pipeline, spec) if is_open and not _has_begun(jobs, run) else [],
            missing_kinds=[*missing_kinds, *unserved_kinds],
            registry=await self._registry_view(pipeline, spec, status, jobs, is_open=is_open, serves=serves),
            pair_config=await self.api.get(CONFIGMAP, self.settings.gateway_pair_config_map) if serves else None,
            gateway=await self.gateway.answer() if serves and _is_moving(status) else GatewayAnswer(),
            gateway_owner=gateway_owner,
        )

    async def _jobs(self, pipeline: Body) -> tuple[list[Body], list[str]]:
        try:
            return await self.api.list(PYTORCHJOB, {PIPELINE_LABEL: pipeline["metadata"]["name"]}), []
        except ApiMissingError:
            return [], [PYTORCHJOB.kind]

    async def _services(self, pipeline: Body) -> tuple[list[Body], list[str]]:
        try:
            return await self.api.list(INFERENCESERVICE, {PIPELINE_LABEL: pipeline["metadata"]["name"]}), []
        except ApiMissingError:
            return [], [INFERENCESERVICE.kind]

    async def _pods(self, jobs: Sequence[Body]) -> list[Body]:
        """Pods of failed jobs: why they failed."""
        failed = [job["metadata"]["name"] for job in jobs if _has(job, "Failed")]
        found = [await self.api.list(POD, {"training.kubeflow.org/job-name": name}) for name in failed[-1:]]
        return [pod for pods in found for pod in pods]

    async def _missing_claims(self, pipeline: Body, spec: PipelineSpec) -> list[str]:
        volume = spec.job_template.state_volume
        needed = [spec.data.claim_name]
        if volume.claim_name is not None:
            needed.append(claim_name(pipeline["metadata"]["name"], spec))
        return [name for name in needed if name is not None and await self.api.get(CLAIM, name) is None]

    async def _registry_view(
        self,
        pipeline: Body,
        spec: PipelineSpec,
        status: PipelineStatus,
        jobs: Sequence[Body],
        *,
        is_open: bool,
        serves: bool,
    ) -> RegistryView:
        run = run_id(pipeline, spec)
        is_registered = is_open and (
            any(_is_done(job, run) for job in jobs)
            or any(entry.run == run and entry.pair is not None for entry in status.history)
        )
        if not serves and not is_registered:
            return RegistryView()
        last = run_name(run, spec.stages[-1].name) if is_registered else None
        named = [status.pairs.candidate, status.pairs.last_good] if status.pairs else []
        alias = spec.serving.alias if spec.serving else "champion"
        return await self.call(look_up, self.registry, alias, last, versions_in(list(named)))


def look_up(registry: Registry, alias: str, run: str | None, versions: set[int]) -> RegistryView:
    """What MLflow says of an alias, a run and the pairs that a status names."""
    alias_pair, alias_problem = None, ""
    try:
        held = registry.aliases().get(alias)
        if held is not None:
            try:
                alias_pair = registry.pair(held)
            except PairError as error:
                alias_problem = f"The alias {alias} stands on no whole pair: {error} Promote another: irlops pairs list"
        run_pair = registry.pair_of_run(run) if run is not None else None
        pairs = {str(version): pair for version in versions if (pair := _whole(registry, version)) is not None}
    except UnavailableError as error:
        known = {str(version): pair for version in versions if (pair := registry.remembered(version)) is not None}
        return RegistryView(is_reachable=False, problem=str(error), pairs=known)
    return RegistryView(alias_pair=alias_pair, alias_problem=alias_problem, run_pair=run_pair, pairs=pairs)


def _whole(registry: Registry, version: int) -> RegisteredPair | None:
    try:
        return registry.pair(version)
    except PairError:
        return None  # deleted since; what serves needs no look at it


def _has_begun(jobs: Sequence[Body], run: str) -> bool:
    return any(job["metadata"].get("labels", {}).get(RUN_LABEL) == run for job in jobs)


def _is_moving(status: PipelineStatus) -> bool:
    return status.pairs is not None and status.pairs.candidate is not None


def _is_done(job: Mapping[str, Any], run: str) -> bool:
    labels = job["metadata"].get("labels", {})
    return labels.get(RUN_LABEL) == run and labels.get(STAGE_LABEL) == REGISTRATION and _has(job, "Succeeded")


def _has(job: Mapping[str, Any], kind: str) -> bool:
    conditions = job.get("status", {}).get("conditions", [])
    return any(one.get("type") == kind and one.get("status") == "True" for one in conditions)
