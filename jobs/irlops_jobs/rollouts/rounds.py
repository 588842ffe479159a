"""One round's questions and what the policy wrote about them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from irlops.answers import AnswerRule, answers_agree, extract_answer
from irlops_jobs.distributed.runtime import Runtime
from irlops_jobs.models.prompts import decode_solution
from irlops_jobs.rollouts.carriers import RolloutEngine, Sample
from irlops_jobs.rollouts.sampling import derive_seed
from irlops_jobs.session import EncodedDemonstration


@dataclass(frozen=True)
class SampledQuestion:
    """A question with this round's samples.

    Example:
        ``SampledQuestion(demonstration, (sample_a, sample_b), texts=("... #### 5", "... #### 6"), agrees=(True, False))``
    """

    demonstration: EncodedDemonstration
    samples: tuple[Sample, ...]
    texts: tuple[str, ...]
    agrees: tuple[bool, ...]
    """Whether a sample ended by itself in the expert's answer."""


def questions_of_round(
    demonstrations: Sequence[EncodedDemonstration], round_index: int, *, num: int, seed: int
) -> list[int]:
    """Indices of a round's questions: every epoch visits all of them once, in an order of its own.

    Depends on the seed and the round alone, so a resumed run asks what an undisturbed one would have asked.
    """
    indices: list[int] = []
    position = round_index * num
    while len(indices) < num:
        epoch, offset = divmod(position, len(demonstrations))
        order = list(range(len(demonstrations)))
        random.Random(derive_seed("questions", seed, epoch)).shuffle(order)  # noqa: S311 - not for secrets
        taken = order[offset : offset + num - len(indices)]
        indices += taken
        position += len(taken)
    return indices


def sample_round(
    engine: RolloutEngine,
    demonstrations: Sequence[EncodedDemonstration],
    tokenizer: PreTrainedTokenizerBase,
    runtime: Runtime,
    *,
    round_index: int,
    num_questions: int,
    num_samples: int,
    seed: int,
) -> list[SampledQuestion]:
    """This process's share of a round; every sample's seed comes from its question and round, not from its process."""
    mine = runtime.share(questions_of_round(demonstrations, round_index, num=num_questions, seed=seed))
    chosen = [demonstrations[index] for index in mine]
    seeds = [derive_seed("rollout", seed, round_index, index) for index in mine]
    samples = engine.sample([one.prompt_ids for one in chosen], num_samples=num_samples, seeds=seeds)
    return [judge_samples(one, group, tokenizer) for one, group in zip(chosen, samples, strict=True)]


def judge_samples(
    demonstration: EncodedDemonstration, samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase
) -> SampledQuestion:
    """Decode samples and compare their answers with the expert's. Nothing outside the demonstrations is consulted."""
    texts = tuple(decode_solution(tokenizer, sample.token_ids) for sample in samples)
    expert_answer = demonstration.demonstration.answer
    agrees = tuple(
        not sample.truncated and answers_agree(extract_answer(text, AnswerRule.GSM8K), expert_answer)
        for sample, text in zip(samples, texts, strict=True)
    )
    return SampledQuestion(demonstration, tuple(samples), texts, agrees)
