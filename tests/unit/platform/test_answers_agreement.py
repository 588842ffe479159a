"""What two answers have to share to be one."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from irlops.answers import answers_agree, normalise_answer
from irlops.answers.agreement import is_tame_formula


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        (" $1,200.00. ", "1200"), ("-$5", "-5"), ("$-5", "-5"), ("\\$18", "18"), ("18 dollars", "18"), ("50%", "50"),
        ("+007.50", "7.5"), ("-0.0", "0"), (".5", "0.5"), ("5.", "5"), ("\u22123", "-3"), ("(1,2)", "(1,2)"),
        ("2 million", "2 million"), ("", ""),
    ],
)  # fmt: skip
def test_a_number_is_stripped_of_everything_but_its_value(written: str, plain: str):
    assert normalise_answer(written) == plain


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1,200", "$1200.0"), ("1/2", "0.5"), ("\\frac{3}{6}", "\\dfrac{1}{2}"), ("2\\sqrt{2}", "\\sqrt{8}"),
        ("x+1", "1+x"), ("x=5", "5"), ("2^{10}", "1024"), ("\\{1,2\\}", "\\{2,1\\}"), ("(1, 2)", "(1,2)"), ("a b", "a b"),
    ],
)  # fmt: skip
def test_the_same_said_differently_agrees_both_ways(one: str, other: str):
    assert answers_agree(one, other)
    assert answers_agree(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("17", "18"), ("0.333", "1/3"), ("[0,1)", "(0,1]"), ("(1,2)", "12"), ("18 apples", "eighteen"), ("2 million", "2"),
        ("1" * 40 + "2", "1" * 40 + "3"),
    ],
    ids=["numbers", "a rounded third", "intervals", "a point is no number", "words", "millions", "beyond 28 digits"],
)  # fmt: skip
def test_different_answers_do_not_agree(one: str, other: str):
    assert not answers_agree(one, other)


def test_no_answer_agrees_with_nothing():
    assert not answers_agree(None, None)
    assert not answers_agree(None, "5")
    assert not answers_agree("", "")


@pytest.mark.parametrize(
    "monster",
    [
        "9^9^9^9",
        "9^{9^{9}}",
        "((9^99)^99)^99",
        "99999!",
        "(a+b+c+d)^{99}",
        "\\sum_{i=1}^{9999999} i",
        "\\int x",
        "1+" * 60 + "1",
    ],
)
def test_formulas_that_could_run_away_are_compared_as_texts(monster: str):
    started_s = time.process_time()
    assert not is_tame_formula(monster)
    assert not answers_agree(monster, "5")
    assert answers_agree(monster, monster)
    assert time.process_time() - started_s < 1  # of computing, however long the machine let it wait


def test_formulas_are_compared_in_any_thread_and_leave_alarms_alone():
    agreed: list[bool] = []
    before = signal.getitimer(signal.ITIMER_REAL)[0]
    thread = threading.Thread(target=lambda: agreed.append(answers_agree("7/4", "1.75")))
    thread.start()
    thread.join()
    assert agreed == [True]
    assert (signal.getitimer(signal.ITIMER_REAL)[0] > 0) == (before > 0)  # a test's own time limit still runs
