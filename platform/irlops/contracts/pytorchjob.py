"""PyTorchJob, as far as we read it, and the objects that its pods mount.

A mistyped field is an error. Fields of pods and containers that only a cluster can honour are kept as written in
``set_aside``, for whoever runs the job elsewhere to name.
Source: training operator v1.9, CRD ``kubeflow.org_pytorchjobs.yaml``, ``pytorch_defaults.go`` and ``pytorchjob_webhook.go``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Base64Bytes, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

CONTAINER = "pytorch"
"""The container that the training operator looks at."""
PORT_NAME = "pytorchjob-port"
DEFAULT_PORT = 23456


class Part(BaseModel):
    """A part of the manifest; a mistyped field is an error, as it is for the API server's strict validation."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, use_attribute_docstrings=True
    )


class KeyRef(Part):
    name: str
    key: str
    optional: bool = False


class FieldRef(Part):
    api_version: str = "v1"
    field_path: str


class EnvSource(Part):
    config_map_key_ref: KeyRef | None = None
    secret_key_ref: KeyRef | None = None
    field_ref: FieldRef | None = None
    resource_field_ref: dict[str, Any] | None = None


class EnvVar(Part):
    name: str = Field(min_length=1)
    value: str | None = None
    value_from: EnvSource | None = None


class ObjectRef(Part):
    name: str
    optional: bool = False


class EnvFrom(Part):
    prefix: str = ""
    config_map_ref: ObjectRef | None = None
    secret_ref: ObjectRef | None = None


class VolumeMount(Part):
    name: str
    mount_path: str = Field(pattern="^/")
    sub_path: str = ""
    read_only: bool = False
    mount_propagation: str | None = None
    recursive_read_only: str | None = None


class ContainerPort(Part):
    name: str | None = None
    container_port: int
    protocol: str = "TCP"
    host_port: int | None = None
    host_ip: str | None = Field(default=None, alias="hostIP")


Quantity = Annotated[str, BeforeValidator(lambda value: value if isinstance(value, str) else str(value))]


class Resources(Part):
    requests: dict[str, Quantity] = {}
    limits: dict[str, Quantity] = {}
    claims: list[dict[str, Any]] = []

    def wanted(self, name: str) -> str | None:
        """A limit, or the request where no limit is set."""
        return self.limits.get(name, self.requests.get(name))


class Container(Part):
    model_config = ConfigDict(extra="allow")  # what else a container may have: see ``set_aside``

    name: str
    image: str = Field(min_length=1)
    command: list[str] = []
    args: list[str] = []
    working_dir: str | None = None
    env: list[EnvVar] = []
    env_from: list[EnvFrom] = []
    ports: list[ContainerPort] = []
    resources: Resources = Resources()
    volume_mounts: list[VolumeMount] = []

    @property
    def set_aside(self) -> Mapping[str, Any]:
        """Fields that mean nothing to us, as written."""
        return self.model_extra or {}


class KeyToPath(Part):
    key: str
    path: str
    mode: int | None = None


class ConfigMapVolume(Part):
    name: str
    items: list[KeyToPath] = []
    default_mode: int | None = None
    optional: bool = False


class SecretVolume(Part):
    secret_name: str
    items: list[KeyToPath] = []
    default_mode: int | None = None
    optional: bool = False


class ClaimVolume(Part):
    claim_name: str
    read_only: bool = False


class EmptyDirVolume(Part):
    medium: str = ""
    size_limit: Quantity | None = None


class Volume(Part):
    model_config = ConfigDict(extra="allow")  # other kinds of volume: see ``other_kind``

    name: str
    config_map: ConfigMapVolume | None = None
    secret: SecretVolume | None = None
    persistent_volume_claim: ClaimVolume | None = None
    empty_dir: EmptyDirVolume | None = None

    @property
    def other_kind(self) -> str | None:
        """Name of a volume kind that is not among the four."""
        return next(iter(self.model_extra or {}), None)


class Pod(Part):
    model_config = ConfigDict(extra="allow")  # what else a pod may have: see ``set_aside``

    containers: list[Container] = Field(min_length=1)
    volumes: list[Volume] = []
    termination_grace_period_seconds: int = Field(default=30, ge=0)

    @property
    def set_aside(self) -> Mapping[str, Any]:
        """Fields that only a cluster can honour, as written."""
        return self.model_extra or {}

    @property
    def pytorch(self) -> Container:
        return next(one for one in self.containers if one.name == CONTAINER)


class PodTemplate(Part):
    metadata: dict[str, Any] = {}
    spec: Pod


RestartPolicy = Literal["Always", "OnFailure", "Never", "ExitCode"]


class ReplicaSpec(Part):
    replicas: int = Field(default=1, ge=1)
    restart_policy: RestartPolicy = "OnFailure"
    template: PodTemplate


class ReplicaSpecs(Part):
    model_config = ConfigDict(alias_generator=None)

    Master: ReplicaSpec | None = None
    Worker: ReplicaSpec | None = None


class RendezvousSetting(Part):
    key: str
    value: str


class ElasticPolicy(Part):
    min_replicas: int | None = Field(default=None, ge=1)
    max_replicas: int | None = Field(default=None, ge=1)
    rdzv_backend: Literal["c10d", "etcd", "etcd-v2"] = "c10d"
    rdzv_host: str | None = None
    rdzv_port: int | None = None
    rdzv_id: str | None = None
    rdzv_conf: list[RendezvousSetting] = []
    standalone: bool = False
    max_restarts: int | None = Field(default=None, ge=0)
    metrics: list[dict[str, Any]] = []
    n_proc_per_node: int | None = None


class RunPolicy(Part):
    clean_pod_policy: Literal["", "All", "Running", "None"] = "None"
    ttl_seconds_after_finished: int | None = Field(default=None, ge=0)
    active_deadline_seconds: int | None = Field(default=None, ge=1)
    backoff_limit: int | None = Field(default=None, ge=0)
    suspend: bool = False
    managed_by: str | None = None
    scheduling_policy: dict[str, Any] | None = None


class JobSpec(Part):
    run_policy: RunPolicy
    """Required by the SDK's model, which can't read a job back without it."""
    elastic_policy: ElasticPolicy | None = None
    nproc_per_node: str = "auto"
    pytorch_replica_specs: ReplicaSpecs

    @model_validator(mode="after")
    def _is_admitted(self) -> JobSpec:
        """What the operator's webhook would refuse, or what runs otherwise than it reads."""
        specs = self.pytorch_replica_specs
        if specs.Master is None and specs.Worker is None:
            raise ValueError("pytorchReplicaSpecs has neither a Master nor a Worker")
        if specs.Master and ("replicas" not in specs.Master.model_fields_set or specs.Master.replicas != 1):
            seen = specs.Master.replicas if "replicas" in specs.Master.model_fields_set else "no number at all"
            raise ValueError(f"a PyTorchJob has one Master, written as replicas: 1 (seen: {seen})")
        if self.elastic_policy and not specs.Worker:
            raise ValueError("elasticPolicy needs Worker replicas")
        if self.elastic_policy and specs.Master:
            raise ValueError(
                "elasticPolicy beside a Master gives pods two rendezvous that contradict each other; use Workers only"
            )
        for kind, spec in self.replicas():
            if all(one.name != CONTAINER for one in spec.template.spec.containers):
                raise ValueError(
                    f"{kind} has no container called {CONTAINER!r}, the one that the training operator runs"
                )
        return self

    def replicas(self) -> Iterator[tuple[str, ReplicaSpec]]:
        """Master before Worker, those that there are."""
        specs = self.pytorch_replica_specs
        for kind, spec in (("Master", specs.Master), ("Worker", specs.Worker)):
            if spec is not None:
                yield kind, spec


class JobMetadata(Part):
    model_config = ConfigDict(extra="allow")

    name: str = Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=63)
    namespace: str | None = None
    labels: dict[str, str] = {}


class PyTorchJob(Part):
    api_version: Literal["kubeflow.org/v1"]
    kind: Literal["PyTorchJob"]
    metadata: JobMetadata
    spec: JobSpec
    status: dict[str, Any] | None = None


class Metadata(Part):
    model_config = ConfigDict(extra="allow")

    name: str = Field(min_length=1)


class Claim(Part):
    """A PersistentVolumeClaim; what it asks for is the cluster's business."""

    model_config = ConfigDict(extra="allow")

    metadata: Metadata


class ConfigMap(Part):
    api_version: Literal["v1"]
    kind: Literal["ConfigMap"]
    metadata: Metadata
    immutable: bool = False
    data: dict[str, str] = {}
    binary_data: dict[str, Base64Bytes] = {}

    @property
    def content(self) -> dict[str, bytes]:
        """Key to file content."""
        return {**self.binary_data, **{key: value.encode() for key, value in self.data.items()}}


class Secret(Part):
    api_version: Literal["v1"]
    kind: Literal["Secret"]
    metadata: Metadata
    type: str = "Opaque"
    immutable: bool = False
    data: dict[str, Base64Bytes] = {}
    string_data: dict[str, str] = {}

    @property
    def content(self) -> dict[str, bytes]:
        """Key to file content."""
        return {**self.data, **{key: value.encode() for key, value in self.string_data.items()}}
