"""HTTP bodies of the gateway: the ``rerank`` extension of chat completions, and ``/v1/rewards``.

``RerankRequest`` and ``RewardsRequest`` are made by clients and read by the gateway; the others travel back.
Offsets (``start``, ``end``) count Unicode code points of the text they point into; ``end`` is exclusive.
Rewards are the critic's raw logits: unbounded, higher reads more like an expert.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_CANDIDATES = 64
MAX_REWARD_ITEMS = 256

Selector = Literal["reward", "majority", "weighted_majority", "first"]
Aggregation = Literal["mean", "min", "product", "last", "discounted"]


def _integral(value: object) -> object:
    # Beyond 2**53 a float may already be another number than the one that was written.
    is_exact = isinstance(value, float) and value.is_integer() and abs(value) <= 2**53
    return int(value) if isinstance(value, float) and is_exact else value


WHOLE = BeforeValidator(_integral)
"""Beside ``strict=True`` an integer as JSON Schema means it: 2.0 is one; "2" and true are not."""


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Degraded(StrEnum):
    """Why an answer was chosen with less than was asked for."""

    CRITIC_UNAVAILABLE = "critic_unavailable"
    """The critic did not answer; the majority vote chose."""
    DEADLINE = "deadline"
    """``deadline_ms`` passed before every candidate was sampled and scored."""
    TOKEN_BUDGET = "token_budget"  # noqa: S105 - the name of a reason, not a secret
    """``max_total_tokens`` was spent before every candidate was finished."""
    POLICY_INTERRUPTED = "policy_interrupted"
    """The policy stopped halfway; the candidates finished before that were used."""


class RerankRequest(_Body):
    """The ``rerank`` field of a chat completion request. Absent fields take the gateway's defaults."""

    candidates: Annotated[int, Field(strict=True, ge=1, le=MAX_CANDIDATES), WHOLE] | None = None
    """Solutions to sample; the cost grows linearly."""
    selector: Selector | None = None
    """How the answer is chosen among the candidates."""
    aggregation: Aggregation | None = None
    """How token rewards become the reward of a candidate; the calibration's own when absent."""
    adaptive: Annotated[bool, Field(strict=True)] | None = None
    """Sample in waves and stop when reward and agreement have settled the answer."""
    deadline_ms: Annotated[int, Field(strict=True, ge=1, le=3_600_000), WHOLE] | None = None
    """Milliseconds after which the best answer so far is given."""
    max_total_tokens: Annotated[int, Field(strict=True, ge=1, le=10_000_000), WHOLE] | None = None
    """Tokens to sample over all candidates together."""
    return_candidates: Annotated[bool, Field(strict=True)] = False
    """Put every candidate into the response."""
    return_token_rewards: Annotated[bool, Field(strict=True)] = False
    """Put token rewards on the candidates returned (on the chosen one when candidates are not returned)."""
    progress: Annotated[bool, Field(strict=True)] = True
    """On a stream, send progress chunks (with an empty delta) while candidates arrive."""


class StreamRewardsRequest(_Body):
    """The ``rewards`` field of a *streamed* chat completion of the policy: score steps while they are written."""

    granularity: Literal["token", "step"] = "step"


class TokenReward(_Body):
    """One token of a solution with its reward."""

    text: str
    start: int
    end: int
    reward: float
    discounted_return: float
    """Sum of this and the later rewards, each ``gamma`` times the one before; gamma is the calibration's."""


class StepReward(_Body):
    """One step (usually a line) of a solution."""

    index: int
    text: str
    start: int
    end: int
    reward: float
    """Of its tokens, aggregated as the pair's calibration aggregates a solution's."""


class SuspectedError(_Body):
    """The first step that reads unlike an expert's."""

    step: int
    start: int
    end: int
    reward: float


class PairVersions(_Body):
    """Which registered pair answered."""

    policy_version: str
    critic_version: str


class RerankCandidate(_Body):
    """One sampled solution."""

    index: int
    text: str
    answer: str | None
    reward: float | None
    """Aggregated token reward; null when it was not scored."""
    finish_reason: str | None
    num_tokens: int
    chance: float | None = None
    """Calibrated chance of being right, 0 to 1: what weighted majority adds up; null when it was not scored."""
    answer_group: int | None = None
    """Place in ``answers`` of the answer it gives; null without an answer, and in progress chunks."""
    token_rewards: list[TokenReward] | None = None
    """Null when not asked for, not scored, or when the tokens can't be placed in the text without guessing."""
    steps: list[StepReward] | None = None
    """Rewards of its steps; there where ``token_rewards`` are."""
    suspected_first_error: SuspectedError | None = None


class AnswerVotes(_Body):
    """How the candidates agree on one answer."""

    answer: str | None
    votes: int
    weight: float
    """Sum of its candidates' weights under the selector (votes, or calibrated odds of being right)."""


class RerankTimings(_Body):
    """Wall time of the phases; scoring overlaps with sampling, so they do not add up to the total."""

    sampling: float
    scoring: float
    total: float


class RerankResult(_Body):
    """The ``rerank`` field of a response: what was sampled, what was chosen and why."""

    selector: Selector
    """The selector that chose; differs from ``requested_selector`` when the answer is degraded."""
    requested_selector: Selector
    aggregation: Aggregation
    candidates_requested: int
    candidates_sampled: int
    candidates_scored: int
    chosen_index: int
    degraded: Degraded | None
    stopped_early: bool
    """Adaptive sampling found the answer settled before all candidates were sampled."""
    explanation: str
    pair: PairVersions
    answers: list[AnswerVotes]
    timings_ms: RerankTimings
    even_chance_reward: float = 0.0
    """The reward at which right and wrong are equally likely (the calibration's bias)."""
    candidates: list[RerankCandidate]


class RewardItem(_Body):
    """A question and a solution to be scored."""

    question: Annotated[str, Field(min_length=1)]
    solution: Annotated[str, Field(min_length=1)]


class RewardsRequest(_Body):
    """Body of ``POST /v1/rewards``."""

    items: Annotated[list[RewardItem], Field(min_length=1, max_length=MAX_REWARD_ITEMS)]
    granularity: Literal["token", "step"] = "token"
    aggregation: Aggregation | None = None
    """How token rewards become an item's reward; the calibration's own when absent."""
    model: Literal["critic"] = "critic"


class ItemRewards(_Body):
    """Rewards of one item."""

    index: int
    reward: float
    """Aggregated over its tokens."""
    answer: str | None
    num_tokens: int
    tokens: list[TokenReward] | None
    """Null at step granularity."""
    steps: list[StepReward]
    suspected_first_error: SuspectedError | None


class RewardsUsage(_Body):
    """Tokens the critic read."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class RewardsResponse(_Body):
    """Answer of ``POST /v1/rewards``."""

    object: Literal["list"] = "list"
    model: Literal["critic"] = "critic"
    granularity: Literal["token", "step"]
    aggregation: Aggregation
    even_chance_reward: float = 0.0
    """The reward at which right and wrong are equally likely (the calibration's bias)."""
    pair: PairVersions
    items: list[ItemRewards]
    usage: RewardsUsage


class ErrorBody(BaseModel):
    """OpenAI's error object."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """OpenAI's error shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    error: ErrorBody
