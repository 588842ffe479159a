"""``POST /v1/rewards``: dense rewards of solutions that were written elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from irlops.contracts.rerank import (
    Aggregation,
    ItemRewards,
    RewardItem,
    RewardsRequest,
    RewardsResponse,
    RewardsUsage,
)
from irlops.selection import aggregate
from irlops_serving.gateway.backends import Backends
from irlops_serving.gateway.choosing import find_answer
from irlops_serving.gateway.critic import TokenizedSolution
from irlops_serving.gateway.errors import invalid_request
from irlops_serving.gateway.exchange import parse_json
from irlops_serving.gateway.requests import explain
from irlops_serving.gateway.steps import error_threshold, step_rewards, suspected_first_error, token_rewards
from irlops_serving.gateway.tokens import Spans

_REQUEST = TypeAdapter(RewardsRequest)
# The policy server tokenizes on the processor that it generates on: a batch must not crowd generation out.
TOKENIZE_AT_ONCE = 8
T = TypeVar("T")


def read_rewards(raw: bytes) -> RewardsRequest:
    """Check a rewards request.

    Raises:
        ApiError: 400 naming the field.
    """
    document = parse_json(raw)
    try:
        return _REQUEST.validate_python(document)
    except ValidationError as error:
        raise explain(error) from None


async def score_items(request: RewardsRequest, backends: Backends) -> RewardsResponse:
    """Tokenize as the policy does, score in batches, place every reward in the text.

    Raises:
        ApiError: 503 when policy or critic is away; the critic's own refusal of too long a text.
    """
    prompts = await _prompts(request, backends)
    tokenized = await _in_turns([partial(backends.policy.solution_ids, item.solution) for item in request.items])
    solutions = [
        TokenizedSolution(prompts[item.question], ids) for item, (ids, _) in zip(request.items, tokenized, strict=True)
    ]
    for index, solution in enumerate(solutions):
        if not solution.solution_ids:
            raise invalid_request("The solution has no tokens to score.", f"items.{index}.solution", "invalid_value")
    rewards = await backends.critic.score(solutions)
    aggregation = request.aggregation or backends.pair.calibration.aggregation
    items = [
        _item(index, item, spans, scores, request, aggregation, backends)
        for index, (item, (_, spans), scores) in enumerate(zip(request.items, tokenized, rewards, strict=True))
    ]
    num_prompt = sum(len(solution.prompt_ids) for solution in solutions)
    num_solution = sum(len(solution.solution_ids) for solution in solutions)
    return RewardsResponse(
        granularity=request.granularity,
        aggregation=aggregation,
        even_chance_reward=error_threshold(backends.pair.calibration),
        pair=backends.versions,
        items=items,
        usage=RewardsUsage(
            prompt_tokens=num_prompt, completion_tokens=num_solution, total_tokens=num_prompt + num_solution
        ),
    )


async def _prompts(request: RewardsRequest, backends: Backends) -> dict[str, tuple[int, ...]]:
    questions = list(dict.fromkeys(item.question for item in request.items))
    ids = await _in_turns([partial(backends.policy.prompt_ids, question) for question in questions])
    return dict(zip(questions, ids, strict=True))


async def _in_turns(calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    places = asyncio.Semaphore(TOKENIZE_AT_ONCE)

    async def one(call: Callable[[], Awaitable[T]]) -> T:
        async with places:
            return await call()

    tasks = [asyncio.create_task(one(call)) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _item(
    index: int,
    item: RewardItem,
    spans: Spans,
    rewards: list[float],
    request: RewardsRequest,
    aggregation: Aggregation,
    backends: Backends,
) -> ItemRewards:
    calibration = backends.pair.calibration
    steps = step_rewards(item.solution, spans, rewards, calibration)
    tokens = None
    if request.granularity == "token":
        tokens = token_rewards(item.solution, spans, rewards, calibration.gamma)
    return ItemRewards(
        index=index,
        reward=aggregate(rewards, aggregation, calibration.gamma),
        answer=find_answer(item.solution, backends.pair.answer_rule),
        num_tokens=len(rewards),
        tokens=tokens,
        steps=steps,
        suspected_first_error=suspected_first_error(steps, error_threshold(calibration)),
    )
