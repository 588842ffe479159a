"""Wrong samples of the policy itself whose first wrong token is known, for localisation where nobody put the error in.

Where a question has one right solution to the letter (``DemonstrationSet.has_one_solution_each``), the first token of a
wrong sample that departs from it is its first error. Such errors are what a policy finds likely enough to write, so they are
harder to find than corruptions, above all by the policy's own log-probability.
"""

from __future__ import annotations

from collections.abc import Sequence

from irlops.answers import answers_agree
from irlops_jobs.evaluation.carriers import CorruptedTrace, ScoredProblem, ScoredSample


def own_errors(problems: Sequence[ScoredProblem]) -> list[CorruptedTrace]:
    """The first wrong sample of each problem that has one, with the token at which it went wrong.

    One a problem: several samples of a question tend to go wrong at the same place, and would count as one.
    """
    found: list[CorruptedTrace] = []
    for problem in problems:
        wrong = next((sample for sample in problem.samples if _is_wrong(sample, problem)), None)
        place = None if wrong is None else first_difference(wrong.token_ids, problem.only_solution_ids)
        if wrong is not None and place is not None:
            found.append(
                CorruptedTrace(
                    token_rewards=wrong.token_rewards,
                    token_logprobs=wrong.token_logprobs,
                    first_error_start=place,
                    first_error_end=place + 1,
                    num_tokens=wrong.num_tokens,
                    token_ids=wrong.token_ids,
                )
            )
    return found


def first_difference(token_ids: Sequence[int], others: Sequence[int]) -> int | None:
    """Place of the first token that differs; None when ``token_ids`` is all of ``others``, or its beginning."""
    pairs = enumerate(zip(token_ids, others, strict=False))
    return next((place for place, (own, other) in pairs if own != other), None)


def _is_wrong(sample: ScoredSample, problem: ScoredProblem) -> bool:
    return bool(problem.only_solution_ids) and (sample.answer is None or not answers_agree(sample.answer, problem.gold))
