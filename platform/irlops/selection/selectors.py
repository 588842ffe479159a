"""The selectors: from candidates to the chosen one, with the reasons. Ties keep the policy's order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from irlops.answers import answers_agree, normalise_answer
from irlops.contracts.evaluation import Calibration
from irlops.selection.aggregation import aggregate
from irlops.selection.candidates import Candidate

Agree = Callable[[str | None, str | None], bool]
"""Whether two answers say the same. Comparing formulas can take long: a server passes an agreement it can bound."""
GREATEST_CHANCE = 0.98
"""No single candidate counts as surer than this: a critic that errs, errs with high rewards too."""
SELECTORS = ("first", "reward", "majority", "weighted_majority", "longest", "logprob")


@dataclass(frozen=True)
class AnswerVotes:
    """One distinct answer, how many candidates gave it, and what they weigh together."""

    answer: str
    votes: int
    weight: float
    members: tuple[int, ...]
    """Candidates that gave it, in policy order."""


@dataclass(frozen=True)
class Selection:
    """What was chosen and why.

    Example:
        Three candidates answering 5, 5, 6 by majority: ``index=0, order=(0, 1, 2)``, votes 5: 2 and 6: 1, agreement 2/3.
    """

    index: int
    order: tuple[int, ...]
    """All candidates, best first."""
    answers: tuple[AnswerVotes, ...]
    """Distinct answers, best first."""
    agreement: float
    """Part of all candidates that gave the chosen answer."""
    margin: float
    """Weight of the best answer minus the second's, over the weight of all; 0 when nobody answered."""
    explanation: str


def reward_of(candidate: Candidate, calibration: Calibration) -> float:
    """A candidate's reward as one number; minus infinity when the critic has not scored it."""
    if not candidate.token_rewards:
        return -math.inf
    return aggregate(candidate.token_rewards, calibration.aggregation, calibration.gamma)


def probability_of(candidate: Candidate, calibration: Calibration) -> float:
    """Calibrated chance that a candidate is right, 0 to 1; 0 when the critic has not scored it."""
    reward = reward_of(candidate, calibration)
    if reward == -math.inf:
        return 0.0
    return calibration.probability(reward)


def vote_of(chance: float) -> float:
    """What a candidate's vote weighs: its calibrated odds of being right.

    Odds and not chances: wrong samples often agree, and by chances a dozen of them, each 0.1 sure, would outvote one that is
    surely right.

    Example:
        A chance of 0.9 weighs 9, one of 0.5 weighs 1, one of 0.1 a ninth.
    """
    chance = min(chance, GREATEST_CHANCE)
    return chance / (1 - chance)


def group_answers(
    candidates: Sequence[Candidate], weights: Sequence[float], agree: Agree = answers_agree
) -> tuple[AnswerVotes, ...]:
    """Distinct answers with their votes, heaviest first; ties keep the order in which answers first came up."""
    groups: list[tuple[str, list[int]]] = []
    exact: dict[str, int] = {}
    for index, candidate in enumerate(candidates):
        if candidate.answer is None:
            continue
        key = normalise_answer(candidate.answer)
        place = exact.get(key)
        if place is None:
            place = next((i for i, (known, _) in enumerate(groups) if agree(known, key)), None)
        if place is None:
            place = len(groups)
            groups.append((key, []))
        exact[key] = place
        groups[place][1].append(index)
    votes = [AnswerVotes(key, len(m), sum(weights[i] for i in m), tuple(m)) for key, m in groups]
    return tuple(sorted(votes, key=lambda one: -one.weight))


def select(
    candidates: Sequence[Candidate], selector: str, calibration: Calibration, agree: Agree = answers_agree
) -> Selection:
    """Choose one candidate.

    Args:
        selector: first | reward | majority | weighted_majority | longest | logprob. ``weighted_majority`` adds up each
            answer's calibrated odds of being right.
        agree: tells which answers are one.
    Raises:
        ValueError: no candidates, or an unknown selector.
    """
    if not candidates:
        raise ValueError("There is no candidate to choose from.")
    if selector not in SELECTORS:
        raise ValueError(f"Unknown selector {selector!r}: choose one of {', '.join(SELECTORS)}.")
    num = len(candidates)
    weights = [1.0] * num
    if selector == "weighted_majority":
        weights = [vote_of(probability_of(candidate, calibration)) for candidate in candidates]
    answers = group_answers(candidates, weights, agree)
    order = _order(candidates, selector, calibration, answers)
    chosen = next((one for one in answers if order[0] in one.members), None)
    total = sum(one.weight for one in answers)
    first, second = (*(one.weight for one in answers[:2]), 0.0, 0.0)[:2]
    return Selection(
        index=order[0],
        order=order,
        answers=answers,
        agreement=chosen.votes / num if chosen else 0.0,
        margin=(first - second) / total if total > 0 else 0.0,
        explanation=_explain(selector, order[0], chosen, answers, num),
    )


def _order(
    candidates: Sequence[Candidate], selector: str, calibration: Calibration, answers: Sequence[AnswerVotes]
) -> tuple[int, ...]:
    indices = range(len(candidates))
    match selector:
        case "first":
            return tuple(indices)
        case "reward":
            return tuple(sorted(indices, key=lambda i: -reward_of(candidates[i], calibration)))
        case "longest":
            return tuple(sorted(indices, key=lambda i: -candidates[i].num_tokens))
        case "logprob":
            return tuple(sorted(indices, key=lambda i: -_mean_logprob(candidates[i])))
        case _:
            return _vote_order(candidates, selector, calibration, answers)


def _vote_order(
    candidates: Sequence[Candidate], selector: str, calibration: Calibration, answers: Sequence[AnswerVotes]
) -> tuple[int, ...]:
    rank = {i: place for place, one in enumerate(answers) for i in one.members}
    silent = len(answers)

    def key(index: int) -> tuple[int, float]:
        within = reward_of(candidates[index], calibration) if selector == "weighted_majority" else 0.0
        return rank.get(index, silent), -within

    return tuple(sorted(range(len(candidates)), key=key))


def _mean_logprob(candidate: Candidate) -> float:
    return -math.inf if candidate.logprob is None else candidate.logprob / max(candidate.num_tokens, 1)


def _explain(
    selector: str, index: int, chosen: AnswerVotes | None, answers: Sequence[AnswerVotes], num_candidates: int
) -> str:
    if selector in ("majority", "weighted_majority") and chosen is not None:
        text = f"{chosen.votes} of {num_candidates} candidates answer {chosen.answer}"
        if selector == "weighted_majority":
            total = sum(one.weight for one in answers)
            text += f", with {chosen.weight / total:.0%} of the calibrated weight" if total else ""
        return text + "."
    if selector in ("majority", "weighted_majority"):
        return "No candidate has a final answer, so the first one stands."
    reasons = {
        "first": "is the policy's first",
        "reward": "has the highest reward",
        "longest": "is the longest",
        "logprob": "is the likeliest per token under the policy",
    }
    return f"Candidate {index} {reasons[selector]} of {num_candidates}."
