"""A Kubernetes API in memory, as far as the operator can tell the difference.

It has what level-triggered code leans on: server-side apply with field ownership, resourceVersions that move only with a
change, generations that move only with a spec, status as a subresource, conflicts, label selectors, finalizers, garbage
collection by owner, watches. It admits everything: schemas are checked by the tests that want to.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

import orjson
from aiohttp import web

from irlops.cluster.api import APPLY, MERGE, RESOURCES, Answer

Body = dict[str, Any]
Call = tuple[str, str, str]
"""(verb, group/resource, subresource), as RBAC names them."""


BUILT_IN = (
    ("/api/v1", "namespaces", "Namespace"),
    ("/apis/apiextensions.k8s.io/v1", "customresourcedefinitions", "CustomResourceDefinition"),
)


class KilledError(BaseException):
    """The process is gone; nothing may catch this."""


class KubeApi:
    """The objects of one namespace, and the calls that were made to them."""

    def __init__(self, namespace: str = "team-a", kinds: tuple[str, ...] = tuple(RESOURCES)) -> None:
        self.namespace, self.kinds = namespace, set(kinds)
        self.objects: dict[tuple[str, str], Body] = {}
        self.calls: list[Call] = []
        self.refuse: Callable[[str, str, str], int | tuple[int, str] | None] = lambda verb, kind, name: None
        """(verb, kind, name) -> the HTTP status of a failure instead of an answer, alone or with what is said."""
        self.kill_after: int | None = None
        """The process dies when this many calls have been served, before it reads the last answer."""
        self._applied: dict[tuple[str, str, str, str], Body] = {}
        self.version = 0
        self._watchers: list[tuple[str, asyncio.Queue[Body]]] = []

    # -- for tests

    def of_kind(self, kind: str) -> dict[str, Body]:
        return {name: body for (its_kind, name), body in self.objects.items() if its_kind == kind}

    def put(self, body: Body) -> Body:
        """What a user or another controller writes: the whole object, status included."""
        key = (body["kind"], body["metadata"]["name"])
        before = self.objects.get(key)
        return self._store(key, before, _copy(body), is_status=False, keep_status=False)

    def set_status(self, kind: str, name: str, status: Mapping[str, Any]) -> None:
        key = (kind, name)
        body = _copy(self.objects[key])
        body["status"] = dict(status)
        self._store(key, self.objects[key], body, is_status=True)

    def remove(self, kind: str, name: str) -> None:
        """Gone, whatever its finalizers say: what their owners do in the end."""
        body = self.objects.pop((kind, name))
        self._tell("DELETED", body)
        uid = body["metadata"]["uid"]
        for (other, child), each in list(self.objects.items()):
            if any(owner["uid"] == uid for owner in each["metadata"].get("ownerReferences", [])):
                self._take_away(other, child)

    def _take_away(self, kind: str, name: str) -> None:
        """A deletion: with finalizers the object stays, marked, until their owners let go."""
        body = self.objects[kind, name]
        if not body["metadata"].get("finalizers"):
            self.remove(kind, name)
        elif "deletionTimestamp" not in body["metadata"]:
            marked = _copy(body)
            marked["metadata"]["deletionTimestamp"] = "2026-11-23T11:00:00Z"
            self._store((kind, name), body, marked, is_status=False)

    def writes(self) -> list[Call]:
        return [call for call in self.calls if call[0] not in ("get", "list", "watch")]

    # -- Transport

    async def send(
        self, method: str, path: str, params: Mapping[str, str], body: Body | None = None, content_type: str = ""
    ) -> Answer:
        answer = self._serve(method, path, dict(params), _copy(body), content_type)
        if self.kill_after is not None and len(self.calls) >= self.kill_after:
            self.kill_after = None
            raise KilledError(f"after {self.calls[-1]}")
        return Answer(answer.status, _copy(answer.body), answer.retry_after_s)

    def _serve(self, method: str, path: str, params: dict[str, str], body: Body | None, content_type: str) -> Answer:
        prefix, _, rest = path.partition("/namespaces/")
        if not rest:
            return self._discover(prefix)
        _, plural, *tail = [unquote(part) for part in rest.split("/")]
        name, subresource = (tail[0] if tail else ""), (tail[1] if len(tail) > 1 else "")
        kind = next((each.kind for each in RESOURCES.values() if each.root == prefix and each.plural == plural), None)
        group = prefix.removeprefix("/apis/").rpartition("/")[0] if prefix.startswith("/apis/") else ""
        verb = {"GET": "get" if name else "list", "POST": "create", "PUT": "update", "DELETE": "delete"}.get(
            method, "patch"
        )
        self.calls.append((verb, f"{group}/{plural}", subresource))
        if kind is None or kind not in self.kinds:
            return _refusal(404, "the server could not find the requested resource")
        if refused := self.refuse(verb, kind, name):
            return _refusal(*refused) if isinstance(refused, tuple) else _refusal(refused, f"the test said {refused}")
        if verb == "patch" and content_type == APPLY and (kind, name) not in self.objects and not subresource:
            self.calls.append(("create", f"{group}/{plural}", ""))  # what RBAC asks for then
        assert body is None or body.get("kind", kind) == kind
        return getattr(self, f"_{verb}")(kind, name, subresource, params, body, content_type)

    def _discover(self, prefix: str) -> Answer:
        found = [{"name": each.plural, "kind": each.kind, "namespaced": True, "singularName": "", "verbs": ["list", "watch", "patch"]}
                 for each in RESOURCES.values() if each.root == prefix and each.kind in self.kinds]  # fmt: skip
        # What every cluster has, and every client expects to find.
        found += [{"name": name, "kind": kind, "namespaced": False, "singularName": "", "verbs": ["list", "watch"]}
                  for root, name, kind in BUILT_IN if root == prefix]  # fmt: skip
        return Answer(200, {"kind": "APIResourceList", "resources": found}) if found else _refusal(404, "not found")

    def _get(self, kind: str, name: str, *_: Any) -> Answer:
        found = self.objects.get((kind, name))
        return Answer(200, found) if found else _refusal(404, f"{kind} {name} not found")

    def _list(self, kind: str, name: str, subresource: str, params: dict[str, str], *_: Any) -> Answer:
        items = [body for body in self.of_kind(kind).values() if _selected(body, params.get("labelSelector", ""))]
        items = [{key: value for key, value in item.items() if key not in ("kind", "apiVersion")} for item in items]
        return Answer(200, {"kind": f"{kind}List", "metadata": {"resourceVersion": str(self.version)}, "items": items})

    def _create(self, kind: str, name: str, subresource: str, params: Any, body: Body, *_: Any) -> Answer:
        key = (kind, body["metadata"]["name"])
        if key in self.objects:
            return _refusal(409, f"{kind} {key[1]} already exists")
        return Answer(201, self._store(key, None, body, is_status=False))

    def _update(self, kind: str, name: str, subresource: str, params: Any, body: Body, *_: Any) -> Answer:
        before = self.objects.get((kind, name))
        if before is None:
            return _refusal(404, f"{kind} {name} not found")
        if body["metadata"].get("resourceVersion") != before["metadata"]["resourceVersion"]:
            return _refusal(409, "the object has been modified")
        return Answer(200, self._store((kind, name), before, body, is_status=False))

    def _delete(self, kind: str, name: str, *_: Any) -> Answer:
        if (kind, name) not in self.objects:
            return _refusal(404, f"{kind} {name} not found")
        self._take_away(kind, name)
        return Answer(200, {})

    def _patch(
        self, kind: str, name: str, subresource: str, params: dict[str, str], body: Body, content_type: str
    ) -> Answer:
        key, before = (kind, name), self.objects.get((kind, name))
        if content_type == MERGE:
            if before is None:
                return _refusal(404, f"{kind} {name} not found")
            return Answer(200, self._store(key, before, _merge(before, body), is_status=False))
        assert content_type == APPLY
        assert params.get("fieldManager"), "server-side apply needs a field manager"
        if before is None and subresource:
            return _refusal(404, f"{kind} {name} not found")
        wanted_version = body["metadata"].pop("resourceVersion", None)
        if wanted_version and before and wanted_version != before["metadata"]["resourceVersion"]:
            return _refusal(409, "the object has been modified")
        owner = (kind, name, subresource, params["fieldManager"])
        base = _copy(before) if before else {}
        merged = _apply(base, self._applied.get(owner, {}), body)
        self._applied[owner] = body
        return Answer(200, self._store(key, before, merged, is_status=bool(subresource)))

    def _store(
        self, key: tuple[str, str], before: Body | None, after: Body, *, is_status: bool, keep_status: bool = True
    ) -> Body:
        metadata = after.setdefault("metadata", {})
        if before is None:
            metadata |= {
                "uid": metadata.get("uid") or f"uid-{key[0]}-{key[1]}-{self.version}",
                "namespace": self.namespace,
            }
            metadata.setdefault("creationTimestamp", f"2026-11-23T10:00:{self.version % 60:02d}Z")
            metadata["generation"] = 1
            if keep_status:
                after.pop("status", None)
        else:
            metadata |= {name: before["metadata"][name] for name in ("uid", "creationTimestamp", "namespace")}
            metadata["generation"] = before["metadata"]["generation"]
            if is_status:
                after = {**before, "status": after.get("status", {})}
            elif keep_status and "status" in before:
                after["status"] = before["status"]
            if after.get("spec") != before.get("spec"):
                after["metadata"] = {**after["metadata"], "generation": before["metadata"]["generation"] + 1}
        if before is not None and _without_version(before) == _without_version(after):
            return before
        self.version += 1
        after["metadata"] = {**after["metadata"], "resourceVersion": str(self.version)}
        self.objects[key] = after
        self._tell("ADDED" if before is None else "MODIFIED", after)
        return after

    # -- watches, over HTTP only

    def _tell(self, what: str, body: Body) -> None:
        for kind, queue in self._watchers:
            if kind == body["kind"]:
                queue.put_nowait({"type": what, "object": _copy(body)})

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        params = dict(request.query)
        if params.get("watch"):
            return await self._watch(request)
        text = await request.text()
        content_type = request.headers.get("Content-Type", "").partition(";")[0]
        if request.path in ("/version", "/api", "/apis") or "/namespaces/" not in request.path:
            return self._discovery(request.path)
        answer = await self.send(request.method, request.path, params, json.loads(text) if text else None, content_type)
        headers = {"Retry-After": "1"} if answer.status == 429 else {}
        return web.json_response(answer.body, status=answer.status, headers=headers)

    def _discovery(self, path: str) -> web.Response:
        served = [each for each in RESOURCES.values() if each.kind in self.kinds]
        if path == "/version":
            return web.json_response({"major": "1", "minor": "34", "gitVersion": "v1.34.0"})
        if path == "/api":
            return web.json_response({"kind": "APIVersions", "versions": ["v1"]})
        if path == "/apis":
            named = sorted(
                {each.api_version for each in served if "/" in each.api_version} | {"apiextensions.k8s.io/v1"}
            )
            groups = [
                {"name": version.partition("/")[0], "versions": [entry], "preferredVersion": entry}
                for version in named
                for entry in [{"groupVersion": version, "version": version.partition("/")[2]}]
            ]
            return web.json_response({"kind": "APIGroupList", "groups": groups})
        answer = self._discover(path)
        return web.json_response(answer.body, status=answer.status)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        plural = request.path.rpartition("/")[2]
        kind = next(each.kind for each in RESOURCES.values() if each.plural == plural)
        queue: asyncio.Queue[Body] = asyncio.Queue()
        self._watchers.append((kind, queue))
        group = request.path.removeprefix("/apis/").partition("/")[0]
        self.calls.append(("watch", f"{group}/{plural}", ""))
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        try:
            while True:
                await response.write(json.dumps(await queue.get()).encode() + b"\n")
        except (ConnectionError, asyncio.CancelledError):
            return response
        finally:
            self._watchers.remove((kind, queue))

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """The API over HTTP; yields its address."""
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


def _copy(body: Any) -> Any:
    """Many times faster than ``copy.deepcopy``, and nothing here is more than JSON."""
    return orjson.loads(orjson.dumps(body))


def _refusal(status: int, message: str) -> Answer:
    return Answer(status, {"kind": "Status", "status": "Failure", "message": message, "code": status})


def _selected(body: Body, selector: str) -> bool:
    labels = body["metadata"].get("labels", {})
    return all(
        labels.get(name) == value for name, _, value in (part.partition("=") for part in selector.split(",") if part)
    )


def _without_version(body: Body) -> Body:
    return {**body, "metadata": {key: value for key, value in body["metadata"].items() if key != "resourceVersion"}}


def _merge(before: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    result = dict(before) if isinstance(before, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merge(result.get(key), value)
    return result


def _apply(live: Body, owned_before: Body, wanted: Body) -> Body:
    """``wanted`` over ``live``; what this manager owned and no longer wants goes away. Lists are taken whole."""
    result = dict(live)
    for key in _owned(owned_before):
        if key not in wanted:
            result.pop(key, None)
    for key, value in wanted.items():
        if isinstance(value, dict):
            before, owned = live.get(key), owned_before.get(key)
            result[key] = _apply(
                before if isinstance(before, dict) else {}, owned if isinstance(owned, dict) else {}, value
            )
        else:
            result[key] = value
    return result


def _owned(body: Any) -> Iterator[str]:
    if isinstance(body, dict):
        yield from body
