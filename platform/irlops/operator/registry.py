"""What the operator reads and writes in MLflow, over its REST API.

The registry's own rules (which alias counts, in which order both halves move) are those of ``irlops.registry``; only the
client underneath is another one, because importing mlflow costs 120 MiB, more than everything else here together.
"""

from __future__ import annotations

import json
import os
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from irlops.contracts.pair import CRITIC_MODEL, POLICY_MODEL, Alias
from irlops.contracts.pipeline_status import PairVersions
from irlops.errors import PairError, UnavailableError
from irlops.operator.observed import RegisteredPair
from irlops.registry import aliases as alias_moves
from irlops.registry.records import mate_of, pair_from_versions

CALIBRATION_TAG = "calibration"
"""Of the critic's version: its calibration.json, put there by the registration."""
TIMEOUT_S = 10.0
MAX_REMEMBERED = 64


class Registry(Protocol):
    """What the operator asks of a registry. Every method raises ``UnavailableError`` when it does not answer."""

    def aliases(self) -> Mapping[str, int]:
        """Alias -> policy version."""
        ...

    def pair(self, policy_version: int) -> RegisteredPair:
        """Raises ``PairError``: it is no whole pair."""
        ...

    def remembered(self, policy_version: int) -> RegisteredPair | None:
        """What an earlier ``pair`` said, without asking: where the weights of a pair lie never changes."""
        ...

    def pair_of_run(self, run_name: str) -> RegisteredPair | None:
        """The newest pair that this run registered."""
        ...

    def move_alias(self, alias: Alias, policy_version: int, *, is_return: bool) -> None:
        """Raises ``PairError``: the registry refused."""
        ...


class MlflowRefusedError(PairError):
    """MLflow said no; ``error_code`` is its own."""

    error_code = ""


@dataclass(frozen=True)
class _Version:
    """A model version with the fields of mlflow's class that ``irlops.registry`` reads."""

    version: str
    source: str
    run_id: str | None
    tags: Mapping[str, str]
    creation_timestamp: int | None


@dataclass(frozen=True)
class _Model:
    aliases: Mapping[str, str] = field(default_factory=dict)


class RestClient:
    """The part of ``mlflow.MlflowClient`` that moving aliases needs."""

    def __init__(self, tracking_uri: str) -> None:
        self.tracking_uri = tracking_uri.rstrip("/")

    def get_registered_model(self, name: str) -> _Model:
        found = self._call("GET", "registered-models/get", {"name": name})["registered_model"]
        aliases = found.get("aliases", [])
        return _Model({each["alias"]: str(each["version"]) for each in aliases})

    def get_model_version(self, name: str, version: str) -> _Version:
        return _version(self._call("GET", "model-versions/get", {"name": name, "version": version})["model_version"])

    def search_model_versions(self, text: str) -> list[_Version]:
        """Newest first, the first page."""
        asked = {"filter": text, "max_results": "100", "order_by": "version_number DESC"}
        return [_version(each) for each in self._call("GET", "model-versions/search", asked).get("model_versions", [])]

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        self._call("POST", "registered-models/alias", {"name": name, "alias": alias, "version": version})

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        self._call("DELETE", "registered-models/alias", {"name": name, "alias": alias})

    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None:
        self._call("POST", "model-versions/set-tag", {"name": name, "version": version, "key": key, "value": value})

    def webhooks(self) -> list[dict[str, Any]]:
        """All that MLflow knows, the first page."""
        return self._call("GET", "webhooks", {"max_results": "100"}).get("webhooks", [])

    def create_webhook(self, fields: Mapping[str, Any]) -> None:
        self._call("POST", "webhooks", fields)

    def update_webhook(self, webhook_id: str, fields: Mapping[str, Any]) -> None:
        self._call("PATCH", f"webhooks/{webhook_id}", fields)

    def _call(self, method: str, route: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        url = f"{self.tracking_uri}/api/2.0/mlflow/{route}"
        data = None if method == "GET" else json.dumps(fields).encode()
        request = Request(  # noqa: S310 - the address of MLflow is the chart's
            url + ("" if data else f"?{urlencode(fields)}"), data, _headers(), method=method
        )
        try:
            with urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310 - as above
                return json.loads(answer.read() or b"{}")
        except HTTPError as error:
            raise _failure(error, route) from error
        except (URLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise UnavailableError(f"MLflow at {self.tracking_uri} does not answer ({reason})") from error


def _headers() -> dict[str, str]:
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if user and password:
        headers["Authorization"] = "Basic " + b64encode(f"{user}:{password}".encode()).decode()
    return headers


def _failure(error: HTTPError, route: str) -> Exception:
    try:
        said = json.loads(error.read())
    except (OSError, ValueError):
        said = {}
    code, text = str(said.get("error_code", "")), str(said.get("message", error.reason))[:500]
    if error.code in (401, 403):
        return UnavailableError(f"MLflow refuses the operator's login ({error.code}); see mlflow.auth of the chart")
    if error.code >= 500 or error.code == 429 or code in ("REQUEST_LIMIT_EXCEEDED", "ABORTED"):
        return UnavailableError(f"MLflow answered {route} with {error.code}: {text}")
    refused = MlflowRefusedError(f"MLflow refused {route} ({code or error.code}): {text}")
    refused.error_code = code
    return refused


def _version(found: Mapping[str, Any]) -> _Version:
    tags = {each["key"]: each.get("value", "") for each in found.get("tags", [])}
    return _Version(
        str(found["version"]), found.get("source", ""), found.get("run_id"), tags, found.get("creation_timestamp")
    )


class MlflowRegistry:
    """``Registry`` over a tracking server."""

    def __init__(self, tracking_uri: str, *, now_ms: Callable[[], int] = lambda: int(time.time() * 1000)) -> None:
        self._client = RestClient(tracking_uri)
        self._now_ms = now_ms
        self._pairs: dict[int, RegisteredPair] = {}

    def aliases(self) -> Mapping[str, int]:
        """One call, whatever the number of pipelines."""
        return alias_moves.aliases_of(self._mlflow, POLICY_MODEL)

    def pair(self, policy_version: int) -> RegisteredPair:
        """Both halves, each naming the other."""
        try:
            pair = self._whole(self._client.get_model_version(POLICY_MODEL, str(policy_version)))
        except MlflowRefusedError as error:
            raise PairError(f"There is no whole pair v{policy_version} in MLflow: {error}") from error
        self._pairs[policy_version] = pair
        while len(self._pairs) > MAX_REMEMBERED:
            del self._pairs[next(iter(self._pairs))]
        return pair

    def remembered(self, policy_version: int) -> RegisteredPair | None:
        """From this process's memory, so that a roll-out can be taken back while MLflow is away."""
        return self._pairs.get(policy_version)

    def pair_of_run(self, run_name: str) -> RegisteredPair | None:
        """By the tag that the registration sets."""
        found = self._client.search_model_versions(f"name='{POLICY_MODEL}' and tags.run_name='{run_name}'")
        whole = sorted((int(each.version) for each in found if mate_of(cast(Any, each)) is not None), reverse=True)
        return self.pair(whole[0]) if whole else None

    def move_alias(self, alias: Alias, policy_version: int, *, is_return: bool) -> None:
        """On both halves or on neither, with the history that ``irlops pairs rollback`` reads."""
        pair = self._pair_record(policy_version)
        held = alias_moves.aliases_of(self._mlflow, POLICY_MODEL).get(alias)
        alias_moves.move_alias(self._mlflow, alias, pair)
        if alias != "champion" or held == policy_version:
            return
        if not is_return:
            alias_moves.record_promotion(self._mlflow, policy_version, self._now_ms(), held)
        elif held is not None:
            versions = [self._client.get_model_version(POLICY_MODEL, str(held))]
            _, taken_back = alias_moves.champion_before(alias_moves.promotions_in(cast(Any, versions)), held)
            if taken_back is not None:
                alias_moves.record_rollback(self._mlflow, taken_back)

    @property
    def _mlflow(self) -> Any:
        return self._client

    def _pair_record(self, policy_version: int) -> Any:
        policy = self._client.get_model_version(POLICY_MODEL, str(policy_version))
        return pair_from_versions(cast(Any, policy), cast(Any, self._critic_of(policy)), {})

    def _critic_of(self, policy: _Version) -> _Version | None:
        version = mate_of(cast(Any, policy))
        return None if version is None else self._client.get_model_version(CRITIC_MODEL, str(version))

    def _whole(self, policy: _Version) -> RegisteredPair:
        critic = self._critic_of(policy)
        record = pair_from_versions(cast(Any, policy), cast(Any, critic), {})
        assert critic is not None, "pair_from_versions refuses a policy without a critic"
        calibration = critic.tags.get(CALIBRATION_TAG)
        return RegisteredPair(
            policy_version=int(policy.version),
            critic_version=int(critic.version),
            policy_uri=policy.source,
            critic_uri=critic.source,
            policy_tokenizer=policy.tags.get("tokenizer_digest", ""),
            critic_tokenizer=critic.tags.get("tokenizer_digest", ""),
            run_name=record.lineage.run_name,
            evaluation=record.evaluation,
            calibration=json.loads(calibration) if calibration else None,
        )


def versions_in(pairs: list[PairVersions | None]) -> set[int]:
    """The policy versions of pairs that a status names."""
    return {int(each.policy_version) for each in pairs if each is not None and each.policy_version.isdigit()}
