"""What the operator is told (by the chart, through the environment) and the series that it exports.

The chart's Deployment sets ``IRLOPS_OPERATOR_<FIELD>``; a test loads the rendered environment through
``OperatorSettings``, so neither can gain a name that the other doesn't know.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from irlops.errors import ConfigError

ENV_PREFIX = "IRLOPS_OPERATOR_"

RELEASE_LABEL = "irlops.dev/release"
"""On every pod that belongs to a release, made by the chart or by the operator: NetworkPolicies go by it."""
ROLE_LABEL = "irlops.dev/role"
"""policy, critic, job."""
PIPELINE_LABEL = "irlops.dev/pipeline"
RUN_LABEL = "irlops.dev/run"
STAGE_LABEL = "irlops.dev/stage"
POLICY_VERSION_LABEL = "irlops.dev/policy-version"
CRITIC_VERSION_LABEL = "irlops.dev/critic-version"
FIELD_MANAGER = "irlops-operator"
PAIR_CONFIG_KEY = "gateway.yaml"
"""Key of the pair ConfigMap; its value is the ``pair`` section of the gateway's settings."""


class OperatorSettings(BaseSettings):
    """Everything the operator is told. Credentials of MLflow come as MLFLOW_TRACKING_USERNAME and _PASSWORD."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid", use_attribute_docstrings=True)

    namespace: str
    """The one namespace that it watches and writes to."""
    release: str
    """Value of RELEASE_LABEL on everything that it makes."""
    identity: str
    """Who holds the Lease: the pod's name."""
    lease_name: str = "irlops-operator"
    """One for the whole namespace, so that two releases never write to the same pipeline."""
    lease_duration_s: int = Field(default=30, ge=5)
    tracking_uri: str = Field(validation_alias="MLFLOW_TRACKING_URI")
    gateway_url: str
    """Asked for /readyz during a roll-out."""
    gateway_pair_config_map: str
    """The ConfigMap whose PAIR_CONFIG_KEY says which pair the gateway answers with."""
    policy_runtime: str
    """ServingRuntime of a policy that names none."""
    critic_runtime: str
    critic_protocol: Literal["v2", "vllm"]
    """What the critic's runtime speaks."""
    job_image: str
    job_service_account: str
    job_image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    job_image_pull_secrets: Annotated[tuple[str, ...], NoDecode] = ()
    """Names, separated by commas."""
    job_credentials_secret: str | None = None
    """Secret with username and password for MLflow, given to job pods as environment; none: MLflow asks for none."""
    serving_service_account: str
    registry_poll_s: float = Field(default=30, ge=1)
    """Between two looks at the aliases; the webhook only shortens the wait."""
    resync_s: float = Field(default=300, ge=10)
    """Between two looks at a pipeline that nothing happened to."""
    workers: int = Field(default=4, ge=1, le=64)
    """Pipelines reconciled at once."""
    health_port: int = 8080
    metrics_port: int = 9090
    webhook_port: int = 8081
    """Where MLflow tells of moved aliases; nothing listens there without a secret."""
    webhook_secret: SecretStr | None = None
    """MLflow signs its calls with it. Without one, only polls tell of moved aliases."""
    webhook_url: str | None = None
    """Where MLflow reaches ``webhook_port``; the operator registers it there."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("job_image_pull_secrets", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(filter(None, value.split(","))) if isinstance(value, str) else value


def load_operator_settings() -> OperatorSettings:
    """Read the environment.

    Raises:
        ConfigError: a variable is missing, wrong or unknown; the message lists each.
    """
    known = {f"{ENV_PREFIX}{name.upper()}" for name in OperatorSettings.model_fields}
    unknown = sorted(name for name in os.environ if name.startswith(ENV_PREFIX) and name not in known)
    unknown = [name for name in unknown if not _is_service_link(name)]
    if unknown:
        raise ConfigError(f"Unknown environment variables {', '.join(unknown)}. Known: {', '.join(sorted(known))}.")
    try:
        return OperatorSettings()  # pyright: ignore[reportCallIssue] - the environment fills it
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
        raise ConfigError(
            f"The operator's environment is wrong: {faults}. The chart sets it; see operator.* there."
        ) from error


def _is_service_link(name: str) -> bool:
    """Whether Kubernetes injected the variable for a Service called ``irlops-operator``."""
    tail = name.removeprefix(ENV_PREFIX)
    return tail.startswith(("SERVICE_", "PORT"))


OPERATOR_SERIES: dict[str, str] = {
    "irlops_operator_is_leader": "1 while this process holds the Lease.",
    "irlops_operator_pipelines": "Pipelines, by phase.",
    "irlops_operator_reconcile_seconds": "One look at one pipeline (histogram).",
    "irlops_operator_reconcile_errors_total": "Looks that ended with an error, by reason.",
    "irlops_operator_api_writes_total": "Writes to the Kubernetes API, by kind of object.",
    "irlops_operator_registry_up": "1 when the last poll of MLflow answered.",
    "irlops_operator_runs_total": "Finished runs, by outcome.",
    "irlops_operator_rollbacks_total": "Roll-outs that were taken back.",
    "irlops_operator_job_retries_total": "Jobs started again after a retryable failure.",
}
"""Names as Prometheus shows them; alerts and dashboards use these and no others of the operator."""
