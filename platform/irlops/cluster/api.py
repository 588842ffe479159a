"""The few calls that the operator makes to a Kubernetes API, on aiohttp: the typed clients cost 60 MiB for nothing here.

api = KubernetesApi(HttpTransport(connection), namespace="team-a")
await api.apply(body)      server-side apply, forced: what the operator renders is the operator's
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import quote

import aiohttp

from irlops.errors import PermanentError, RetryableError

Body = dict[str, Any]
Params = Mapping[str, str]

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
JSON = "application/json"
TIMEOUT_S = 30.0


class ApiUnavailableError(RetryableError, ConnectionError):
    """The API server did not answer, is busy, or saw somebody else write first: the same call may succeed later."""

    status = 0
    retry_after_s = 0.0


class ApiRefusedError(PermanentError, ValueError):
    """The API server understood the call and said no."""

    status = 0


class ApiMissingError(ApiRefusedError):
    """What was asked for doesn't exist."""


@dataclass(frozen=True)
class Resource:
    """One kind, as the API addresses it. Example: ``Resource("kubeflow.org/v1", "PyTorchJob", "pytorchjobs")``."""

    api_version: str
    kind: str
    plural: str

    @property
    def root(self) -> str:
        return ("/apis/" if "/" in self.api_version else "/api/") + self.api_version


PIPELINE = Resource("irlops.dev/v1alpha1", "ReasoningPipeline", "reasoningpipelines")
PYTORCHJOB = Resource("kubeflow.org/v1", "PyTorchJob", "pytorchjobs")
INFERENCESERVICE = Resource("serving.kserve.io/v1beta1", "InferenceService", "inferenceservices")
CONFIGMAP = Resource("v1", "ConfigMap", "configmaps")
CLAIM = Resource("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
POD = Resource("v1", "Pod", "pods")
EVENT = Resource("v1", "Event", "events")
LEASE = Resource("coordination.k8s.io/v1", "Lease", "leases")

RESOURCES = {each.kind: each for each in (PIPELINE, PYTORCHJOB, INFERENCESERVICE, CONFIGMAP, CLAIM, POD, EVENT, LEASE)}


@dataclass(frozen=True)
class Answer:
    """What the server said."""

    status: int
    body: Body
    retry_after_s: float = 0.0


class Transport(Protocol):
    """Carries one call; raises ``OSError`` or ``TimeoutError`` when there is no answer."""

    async def send(
        self, method: str, path: str, params: Params, body: Body | None = None, content_type: str = JSON
    ) -> Answer: ...


class KubernetesApi:
    """Calls in one namespace.

    Every method raises ``ApiUnavailableError`` (no answer, 409, 429, 5xx), ``ApiMissingError`` (404) or
    ``ApiRefusedError`` (any other 4xx).
    """

    def __init__(
        self,
        transport: Transport,
        namespace: str,
        *,
        field_manager: str,
        on_write: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._transport, self.namespace, self._field_manager = transport, namespace, field_manager
        self._on_write = on_write

    async def get(self, resource: Resource, name: str) -> Body | None:
        """The object, or None."""
        try:
            return await self._call("GET", self._path(resource, name))
        except ApiMissingError:
            return None

    async def list(self, resource: Resource, selector: Mapping[str, str]) -> list[Body]:
        """Objects with these labels."""
        labels = ",".join(f"{name}={value}" for name, value in selector.items())
        answer = await self._call("GET", self._path(resource), params={"labelSelector": labels})
        # Items of a list carry no kind of their own.
        return [{"apiVersion": resource.api_version, "kind": resource.kind, **item} for item in answer.get("items", [])]

    async def has_kind(self, resource: Resource) -> bool:
        """Whether the API serves this kind; every account may ask for that."""
        try:
            found = await self._call("GET", resource.root)
        except ApiMissingError:
            return False
        return any(each.get("name") == resource.plural for each in found.get("resources", []))

    async def apply(self, body: Body) -> Body:
        """Make the object so, by server-side apply."""
        resource = RESOURCES[body["kind"]]
        return await self._apply(self._path(resource, body["metadata"]["name"]), resource, body)

    async def apply_status(self, body: Body) -> Body:
        """Replace the status by ``body``'s; a resourceVersion in it makes a later one win."""
        resource = RESOURCES[body["kind"]]
        return await self._apply(self._path(resource, body["metadata"]["name"]) + "/status", resource, body)

    async def merge(self, resource: Resource, name: str, patch: Body) -> Body:
        """Change single fields."""
        self._on_write(resource.kind)
        return await self._call("PATCH", self._path(resource, name), body=patch, content_type=MERGE)

    async def create(self, body: Body) -> Body:
        """Make it, and fail with a 409 when it is there."""
        resource = RESOURCES[body["kind"]]
        self._on_write(resource.kind)
        return await self._call("POST", self._path(resource), body=body)

    async def replace(self, body: Body) -> Body:
        """Put it where the one of the same resourceVersion is."""
        resource = RESOURCES[body["kind"]]
        self._on_write(resource.kind)
        return await self._call("PUT", self._path(resource, body["metadata"]["name"]), body=body)

    async def delete(self, resource: Resource, name: str) -> None:
        """Take it away, what it owns after it; one that is gone already is fine."""
        self._on_write(resource.kind)
        try:
            await self._call("DELETE", self._path(resource, name), params={"propagationPolicy": "Background"})
        except ApiMissingError:
            return

    async def _apply(self, path: str, resource: Resource, body: Body) -> Body:
        self._on_write(resource.kind)
        params = {"fieldManager": self._field_manager, "force": "true"}
        return await self._call("PATCH", path, params=params, body=body, content_type=APPLY)

    def _path(self, resource: Resource, name: str | None = None) -> str:
        path = f"{resource.root}/namespaces/{quote(self.namespace)}/{resource.plural}"
        return path if name is None else f"{path}/{quote(name)}"

    async def _call(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        body: Body | None = None,
        content_type: str = JSON,
    ) -> Body:
        try:
            answer = await self._transport.send(method, path, params or {}, body, content_type)
        except (OSError, TimeoutError, aiohttp.ClientError) as error:
            raise ApiUnavailableError(
                f"The Kubernetes API did not answer {method} {path} ({type(error).__name__}: {error}). It is asked again."
            ) from error
        if answer.status < 400:
            return answer.body
        raise _failure(answer, f"{method} {path}")


def _failure(answer: Answer, call: str) -> ApiUnavailableError | ApiRefusedError:
    said = str(answer.body.get("message") or answer.body.get("reason") or "no reason given")[:1000]
    if answer.status in (409, 429) or answer.status >= 500:
        unavailable = ApiUnavailableError(f"{call} got {answer.status}: {said}. It is tried again.")
        unavailable.status, unavailable.retry_after_s = answer.status, answer.retry_after_s
        return unavailable
    refused = (ApiMissingError if answer.status == 404 else ApiRefusedError)(f"{call} got {answer.status}: {said}.")
    refused.status = answer.status
    return refused


@dataclass(frozen=True)
class Connection:
    """Where the API server is and who we are. Example: ``Connection("https://10.0.0.1:443", token_file=Path(...))``."""

    server: str
    headers: Mapping[str, str] | None = None
    tls: ssl.SSLContext | None = None
    token_file: Path | None = None
    """Read again for every call: a service account's token is replaced every hour."""


class HttpTransport:
    """Carries calls over HTTP; ``async with`` opens and closes the pool."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=16, ssl=self._connection.tls or True)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def send(
        self, method: str, path: str, params: Params, body: Body | None = None, content_type: str = JSON
    ) -> Answer:
        """One call and its answer, whatever it is."""
        assert self._session is not None, "used outside of `async with`"
        headers = {"Accept": JSON, "Content-Type": content_type, **self._headers()}
        data = None if body is None else json.dumps(body)
        url = self._connection.server.rstrip("/") + path
        async with self._session.request(method, url, params=dict(params), data=data, headers=headers) as response:
            text = await response.text()
            return Answer(response.status, _parsed(text), _seconds(response.headers.get("Retry-After")))

    def _headers(self) -> Mapping[str, str]:
        if self._connection.token_file is not None:
            return {"Authorization": f"Bearer {self._connection.token_file.read_text().strip()}"}
        return self._connection.headers or {}


def _parsed(text: str) -> Body:
    try:
        body = json.loads(text) if text else {}
    except ValueError:
        return {"message": text[:500]}
    return body if isinstance(body, dict) else {"message": text[:500]}


def _seconds(text: str | None) -> float:
    return float(text) if text and text.isdigit() else 0.0
