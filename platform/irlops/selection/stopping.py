"""When enough candidates have been sampled: the rule of adaptive sampling, offline and online.

Say a question has one right answer, samples are independent given the question, and a wrong sample gives the answer A with
chance w. Then the odds of A against "nobody has been right so far" are the product, over the candidates that gave A, of
``p / (1 - p) / w``, where p is a candidate's calibrated chance of being right: rewards and agreement in one number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from irlops.answers import answers_agree
from irlops.contracts.evaluation import Calibration
from irlops.selection.candidates import Candidate
from irlops.selection.selectors import GREATEST_CHANCE, Agree, group_answers, probability_of, reward_of, vote_of

FEWEST_CANDIDATES = 2
LOG_AGREEMENT = math.log(2.0)
"""-log w with w = 1/2: wrong samples often make the same mistake, so agreement alone convinces slowly."""
PRIOR_LOG_ODDS_AGAINST_NEW = math.log(4.0)
"""Of "nobody has been right so far": an answer needs support beyond this before it counts as known."""
_LEAST_CHANCE = 1 - GREATEST_CHANCE


def confidence_in_choice(
    candidates: Sequence[Candidate], calibration: Calibration, agree: Agree = answers_agree
) -> float:
    """How sure the candidates make the answer that weighted majority would choose of them, 0 to 1.

    Of that answer and not of the likeliest one: where the two differ, sampling should go on.
    Without any scored candidate the majority's answer is meant.
    """
    evidence = [evidence_of(candidate, calibration) for candidate in candidates]
    votes = [vote_of(probability_of(candidate, calibration)) for candidate in candidates]
    answers = sorted(group_answers(candidates, evidence, agree), key=lambda answer: answer.members[0])
    if not answers:
        return 0.0
    weights = [sum(votes[i] for i in answer.members) for answer in answers]
    if not any(weights):
        weights = [float(answer.votes) for answer in answers]
    chosen = max(range(len(answers)), key=weights.__getitem__)
    return confidence_in([answer.weight for answer in answers], chosen)


def confidence_in(evidence_by_answer: Sequence[float], place: int) -> float:
    """One answer's part of exp(evidence), with "nobody has been right so far" beside all answers.

    Example:
        Evidence log 36 and log 2 against the prior's log 4: 36 / (36 + 2 + 4).
    """
    scores = [*evidence_by_answer, PRIOR_LOG_ODDS_AGAINST_NEW]
    top = max(scores)
    return math.exp(evidence_by_answer[place] - top) / sum(math.exp(score - top) for score in scores)


def is_settled(
    candidates: Sequence[Candidate],
    calibration: Calibration,
    confidence: float | None = None,
    agree: Agree = answers_agree,
) -> bool:
    """Whether to stop sampling: the answer to be chosen is sure enough. Two candidates are the fewest that settle.

    Args:
        confidence: None takes the calibration's, which dev problems chose.
    """
    wanted = calibration.stop_confidence if confidence is None else confidence
    return len(candidates) >= FEWEST_CANDIDATES and confidence_in_choice(candidates, calibration, agree) >= wanted


def evidence_of(candidate: Candidate, calibration: Calibration) -> float:
    """What one candidate says for its own answer, nats; never against it, and little when the critic has not scored it."""
    if reward_of(candidate, calibration) == -math.inf:
        return LOG_AGREEMENT
    chance = min(max(probability_of(candidate, calibration), _LEAST_CHANCE), GREATEST_CHANCE)
    return max(0.0, math.log(chance / (1 - chance)) + LOG_AGREEMENT)
