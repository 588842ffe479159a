"""Adaptive sampling's stopping rule, worked out by hand; that it pays is tested where it is measured."""

from __future__ import annotations

import math

import pytest

from irlops.selection import Calibration, Candidate, is_settled
from irlops.selection.stopping import confidence_in, confidence_in_choice, evidence_of

PLAIN = Calibration()


def candidate(answer: str | None, chance: float | None = None):
    """Scored so that its calibrated chance of being right is ``chance``."""
    return Candidate(answer, 1, None if chance is None else (math.log(chance / (1 - chance)),))


def test_confidence_is_the_answers_share_of_all_evidence():
    # 36 / (36 + 2 + 4)
    assert confidence_in([math.log(36), math.log(2)], 0) == pytest.approx(36 / 42)


def test_two_candidates_that_agree_multiply_their_odds():
    # odds 3 each, doubled by agreement: (3 x 2)^2 = 36 against the prior's 4
    assert confidence_in_choice([candidate("5", 0.75), candidate("5", 0.75)], PLAIN) == pytest.approx(36 / 40)


def test_another_answer_takes_confidence_away():
    # 36 for 5, odds 1 x 2 = 2 for 6, 4 for nobody
    seen = [candidate("5", 0.75), candidate("6", 0.5), candidate("5", 0.75)]
    assert confidence_in_choice(seen, PLAIN) == pytest.approx(36 / 42)


def test_agreement_that_rewards_speak_against_never_convinces():
    # odds 0.25 x 2 = 0.5 count as 1: no evidence, however often. 1 / (1 + 4)
    assert confidence_in_choice([candidate("5", 0.2)] * 16, PLAIN) == pytest.approx(1 / 5)


def test_one_candidate_is_never_surer_than_98_percent():
    assert evidence_of(candidate("5", 1 - 1e-9), PLAIN) == pytest.approx(math.log(0.98 / 0.02 * 2))


def test_without_a_critic_agreement_alone_convinces_slowly():
    # 2^n against 4: 16 / 20 after four that agree
    assert confidence_in_choice([candidate("5")] * 4, PLAIN) == pytest.approx(0.8)


def test_without_a_critic_the_majoritys_answer_is_meant():
    # 4 for the two 5s, 2 for the 6, 4 for nobody
    assert confidence_in_choice([candidate("6"), candidate("5"), candidate("5")], PLAIN) == pytest.approx(4 / 10)


def test_confidence_is_of_the_answer_that_would_be_given():
    # By added odds 5 leads, 9 to 4 x 2, though the evidence is for 6, 9 x 2 to (2 x 2)^4 = 256: sampling goes on.
    seen = [candidate("5", 0.9)] + [candidate("6", 2 / 3)] * 4
    assert confidence_in_choice(seen, PLAIN) == pytest.approx(18 / (18 + 256 + 4))
    assert not is_settled(seen, PLAIN, 0.5)


def test_no_answer_settles_nothing():
    assert confidence_in_choice([candidate(None, 0.9)] * 3, PLAIN) == 0.0
    assert not is_settled([candidate(None, 0.9)] * 3, PLAIN, 0.01)


def test_one_candidate_never_settles():
    assert not is_settled([candidate("5", 0.99)], PLAIN, 0.5)
    assert is_settled([candidate("5", 0.99)] * 2, PLAIN, 0.5)


def test_the_calibration_says_how_sure_to_be():
    seen = [candidate("5", 0.75)] * 2  # 0.9
    assert is_settled(seen, Calibration(stop_confidence=0.89))
    assert not is_settled(seen, Calibration(stop_confidence=0.91))


def test_answers_that_agree_are_one_answer():
    assert confidence_in_choice([candidate("5", 0.75), candidate("5.0", 0.75)], PLAIN) == pytest.approx(36 / 40)
