"""The custom resource ``ReasoningPipeline`` (irlops.dev/v1alpha1) and its ``spec``, what a user writes:

    PipelineSpec    data, baseModels, stages, evaluation, jobTemplate, gates, serving, retries, suspend

What the operator answers is in ``pipeline_status``, what a spec asks of its jobs in ``pipeline_jobs``.

The CRD's schema is generated from these classes and those of the status (``pipeline_crd``), so the operator and the API
server can't come to mean different things. Keys are camelCase on the wire and snake_case here. What only a cluster can know
(whether a claim, a data set, a metric or a queue exists) is not refused by the schema: the operator says so in a
condition with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic.alias_generators import to_camel

from irlops.contracts.jobs import ModelConfig
from irlops.contracts.pair import Gate
from irlops.errors import ManifestError

GROUP = "irlops.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "ReasoningPipeline"
PLURAL = "reasoningpipelines"

MAX_NAME_CHARS = 40
"""Jobs, claims and InferenceServices are called after the pipeline, with up to 23 more characters; a label takes 63."""
MAX_HISTORY = 20

Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
"""A DNS-1035 label."""
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", max_length=253)]
RelativePath = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$", max_length=512)]
Time = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
Quantity = Annotated[
    str | int,
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)(([KMGTPE]i)|[numkMGTPE]|([eE][-+]?[0-9]+))?$",
        }
    ),
]
Verbatim = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})]
"""An object of another API, checked by whoever owns that API."""


def rules(*broken: tuple[str, str]) -> dict[str, Any]:
    """CEL rules for the schema: pairs of a rule and the sentence that is shown when it is broken."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": text} for rule, text in broken]}


def keyed_by(*names: str) -> dict[str, Any]:
    """Marks a list whose items are told apart by ``names``: server-side apply then merges them one by one."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(names)}


class Part(BaseModel):
    """A frozen part of the resource; a key that no version knows is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, alias_generator=to_camel, populate_by_name=True
    )


class PipelineData(Part):
    """Which demonstrations to learn from. Fields are those of a job file's ``data``."""

    name: str = Field(min_length=1, max_length=63)
    """The data set, as the job image knows it: gsm8k, arithmetic."""
    claim_name: ObjectName | None = None
    """A PersistentVolumeClaim of this namespace with train.jsonl and test.jsonl; without one the job asks the hub."""
    sub_path: RelativePath | None = None
    """Folder inside the claim."""
    calculator_annotations: Literal["keep", "strip"] = "strip"
    num_train: int | None = Field(default=None, ge=1)
    num_dev: int = Field(default=256, ge=8)
    num_test: int | None = Field(default=None, ge=1)
    min_steps: int = Field(default=2, ge=1, le=8)
    max_steps: int = Field(default=4, ge=1, le=8)
    on_malformed: Literal["raise", "skip"] = "raise"
    seed: int = 0


class BaseModels(ModelConfig):
    """What training starts from: a job file's ``model``, in camelCase. Folders lie on the state volume."""

    model_config = Part.model_config


class Resources(Part):
    """As in any pod."""

    requests: dict[str, Quantity] = {}
    limits: dict[str, Quantity] = {}


class Elastic(Part):
    """Lets a run go on with fewer workers while some are away."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("self.minReplicas <= self.maxReplicas", "minReplicas is above maxReplicas"),
        )
    )
    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(ge=1)
    max_restarts: int = Field(default=3, ge=0)
    """Gang restarts that torchrun makes before the job counts as failed."""


class StateVolume(Part):
    """Where checkpoints and exports lie: an existing claim, or one that the operator makes and keeps."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.claimName) != has(self.size)",
                "stateVolume takes claimName (yours) or size (the operator makes one)",
            ),
        )
    )
    claim_name: ObjectName | None = None
    size: Quantity | None = None
    storage_class_name: ObjectName | None = None
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"] = "ReadWriteOnce"
    """Several nodes need ReadWriteMany."""


class JobTemplate(Part):
    """The pods that train and evaluate."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.elastic) || "
                "(self.elastic.minReplicas <= self.replicas && self.replicas <= self.elastic.maxReplicas)",
                "replicas lies outside elastic.minReplicas..maxReplicas",
            ),
            (
                "self.replicas == 1 || has(self.stateVolume.claimName) || "
                "self.stateVolume.accessMode == 'ReadWriteMany'",
                "several replicas share the state volume: set stateVolume.accessMode to ReadWriteMany",
            ),
        )
    )
    image: str | None = Field(default=None, min_length=1, max_length=512)
    """The operator's own job image when absent."""
    replicas: int = Field(default=1, ge=1, le=1024)
    """Pods, usually one per node."""
    processes_per_replica: int = Field(default=1, ge=1, le=64)
    """One for each GPU; 1 on a CPU."""
    resources: Resources = Resources()
    state_volume: StateVolume
    elastic: Elastic | None = None
    queue_name: ObjectName | None = None
    """A Kueue LocalQueue; the job then starts suspended and Kueue admits it."""
    priority_class_name: ObjectName | None = None
    active_deadline_seconds: int = Field(default=86_400, ge=60)
    """Counted by the training operator from the start of each job."""
    ttl_seconds_after_finished: int = Field(default=604_800, ge=0)
    env: list[Verbatim] = Field(default=[], max_length=64)
    """Added to the container ``pytorch``; secrets by ``valueFrom``."""
    pod_template: Verbatim | None = None
    """``metadata`` and ``spec`` merged over the rendered pods: node selectors, tolerations, affinity, further volumes."""


class Stage(Part):
    """One training job."""

    name: Name
    kind: Literal["sft", "airl", "grpo"]
    settings: Verbatim = {}
    """Keys of the job file (snake_case), less kind, run_name, data and model."""
    replicas: int | None = Field(default=None, ge=1, le=1024)
    """Of this stage, when it differs from the template."""


class EvaluationStep(Part):
    """The job that makes evaluation.json."""

    samples_per_problem: int = Field(default=16, ge=2, le=256)
    settings: Verbatim = {}
    """Further keys of an evaluate job file (snake_case)."""


class PipelineGate(Part):
    """One number that decides whether a new pair may serve."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.minimum) || has(self.maximum) || has(self.maxDrop) || has(self.maxRise)",
                "a gate needs minimum, maximum, maxDrop or maxRise",
            ),
            (
                "!has(self.minimum) || !has(self.maximum) || self.minimum <= self.maximum",
                "minimum is above maximum: nothing can pass",
            ),
        )
    )
    metric: str = Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9_.@-]+$")
    """Its path in evaluation.json without ``mean``: pass_at_k.1, selectors.weighted_majority.16, critic.auroc."""
    minimum: float | None = None
    maximum: float | None = None
    max_drop: float | None = Field(default=None, ge=0)
    """How far below the serving champion's it may lie; passes while there is no champion."""
    max_rise: float | None = Field(default=None, ge=0)
    """How far above the serving champion's it may lie, for numbers that should be small."""

    def against(self, champion_metrics: Mapping[str, float] | None) -> Gate:
        """The absolute gate, given the champion's metrics (None: there is no champion).

        Example: minimum 0.2, max_drop 0.05, champion 0.4 -> minimum 0.35.
        """
        champion = (champion_metrics or {}).get(self.metric)
        lows = [self.minimum] if self.minimum is not None else []
        highs = [self.maximum] if self.maximum is not None else []
        if champion is not None:
            lows += [champion - self.max_drop] if self.max_drop is not None else []
            highs += [champion + self.max_rise] if self.max_rise is not None else []
        return Gate(metric=self.metric, minimum=max(lows, default=None), maximum=min(highs, default=None))


class Autoscaling(Part):
    """How many pods serve one half."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("self.minReplicas <= self.maxReplicas", "minReplicas is above maxReplicas"),
            (
                "self.minReplicas > 0 || self.class == 'keda'",
                "only keda scales to zero; set minReplicas to 1 or more",
            ),
            ("self.class != 'keda' || has(self.metrics)", "keda needs metrics (KServe's autoScaling.metrics)"),
        )
    )
    class_: Literal["hpa", "keda", "none"] = Field(default="none", alias="class")
    min_replicas: int = Field(default=1, ge=0, le=256)
    max_replicas: int = Field(default=1, ge=1, le=256)
    target_cpu_percent: int | None = Field(default=None, ge=1, le=100)
    metrics: list[Verbatim] | None = Field(default=None, max_length=8)
    """KServe's ``autoScaling.metrics``, for keda."""


class HalfTemplate(Part):
    """The InferenceService of one half."""

    runtime: ObjectName | None = None
    """A ServingRuntime of this namespace; the chart's when absent."""
    resources: Resources = Resources()
    autoscaling: Autoscaling = Autoscaling()
    timeout_seconds: int = Field(default=600, ge=1)
    """Of one request; KServe's own default of 60 s cuts long generations."""
    args: list[str] = Field(default=[], max_length=64)
    """Added to the runtime's."""
    env: list[Verbatim] = Field(default=[], max_length=64)
    storage_uri: str | None = Field(default=None, max_length=1024, pattern=r"^[a-z][a-z0-9+-]*://\S+$")
    """Where the weights lie for KServe, with ``{version}`` for the version, when the registered location is not one
    that it can read (``s3://models/policy/{version}``)."""
    pod_template: Verbatim | None = None
    """``metadata`` and ``spec`` merged into the predictor: node selectors, tolerations, service account."""


class Rollout(Part):
    """How serving moves from one pair to the next."""

    strategy: Literal["BlueGreen", "InPlace"] = "BlueGreen"
    """BlueGreen starts the new pair beside the old one and needs room for both; InPlace stops the old one first."""
    timeout_seconds: int = Field(default=1800, ge=30)
    """For both halves to become ready; then the last good pair is put back."""
    health_check_seconds: int = Field(default=60, ge=0)
    """How long the new pair has to answer through the gateway before the old one is taken away."""


class ServingTemplate(Part):
    """The served pair."""

    policy: HalfTemplate = HalfTemplate()
    critic: HalfTemplate = HalfTemplate()
    rollout: Rollout = Rollout()
    alias: Literal["champion", "challenger"] = "champion"
    """The alias that is moved to a pair that passed, and followed when somebody moves it in the registry."""
    auto_promote: bool = True
    """False leaves the alias to a person: ``irlops pairs promote``."""


class Retries(Part):
    """What is tried again, and how often. Failures that another try can't mend are never tried again."""

    limit: int = Field(default=3, ge=0, le=20)
    """Of one stage, for exits that the training operator calls retryable and for evictions."""
    backoff_seconds: int = Field(default=30, ge=1)
    """Before the first retry; doubled each time."""
    max_backoff_seconds: int = Field(default=1800, ge=1)


class PipelineSpec(Part):
    """What the user wants."""

    suspend: bool = False
    """True stops running jobs after their checkpoint and starts nothing new; what serves goes on serving."""
    data: PipelineData
    base_models: BaseModels = BaseModels()
    stages: list[Stage] = Field(min_length=1, max_length=8, json_schema_extra=keyed_by("name"))
    """In order; each starts from the one before."""
    evaluation: EvaluationStep = EvaluationStep()
    job_template: JobTemplate
    gates: list[PipelineGate] = Field(default=[], max_length=32, json_schema_extra=keyed_by("metric"))
    serving: ServingTemplate | None = None
    """Without it the pipeline ends with a registered pair."""
    retries: Retries = Retries()
    history_limit: int = Field(default=10, ge=0, le=MAX_HISTORY)


def parse_pipeline_spec(document: Any, *, origin: str) -> PipelineSpec:
    """Validate the ``spec`` of a ReasoningPipeline.

    Raises:
        ManifestError: names ``origin`` and each wrong key.
    """
    try:
        return PipelineSpec.model_validate(document)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(str(p) for p in e['loc']) or 'spec'}: {e['msg']}" for e in error.errors())
        raise ManifestError(
            f"{origin} is not a valid ReasoningPipeline: {faults}. `kubectl explain reasoningpipeline.spec` lists the keys."
        ) from error
