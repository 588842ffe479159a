"""When enough candidates have been sampled: the rule of adaptive sampling, offline and online."""

from __future__ import annotations

import math
from collections.abc import Sequence

from irlops.answers import answers_agree
from irlops.contracts.evaluation import Calibration
from irlops.selection.candidates import Candidate
from irlops.selection.selectors import Agree, group_answers, probability_of, reward_of

DEFAULT_CONFIDENCE = 0.95
PRIOR_LOG_ODDS_AGAINST_NEW = math.log(4.0)
"""Two different answers that nobody repeats are worth nothing; an answer needs support beyond this to count as known."""


def leading_confidence(
    candidates: Sequence[Candidate], calibration: Calibration, agree: Agree = answers_agree
) -> float:
    """How sure the candidates seen so far make the leading answer, 0 to 1.

    Every candidate brings its evidence for its own answer: the log-odds of its calibrated chance of being right, or a
    fixed amount where the critic has not scored it. Independent evidence adds up, so an answer that several candidates
    with good rewards share becomes certain quickly, and one that rewards speak against does not, however often it comes up.
    The confidence is the leading answer's share of exp(evidence), an unseen answer included.
    """
    evidence = [_evidence(candidate, calibration) for candidate in candidates]
    answers = group_answers(candidates, evidence, agree)
    if not answers:
        return 0.0
    scores = [one.weight for one in answers] + [PRIOR_LOG_ODDS_AGAINST_NEW]
    top = max(scores)
    shares = [math.exp(score - top) for score in scores]
    return shares[0] / sum(shares)


def is_settled(
    candidates: Sequence[Candidate],
    calibration: Calibration,
    confidence: float = DEFAULT_CONFIDENCE,
    agree: Agree = answers_agree,
) -> bool:
    """Whether to stop sampling: the leading answer is at least this sure. Two candidates are the fewest that settle."""
    return len(candidates) >= 2 and leading_confidence(candidates, calibration, agree) >= confidence


def _evidence(candidate: Candidate, calibration: Calibration) -> float:
    if reward_of(candidate, calibration) == -math.inf:
        return math.log(2.0)
    probability = min(max(probability_of(candidate, calibration), 0.02), 0.98)
    return max(0.0, math.log(probability / (1 - probability)) + math.log(2.0))
