"""What clients may ask of the policy, checked before anything is computed.

The fields are OpenAI's and vLLM's. One that would change the answer and is not known here is refused, never ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

Request = TypeVar("Request", bound=BaseModel)

MAX_SAMPLES = 256
MAX_TOP_LOGPROBS = 20
GREEDY_BELOW = 1e-5
"""Temperatures under this one take the likeliest token, as in vLLM."""

NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "structured_outputs": (None,),
    "prompt_logprobs": (None,),
    "use_beam_search": (None, False),
    "echo": (None, False),
    "suffix": (None, ""),
    "best_of": (None, 1),
    "min_tokens": (None, 0),
    "bad_words": (None, []),
    "truncate_prompt_tokens": (None,),
    "continue_final_message": (None, False),
}
"""Fields of vLLM that this server does not have, with the values that ask for nothing."""


class RequestError(Exception):
    """A request that can't be answered. Becomes ``{"error": {"message", "type", "param", "code"}}``."""

    def __init__(
        self, message: str, *, param: str | None = None, status: int = 400, kind: str = "BadRequestError"
    ) -> None:
        super().__init__(message)
        self.param, self.status, self.kind = param, status, kind


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn and when a sample ends.

    Made by ``GenerationRequest.sampling``; consumed by the engine.
    Example: ``Sampling(num_samples=8, max_tokens=128, seed=0, temperature=1.0)``.
    """

    num_samples: int
    max_tokens: int
    seed: int | None = None
    """Sample i draws as if it were asked for alone with seed + i; None draws anew each time."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    min_p: float = 0.0
    """Tokens less likely than this share of the likeliest are never drawn."""
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    keep_stop_in_text: bool = False
    num_top_logprobs: int | None = None
    """None: no log-probabilities at all; 0: of the sampled token only."""


def _as_list(value: Any) -> Any:
    return [] if value is None else [value] if isinstance(value, str) else value


class StreamOptions(BaseModel):
    include_usage: bool | None = None


class GenerationRequest(BaseModel):
    """Fields that chat and plain completions share."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    model: str | None = None
    n: int | None = None
    seed: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    stop: Annotated[list[str], BeforeValidator(_as_list)] = Field(default_factory=list)
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None

    def num_top_logprobs(self) -> int | None:
        raise NotImplementedError

    def asked_max_tokens(self) -> int | None:
        return self.max_tokens

    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, *, default_max_tokens: int, context_tokens: int) -> Sampling:
        """The request's sampling settings.

        Args:
            default_max_tokens: when the request names no limit.
            context_tokens: the model's context.

        Raises:
            RequestError: a value is out of range.
        """
        asked = self.asked_max_tokens()
        if asked is not None and asked > context_tokens:
            raise RequestError(
                f"max_tokens={asked} is more than the model's context of {context_tokens} tokens.", param="max_tokens"
            )
        sampling = Sampling(
            num_samples=1 if self.n is None else self.n,
            max_tokens=default_max_tokens if asked is None else asked,
            seed=None if self.seed == -1 else self.seed,  # vLLM's "no seed"
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(self.top_k or 0, 0),
            min_p=self.min_p or 0.0,
            stop=tuple(self.stop),
            stop_token_ids=frozenset(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos,
            keep_stop_in_text=self.include_stop_str_in_output,
            num_top_logprobs=self.num_top_logprobs(),
        )
        _check(sampling)
        return sampling


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")

    role: str
    content: str | list[TextPart] | None = None

    def text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class ChatRequest(GenerationRequest):
    """``POST /v1/chat/completions``."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool = True

    def num_top_logprobs(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs to be true.", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    def asked_max_tokens(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class CompletionRequest(GenerationRequest):
    """``POST /v1/completions``."""

    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: int | None = None
    add_special_tokens: bool = True

    def num_top_logprobs(self) -> int | None:
        return self.logprobs


class TokenizeRequest(BaseModel):
    """``POST /tokenize``: ``messages`` (through the chat template) or ``prompt``."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_generation_prompt: bool = True
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


def parse_request(kind: type[Request], body: Any) -> Request:
    """Check a decoded JSON body.

    Raises:
        RequestError: it is not of that kind, or asks for what this server does not have.
    """
    try:
        request = kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise RequestError(f"{where}: {first['msg']}", param=where) from error
    if isinstance(request, GenerationRequest):
        _refuse_unknown_wishes(request)
    return request


def _refuse_unknown_wishes(request: GenerationRequest) -> None:
    for name, value in (request.model_extra or {}).items():
        if name in NEUTRAL_VALUES and value not in NEUTRAL_VALUES[name]:
            raise RequestError(
                f"{name} is not available on the transformers backend. Leave it out, or serve the policy with vLLM.",
                param=name,
            )


def _check(sampling: Sampling) -> None:
    ranges: list[tuple[str, bool, str]] = [
        ("n", 1 <= sampling.num_samples <= MAX_SAMPLES, f"must be 1 to {MAX_SAMPLES}, got {sampling.num_samples}"),
        ("max_tokens", sampling.max_tokens >= 1, f"must be at least 1, got {sampling.max_tokens}"),
        ("temperature", 0 <= sampling.temperature < float("inf"), f"must be 0 or more, got {sampling.temperature}"),
        ("top_p", 0 < sampling.top_p <= 1, f"must be in (0, 1], got {sampling.top_p}"),
        ("min_p", 0 <= sampling.min_p <= 1, f"must be in [0, 1], got {sampling.min_p}"),
        ("stop", all(sampling.stop), "must not contain an empty string"),
        ("seed", sampling.seed is None or -(2**63) <= sampling.seed < 2**63, "must fit in 64 bits"),
        (
            "logprobs",
            0 <= (sampling.num_top_logprobs or 0) <= MAX_TOP_LOGPROBS,
            f"must be 0 to {MAX_TOP_LOGPROBS}, got {sampling.num_top_logprobs}",
        ),
        (
            "n",
            sampling.num_samples == 1 or sampling.temperature >= GREEDY_BELOW,
            f"must be 1 at temperature 0 (all samples would be equal), got {sampling.num_samples}",
        ),
    ]
    for name, is_right, complaint in ranges:
        if not is_right:
            raise RequestError(f"{name} {complaint}.", param=name)
