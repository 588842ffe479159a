"""When enough candidates have been sampled: the rule of adaptive sampling, offline and online."""

from __future__ import annotations

import math
from collections.abc import Sequence

from irlops.answers import answers_agree
from irlops.contracts.evaluation import Calibration
from irlops.selection.candidates import Candidate
from irlops.selection.selectors import Agree, group_answers, probability_of, reward_of

DEFAULT_CONFIDENCE = 0.95
FEWEST_CANDIDATES = 2
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
    evidence = [evidence_of(candidate, calibration) for candidate in candidates]
    return share_of_leader([one.weight for one in group_answers(candidates, evidence, agree)])


def share_of_leader(evidence_by_answer: Sequence[float]) -> float:
    """The best answer's part of exp(evidence), an answer that nobody gave yet included; 0 without any answer."""
    if not evidence_by_answer:
        return 0.0
    scores = [*evidence_by_answer, PRIOR_LOG_ODDS_AGAINST_NEW]
    top = max(scores)
    return math.exp(max(evidence_by_answer) - top) / sum(math.exp(score - top) for score in scores)


def is_settled(
    candidates: Sequence[Candidate],
    calibration: Calibration,
    confidence: float = DEFAULT_CONFIDENCE,
    agree: Agree = answers_agree,
) -> bool:
    """Whether to stop sampling: the leading answer is at least this sure. Two candidates are the fewest that settle."""
    return len(candidates) >= FEWEST_CANDIDATES and leading_confidence(candidates, calibration, agree) >= confidence


def evidence_of(candidate: Candidate, calibration: Calibration) -> float:
    """What one candidate says for its own answer, nats."""
    if reward_of(candidate, calibration) == -math.inf:
        return math.log(2.0)
    probability = min(max(probability_of(candidate, calibration), 0.02), 0.98)
    return max(0.0, math.log(probability / (1 - probability)) + math.log(2.0))
