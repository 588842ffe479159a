"""The OpenAPI document, made from the same models that read requests, and a page that shows it without a script."""

from __future__ import annotations

import html
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import orjson
from pydantic.json_schema import models_json_schema

from irlops.contracts.rerank import (
    MAX_CANDIDATES,
    ErrorResponse,
    RerankRequest,
    RerankResult,
    RewardsRequest,
    RewardsResponse,
    StreamRewardsRequest,
)
from irlops_serving.gateway.pages import PAGE_HEADERS
from irlops_serving.gateway.requests import ChatFields, CompletionFields

DOCS_HEADERS = [
    (b"content-type", b"text/html; charset=utf-8"),
    *((name, value.replace(b"style-src 'self'", b"style-src 'self' 'unsafe-inline'")) for name, value in PAGE_HEADERS),
]
_REF = "#/components/schemas/"
_ERRORS = {
    "400": "The body can't be understood, or asks for what isn't allowed; `param` names the field.",
    "401": "No key, or not a valid one.",
    "403": "The key may not use this model.",
    "404": "No such model.",
    "408": "The body took too long to arrive.",
    "413": "The body is too large.",
    "429": "A budget of the key is spent; `Retry-After` says when to come back.",
    "502": "An upstream answered with something that is not its protocol, or stopped halfway.",
    "503": "An upstream is away or the queues are full; `Retry-After` says when to come back.",
    "504": "An upstream took too long.",
}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _REF + name}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _responses(text: str, content: dict[str, Any], errors: tuple[str, ...]) -> dict[str, Any]:
    refused = {status: {"description": _ERRORS[status], "content": _json(_ref("ErrorResponse"))} for status in errors}
    return {"200": {"description": text, "content": content}, **refused}


def _completion_schema(base: str, *, is_chat: bool) -> dict[str, Any]:
    item = {
        "type": "object",
        "required": ["index", "finish_reason", "message" if is_chat else "text"],
        "properties": {
            "index": {"type": "integer"},
            "finish_reason": {"type": ["string", "null"]},
            **({"message": {"type": "object"}} if is_chat else {"text": {"type": "string"}}),
        },
    }
    return {
        "type": "object",
        "description": f"OpenAI's {base}; the model `reranked` adds `rerank`.",
        "required": ["id", "object", "model", "choices"],
        "properties": {
            "id": {"type": "string"},
            "object": {"const": base},
            "model": {"type": "string"},
            "choices": {"type": "array", "items": item},
            "usage": {"type": ["object", "null"]},
            "rerank": _ref("RerankResult"),
        },
    }


def _completion_path(summary: str, fields: str, answer: str) -> dict[str, Any]:
    content = {**_json(_ref(answer)), "text/event-stream": {}}
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": _json(_ref(fields))},
            "responses": _responses("The answer; server-sent events when `stream` is true.", content, tuple(_ERRORS)),
            "security": [{"bearer": []}, {}],
        }
    }


def _read_path(summary: str, content: dict[str, Any], *errors: str, secured: bool = False) -> dict[str, Any]:
    security = {"security": [{"bearer": []}, {}]} if secured else {}
    return {"get": {"summary": summary, "responses": _responses("As asked.", content, errors), **security}}


def _schemas() -> dict[str, Any]:
    models = (ChatFields, CompletionFields, RerankRequest, StreamRewardsRequest, RewardsRequest)
    answers = (RerankResult, RewardsResponse, ErrorResponse)
    keyed = [(model, "validation") for model in models] + [(model, "serialization") for model in answers]
    _, definitions = models_json_schema(keyed, ref_template=_REF + "{model}")  # type: ignore[arg-type]
    schemas = definitions["$defs"]
    for name in ("ChatFields", "CompletionFields"):
        schemas[name]["properties"]["model"] = {"enum": ["reranked", "policy"]}
        schemas[name]["properties"]["n"]["anyOf"][0]["maximum"] = MAX_CANDIDATES
        schemas[name]["description"] = "OpenAI's fields. Those not listed go to the policy as they are."
        # `rerank` belongs to one model and `rewards` to the other, so each has its branch.
        nothing, is_policy = {"type": "null"}, {"const": "policy"}
        reranked = {"anyOf": [_ref("RerankRequest"), nothing]}
        streamed = {"stream": {"const": True}, "n": {"enum": [1, None]}, "rewards": _ref("StreamRewardsRequest")}
        schemas[name]["oneOf"] = [
            {"properties": {"model": {"const": "reranked"}, "rerank": reranked, "rewards": nothing}},
            {"properties": {"model": is_policy, "rerank": nothing, "rewards": nothing}},
            {
                "properties": {"model": is_policy, "rerank": nothing, **streamed},
                "required": ["stream", "rewards"],
            },
        ]
    schemas["ChatCompletion"] = _completion_schema("chat.completion", is_chat=True)
    schemas["Completion"] = _completion_schema("text_completion", is_chat=False)
    return schemas


def _paths() -> dict[str, Any]:
    reward_errors = ("400", "401", "403", "408", "413", "429", "502", "503", "504")
    listed, anything = {"type": "object", "required": ["object", "data"]}, _json({"type": "object"})
    return {
        "/v1/chat/completions": _completion_path("Answer a conversation", "ChatFields", "ChatCompletion"),
        "/v1/completions": _completion_path("Continue a text", "CompletionFields", "Completion"),
        "/v1/rewards": {
            "post": {
                "summary": "Score every token of solutions",
                "requestBody": {"required": True, "content": _json(_ref("RewardsRequest"))},
                "responses": _responses("The rewards.", _json(_ref("RewardsResponse")), reward_errors),
                "security": [{"bearer": []}, {}],
            }
        },
        "/v1/models": _read_path("List the models you may use", _json(listed), "401", secured=True),
        "/healthz": _read_path("Whether the process is alive", anything),
        "/readyz": {
            "get": {
                "summary": "Whether to send requests here, and the state of policy and critic",
                "responses": {
                    "200": {"description": "Ready.", "content": anything},
                    "503": {"description": "Not ready.", "content": anything},
                },
            }
        },
        "/metrics": _read_path("Prometheus metrics", {"text/plain": {"schema": {"type": "string"}}}, "401"),
    }


@cache
def openapi_document() -> bytes:
    """The document as JSON bytes."""
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "irlops gateway",
            "version": _version(),
            "description": "OpenAI's interface before a policy and a token-level critic: N answers are sampled, "
            "every token is scored, the best answer is given.",
        },
        "paths": _paths(),
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }
    return orjson.dumps(document)


def _version() -> str:
    try:
        return version("irlops")
    except PackageNotFoundError:
        return "unknown"


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "table{border-collapse:collapse;width:100%}"
    "td,th{text-align:left;padding:.25rem .5rem;border-bottom:1px solid #8884;vertical-align:top}"
    "code{font-size:.9em}h2{margin-top:2.5rem}.m{font-weight:700}"
)


@cache
def docs_page() -> bytes:
    """``/docs``: the document as one HTML page."""
    document = orjson.loads(openapi_document())
    parts = [_route_html(path, methods, document) for path, methods in document["paths"].items()]
    info = document["info"]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{info['title']}</title><style>{_STYLE}</style><h1>{info['title']} {html.escape(info['version'])}</h1>"
        f'<p>{html.escape(info["description"])} Machine readable: <a href="/openapi.json">/openapi.json</a>.</p>'
        f"{''.join(parts)}</html>"
    ).encode()


def _route_html(path: str, methods: dict[str, Any], document: dict[str, Any]) -> str:
    parts = []
    for method, operation in methods.items():
        summary = html.escape(operation["summary"])
        parts.append(f"<h2><span class=m>{method.upper()}</span> <code>{path}</code></h2><p>{summary}.</p>")
        body = operation.get("requestBody")
        if body:
            name = body["content"]["application/json"]["schema"]["$ref"].removeprefix(_REF)
            parts.append(_fields_html(name, document))
        rows = "".join(
            f"<tr><td>{status}</td><td>{html.escape(answer['description'])}</td></tr>"
            for status, answer in operation["responses"].items()
        )
        parts.append(f"<h3>Answers</h3><table>{rows}</table>")
    return "".join(parts)


def _fields_html(name: str, document: dict[str, Any], title: str = "Fields") -> str:
    schema = document["components"]["schemas"][name]
    required = schema.get("required", [])
    rows, nested = [], []
    for field, spec in schema.get("properties", {}).items():
        mark = " (required)" if field in required else ""
        rows.append(
            f"<tr><td><code>{html.escape(field)}</code>{mark}</td><td>{html.escape(_kind(spec))}</td>"
            f"<td>{html.escape(spec.get('description', ''))}</td></tr>"
        )
    if name in ("ChatFields", "CompletionFields"):
        nested = [_fields_html("RerankRequest", document, "Fields of <code>rerank</code> (model reranked)")]
    return f"<h3>{title}</h3><table>{''.join(rows)}</table>{''.join(nested)}"


def _kind(spec: dict[str, Any]) -> str:
    if "anyOf" in spec:
        return " or ".join(kind for part in spec["anyOf"] if (kind := _kind(part)) != "null")
    if "enum" in spec:
        return " | ".join(map(str, spec["enum"]))
    if "$ref" in spec:
        return spec["$ref"].removeprefix(_REF)
    bounds = "".join(f", {word} {spec[key]}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in spec)
    return f"{spec.get('type', 'anything')}{bounds}"
