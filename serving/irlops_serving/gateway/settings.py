"""The gateway's settings: one YAML, overridden by ``IRLOPS_GATEWAY_<SECTION>__<FIELD>`` in the environment."""

from __future__ import annotations

import ipaddress
import json
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AnyHttpUrl,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from irlops.answers import AnswerRule
from irlops.contracts.rerank import MAX_CANDIDATES, Selector
from irlops.errors import ConfigError
from irlops.selection import Calibration

ENV_PREFIX = "IRLOPS_GATEWAY_"
CONFIG_FILE_VARIABLE = f"{ENV_PREFIX}CONFIG_FILE"
CALIBRATION_FILE_LIMIT_BYTES = 65_536


def _bare_url(value: Any) -> str:
    return str(TypeAdapter(AnyHttpUrl).validate_python(value)).rstrip("/")


# YAML reads an unquoted 3 as a number, and versions are mostly written so.
Version = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)]
BaseUrl = Annotated[str, BeforeValidator(_bare_url)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class PolicySettings(_Section):
    """The server that writes solutions."""

    url: BaseUrl
    """Where its OpenAI routes start, without ``/v1``."""
    model: str = "policy"
    """The name it serves the model under; clients always say ``policy``."""
    api_key: SecretStr | None = None
    """Sent to it as a bearer token."""
    ca_file: Path | None = None
    """Certificate authority of an https URL; the system's when absent."""
    tokenizer_file: Path | None = None
    """The policy's ``tokenizer.json``: token offsets without asking the server. Must be the pair's own file."""


class CriticSettings(_Section):
    """The server that scores tokens."""

    url: BaseUrl
    model: str = "critic"
    protocol: Literal["v2", "vllm"] = "v2"
    """``v2``: KServe's open inference protocol; ``vllm``: a stock vLLM pooling server."""
    api_key: SecretStr | None = None
    ca_file: Path | None = None
    max_batch_items: int = Field(default=32, ge=1)
    """Solutions in one call; more in a batch score faster together and later each."""
    max_batch_tokens: int = Field(default=32_768, ge=1)
    """Prompt and solution tokens in one call: bounds the critic's memory."""


class PairSettings(_Section):
    """One policy and the critic registered with it. Changing this section swaps pairs without a dropped request."""

    policy: PolicySettings
    critic: CriticSettings
    policy_version: Version = "unversioned"
    critic_version: Version = "unversioned"
    calibration: Calibration = Calibration()
    """Turns rewards into chances of being right; fitted by the evaluation job."""
    answer_rule: AnswerRule = AnswerRule.AUTO
    """How the pair's solutions mark their answer; the rule of its evaluation."""
    calibration_file: Path | None = None
    """Read instead of ``calibration`` when given (the critic's ``calibration.json``)."""

    @model_validator(mode="before")
    @classmethod
    def _read_calibration_file(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("calibration_file"):
            return {**values, "calibration": _read_small_json(Path(values["calibration_file"]))}
        return values


def _read_small_json(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return json.loads(file.read(CALIBRATION_FILE_LIMIT_BYTES))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"calibration_file {path} can't be read as JSON ({error}); every critic folder has one"
        ) from error


class OidcSettings(_Section):
    """Bearer tokens signed by an identity provider, beside (or instead of) API keys."""

    issuer: str
    audience: str
    jwks_url: BaseUrl | None = None
    """Found through ``{issuer}/.well-known/openid-configuration`` when absent."""
    name_claim: str = "sub"
    """The claim that budgets and logs go by."""
    models_claim: str | None = None
    """A claim with the list of allowed models; every model when absent."""
    algorithms: tuple[Literal["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"], ...] = ("RS256", "ES256")
    leeway_s: float = Field(default=30, ge=0)


class AuthSettings(_Section):
    """Who may call."""

    keys_file: Path | None = None
    """YAML with hashed API keys; read again when it changes. ``python -m irlops_serving.gateway.keys`` makes them."""
    oidc: OidcSettings | None = None
    disabled: bool = False
    """Serve anyone, also beyond this machine. Only behind something else that authenticates."""
    protect_metrics: bool = False
    """Ask for a key on /metrics too."""


class LimitSettings(_Section):
    """What one request, one caller and all callers together may ask for."""

    max_body_bytes: int = Field(default=4 * 2**20, ge=1024)
    max_messages: int = Field(default=2048, ge=1)
    max_candidates: int = Field(default=MAX_CANDIDATES, ge=1, le=MAX_CANDIDATES)
    max_tokens: int | None = Field(default=None, ge=1)
    """Cap on ``max_tokens`` of one request; without one only the model's context bounds it."""
    max_connections: int = Field(default=8192, ge=1)
    """Open connections, idle ones included; one more is answered with 503 and closed."""
    max_concurrent: int = Field(default=2048, ge=1)
    """Pass-through requests at once."""
    max_concurrent_reranked: int = Field(default=32, ge=1)
    """Reranked and rewards requests at once: each is many sequences upstream."""
    max_queued: int = Field(default=64, ge=0)
    """Requests of one kind that wait for a place; more are refused with 503."""
    queue_timeout_s: float = Field(default=10, gt=0)
    requests_per_minute: int | None = Field(default=None, ge=1)
    """For each caller whose key says nothing else."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Prompt and sampled tokens, for each caller whose key says nothing else."""
    storage_url: str = "async+memory://"
    """Where budgets are counted; one process counts alone unless this names a shared store (``async+redis://…``)."""


class TimeoutSettings(_Section):
    """Seconds each phase may take."""

    head_s: float = Field(default=30, gt=0)
    """For a request's headers, counted from its first byte; a new connection that says nothing is closed as well."""
    body_s: float = Field(default=30, gt=0)
    send_s: float = Field(default=60, gt=0)
    """A client that takes nothing of its answer for so long is left."""
    connect_s: float = Field(default=5, gt=0)
    first_token_s: float = Field(default=60, gt=0)
    """Until the policy's first byte on a stream."""
    idle_s: float = Field(default=30, gt=0)
    """Between two chunks of a stream."""
    policy_s: float = Field(default=300, gt=0)
    """One whole generation."""
    critic_s: float = Field(default=30, gt=0)
    """One scoring call."""
    tokenize_s: float = Field(default=5, gt=0)
    keep_alive_s: float = Field(default=10, gt=0)
    """Between two keep-alive comments on a reranked stream."""
    drain_s: float = Field(default=60, ge=0)
    """After SIGTERM, for running requests to end."""
    drain_delay_s: float = Field(default=0, ge=0)
    """After SIGTERM, not ready but still accepting, until load balancers have noticed."""


class BreakerSettings(_Section):
    """When to stop calling a server that fails."""

    failures: int = Field(default=5, ge=1)
    """Failures in a row that open the circuit."""
    open_s: float = Field(default=5, gt=0)
    """Seconds without a call; then one call tries again."""


class RerankSettings(_Section):
    """What a ``reranked`` request gets when it doesn't say."""

    candidates: int = Field(default=8, ge=1, le=MAX_CANDIDATES)
    selector: Selector = "weighted_majority"
    adaptive: bool = False
    deadline_ms: int | None = Field(default=None, ge=1)
    wave: int = Field(default=4, ge=1, le=MAX_CANDIDATES)
    """Candidates sampled between two looks at whether the answer is settled (adaptive sampling)."""
    temperature_for_zero: float | None = Field(default=None, gt=0, le=2)
    """Candidates of a request that says ``temperature: 0`` are sampled with this; one greedy candidate when absent."""
    overlap: bool = True
    """Score candidates while others are still being written (streams from the policy)."""


class GatewaySettings(BaseSettings):
    """Everything the gateway is told."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    pair: PairSettings
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    auth: AuthSettings = AuthSettings()
    limits: LimitSettings = LimitSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    breaker: BreakerSettings = BreakerSettings()
    rerank: RerankSettings = RerankSettings()
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    cors_allow_origins: tuple[str, ...] = ()
    """Web pages of other origins that may call; none by default."""
    otlp_endpoint: str | None = None
    """Traces go to ``{otlp_endpoint}/v1/traces``; when absent, where OTEL_EXPORTER_OTLP_ENDPOINT says, else nowhere."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    reload_interval_s: float = Field(default=1.0, gt=0)
    """Between two looks at the key file and the config file."""
    probe_interval_s: float = Field(default=2.0, gt=0)
    """Between two health checks of policy and critic."""

    @model_validator(mode="after")
    def _expose_nothing_without_authentication(self) -> Self:
        auth = self.auth
        if not (is_loopback(self.host) or auth.keys_file or auth.oidc or auth.disabled):
            raise ValueError(
                f"host {self.host} is reachable from other machines, but neither auth.keys_file nor auth.oidc is set. "
                "Set one, bind to 127.0.0.1, or say auth.disabled: true if something in front authenticates."
            )
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file belong together; only one is set.")
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load_settings(config_file: Path | None = None, **overrides: Any) -> GatewaySettings:
    """Read the YAML (``IRLOPS_GATEWAY_CONFIG_FILE`` when ``config_file`` is None) and the environment over it.

    Args:
        config_file: one YAML with the fields of GatewaySettings; None and no variable: the environment alone.
        overrides: fields that win over both (command line).

    Raises:
        ConfigError: a file is missing, a key is unknown or a value is wrong; the message lists each.
    """
    named = config_file or os.environ.get(CONFIG_FILE_VARIABLE)
    path = Path(named) if named else None
    if path is not None and not path.is_file():
        raise ConfigError(
            f"The config file {path} is not there. Mount it, or correct --config / {CONFIG_FILE_VARIABLE}."
        )
    _refuse_unknown_variables()

    class Loaded(GatewaySettings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            del dotenv_settings, file_secret_settings  # one file and the environment: nothing hidden elsewhere
            assert isinstance(env_settings, EnvSettingsSource)
            env_settings.env_vars = {k: v for k, v in env_settings.env_vars.items() if not _is_service_link(k, v)}
            files = () if path is None else (YamlConfigSettingsSource(settings_cls, path),)
            return (init_settings, env_settings, *files)

    try:
        settings = Loaded(**overrides)
    except ValidationError as error:
        raise ConfigError(_explain(error, path)) from error
    except (ValueError, yaml.YAMLError) as error:  # a file that isn't YAML, a variable that isn't JSON
        raise ConfigError(f"The gateway's settings can't be read ({path or 'environment'}): {error}") from error
    _check_files(settings)
    return settings


def _check_files(settings: GatewaySettings) -> None:
    """Read certificates once before they are needed: a wrong one is said at the start, and never swapped in."""
    policy, critic = settings.pair.policy, settings.pair.critic
    authorities = (("pair.policy.ca_file", policy.ca_file), ("pair.critic.ca_file", critic.ca_file))
    for name, file in authorities:
        if file is not None:
            with _explaining(f"{name} {file}", "a PEM file with the authority's certificate"):
                ssl.create_default_context(cafile=file)
    if settings.tls_cert_file is not None:
        files = f"tls_cert_file {settings.tls_cert_file} with tls_key_file {settings.tls_key_file}"
        with _explaining(files, "the PEM files of one certificate and its key, without a passphrase"):
            # An empty passphrase instead of a prompt nobody would answer.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                settings.tls_cert_file, settings.tls_key_file, password=""
            )
    if policy.tokenizer_file is not None and not policy.tokenizer_file.is_file():
        raise ConfigError(
            f"The tokenizer file {policy.tokenizer_file} is not there. Correct pair.policy.tokenizer_file."
        )


@contextmanager
def _explaining(what: str, wanted: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # an SSLError is one
        raise ConfigError(f"{what} can't be used ({error.strerror or error}). Give {wanted}.") from error


def _refuse_unknown_variables() -> None:
    known = {name.upper() for name in GatewaySettings.model_fields}
    names = [name for name in os.environ if name.startswith(ENV_PREFIX) and name != CONFIG_FILE_VARIABLE]
    names = [name for name in names if not _is_service_link(name, os.environ[name])]
    wrong = sorted(name for name in names if name.removeprefix(ENV_PREFIX).split("__")[0] not in known)
    if wrong:
        raise ConfigError(
            f"Unknown environment variables {', '.join(wrong)}. Known sections: {', '.join(sorted(known))}."
        )


def _is_service_link(name: str, value: str | None) -> bool:
    """Whether Kubernetes injected the variable for a Service called ``irlops-gateway`` (``IRLOPS_GATEWAY_PORT=tcp://…``)."""
    tail = name.upper().removeprefix(ENV_PREFIX)
    return tail.startswith("SERVICE_") or (
        tail.startswith("PORT") and (tail != "PORT" or (value or "").startswith("tcp:"))
    )


def _explain(error: ValidationError, path: Path | None) -> str:
    lines = [
        f"  {'.'.join(str(part) for part in item['loc']) or '(settings)'}: {item['msg'].removeprefix('Value error, ')}"
        for item in error.errors(include_input=False)
    ]
    return f"The gateway's settings are wrong ({path or 'environment'}):\n" + "\n".join(lines)
