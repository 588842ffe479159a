"""Reads completion requests: what the gateway must know is validated, everything else is left to the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from irlops.contracts.rerank import WHOLE, RerankRequest, StreamRewardsRequest
from irlops.contracts.wrong_yaml import UNKNOWN_KEY
from irlops_serving.gateway.errors import ApiError, invalid_request, unknown_model
from irlops_serving.gateway.exchange import parse_json
from irlops_serving.gateway.policy import CHAT, COMPLETIONS, Route
from irlops_serving.gateway.settings import LimitSettings

INT64 = 2**63
# Fields of vLLM that reach into the server (its cache, its queue, its template engine) instead of describing a sample.
CLOSED_FIELDS = frozenset(
    {
        "kv_transfer_params", "ec_transfer_params", "priority", "request_id", "cache_salt", "chat_template",
        "media_io_kwargs", "mm_processor_kwargs", "prompt_embeds", "vllm_xargs",
    }
)  # fmt: skip
# Names by which ``chat_template_kwargs`` would reach the same places.
CLOSED_TEMPLATE_FIELDS = frozenset({"chat_template", "tokenize"})
# Prompts times ``n`` of one request, which takes one place however much it asks for; as many prompts as vLLM takes.
MAX_SAMPLES = 1024
# What samples need not know, and fields whose meaning a choice among candidates would break.
REFUSED_WITH_RERANK = frozenset({"best_of", "echo", "use_beam_search", "prompt_logprobs", "suffix"})

Count = Annotated[int, Field(strict=True, ge=1, lt=INT64), WHOLE]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class _Common(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    model: str
    n: Count | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(strict=True, ge=-INT64, lt=INT64 - 1024), WHOLE] | None = None
    stop: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    user: str | None = None

    @property
    def asked_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None


class ChatFields(_Common):
    messages: Annotated[list[_Message], Field(min_length=1)]
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(strict=True, ge=0, le=20), WHOLE] | None = None
    tools: list[dict[str, Any]] | None = None


class CompletionFields(_Common):
    prompt: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[list[Annotated[int, Field(strict=True, ge=0, lt=INT64), WHOLE]], Field(min_length=1)]
        | Annotated[list[list[Annotated[int, Field(strict=True, ge=0, lt=INT64), WHOLE]]], Field(min_length=1)]
    )
    logprobs: Annotated[int, Field(strict=True, ge=0, le=20), WHOLE] | None = None

    @property
    def num_prompts(self) -> int:
        """A text and a list of token ids are one."""
        return 1 if isinstance(self.prompt, str) or isinstance(self.prompt[0], int) else len(self.prompt)


_FIELDS = {CHAT: TypeAdapter(ChatFields), COMPLETIONS: TypeAdapter(CompletionFields)}
_RERANK = TypeAdapter(RerankRequest)
_STREAM_REWARDS = TypeAdapter(StreamRewardsRequest)


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A checked request. Made by ``read_completion``; consumed by passthrough and reranked."""

    route: Route
    raw: bytes
    """The body as it came: forwarded untouched when nothing in it must change."""
    document: dict[str, Any]
    model: Literal["policy", "reranked"]
    stream: bool
    n: int
    rerank: RerankRequest
    stream_rewards: StreamRewardsRequest | None

    @property
    def include_usage(self) -> bool:
        """Whether the client asked for a usage chunk on its stream."""
        return bool((self.document.get("stream_options") or {}).get("include_usage"))


def read_completion(route: Route, raw: bytes, limits: LimitSettings) -> CompletionRequest:
    """Check a chat completion or completion request.

    Raises:
        ApiError: 400 naming the field, 404 for an unknown model.
    """
    document = parse_json(raw)
    messages = document.get("messages")
    # Before they are validated one by one.
    if isinstance(messages, list) and len(messages) > limits.max_messages:
        raise invalid_request(
            f"{len(messages)} messages are more than the {limits.max_messages} allowed.",
            "messages",
            "too_many_messages",
        )
    try:
        fields = _FIELDS[route].validate_python(document)
    except ValidationError as error:
        raise explain(error) from None
    if fields.model not in ("policy", "reranked"):
        raise unknown_model(fields.model)
    _check_limits(fields, limits)
    if closed := _closed_fields(document):
        name = min(closed)
        raise invalid_request(f"{name!r} is not open to clients of this gateway.", name, "unsupported_parameter")
    says_nothing = fields.asked_tokens is None and (route == CHAT or "max_tokens" in document)
    if limits.max_tokens is not None and says_nothing:
        # vLLM would go on to the end of its context. (Not in a completion without the field: that gets 16 tokens there.)
        document["max_tokens"] = limits.max_tokens
        raw = orjson.dumps(document)
    rerank = _extension(_RERANK, document, "rerank", allowed=fields.model == "reranked")
    rewards = _extension(_STREAM_REWARDS, document, "rewards", allowed=fields.model == "policy" and bool(fields.stream))
    request = CompletionRequest(
        route, raw, document, fields.model, bool(fields.stream), fields.n or 1, rerank or RerankRequest(), rewards
    )
    if fields.model == "reranked":
        _check_reranked(request)
    return request


def _closed_fields(document: dict[str, Any]) -> set[str]:
    closed = set(CLOSED_FIELDS & document.keys())
    template_fields = document.get("chat_template_kwargs")
    if isinstance(template_fields, dict):
        closed |= {f"chat_template_kwargs.{name}" for name in CLOSED_TEMPLATE_FIELDS & template_fields.keys()}
    return closed


def _check_limits(fields: _Common, limits: LimitSettings) -> None:
    if (fields.n or 1) > limits.max_candidates:
        raise invalid_request(f"n={fields.n} is more than the {limits.max_candidates} allowed.", "n")
    for name in ("max_tokens", "max_completion_tokens"):
        asked = getattr(fields, name)
        if asked is not None and limits.max_tokens is not None and asked > limits.max_tokens:
            raise invalid_request(f"{name}={asked} is more than the {limits.max_tokens} allowed.", name)
    if isinstance(fields, CompletionFields) and (num_samples := fields.num_prompts * (fields.n or 1)) > MAX_SAMPLES:
        raise invalid_request(
            f"{num_samples} samples are more than the {MAX_SAMPLES} of one request. Send fewer prompts at once.",
            "prompt",
        )


def _extension(adapter: TypeAdapter[Any], document: dict[str, Any], name: str, *, allowed: bool) -> Any:
    value = document.get(name)
    if value is None:
        return None
    if not allowed:
        where = {"rerank": "the model 'reranked'", "rewards": "streams of the model 'policy'"}[name]
        raise invalid_request(f"{name!r} belongs to {where}.", name, "unsupported_parameter")
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise explain(error, (name,)) from None


def _check_reranked(request: CompletionRequest) -> None:
    document = request.document
    for name in sorted(REFUSED_WITH_RERANK & document.keys()):
        if document[name]:
            raise invalid_request(f"{name!r} can't be combined with reranking.", name, "unsupported_parameter")
    prompt = document.get("prompt")
    if request.route == COMPLETIONS and isinstance(prompt, list) and not isinstance(prompt[0], int):
        raise invalid_request("Reranking takes one prompt in a request.", "prompt")
    candidates = request.rerank.candidates
    if candidates is not None and request.n > candidates:
        raise invalid_request(f"n={request.n} answers can't be chosen from {candidates} candidates.", "n")


def explain(error: ValidationError, prefix: tuple[str, ...] = ()) -> ApiError:
    """The first fault of a pydantic validation as OpenAI words it: 400 with the field as ``param``."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    # A union's member ("str", "list[…]") is no part of the path that the client wrote.
    path = [str(part) for part in (*prefix, *fault["loc"]) if isinstance(part, int) or str(part).isidentifier()]
    kept = [part for part in path if part not in ("str", "int", "list", "dict", "nonempty")]
    param = ".".join(kept) or None
    if fault["type"] == UNKNOWN_KEY:
        return invalid_request(f"Unknown field {param}; /docs lists those there are.", param, "unknown_field")
    return invalid_request(f"Invalid value for {param or 'the body'}: {fault['msg']}.", param, "invalid_value")
