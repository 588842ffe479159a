"""Where each rule finds the final answer."""

from __future__ import annotations

import pytest

from irlops.answers import AnswerRule, extract_answer, is_strictly_right


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("5*2=10\n#### 10", "10"), ("#### 1,234,567", "1234567"), ("#### -3", "-3"), ("#### $18", "18"), ("#### -$18", "-18"),
        ("#### 2.50", "2.50"), ("#### 18.", "18"), ("####18", "18"), ("#### .5", ".5"), ("#### 5 apples", "5"),
        ("#### 5\n#### 6", "5"), ("####", None), ("#### five", None), ("the answer is 5", None), ("", None),
    ],
)  # fmt: skip
def test_gsm8k_takes_the_number_behind_the_first_mark(text: str, answer: str | None):
    assert extract_answer(text, AnswerRule.GSM8K) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{42}.", "42"), ("\\boxed{1} then \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"), ("\\boxed{4", None),
        ("\\boxed{ }", None), ("no box", None),
    ],
)  # fmt: skip
def test_boxed_takes_the_last_box_with_its_inner_braces(text: str, answer: str | None):
    assert extract_answer(text, AnswerRule.BOXED) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>3</think><answer>\n18\n</answer>", "18"), ("<answer>1</answer><answer>2</answer>", "2"),
        ("<answer>1 <answer>2</answer>", "2"), ("<answer>1", None), ("</answer>1<answer>", None), ("<answer></answer>", None),
        ("18", None),
    ],
)  # fmt: skip
def test_tags_take_the_text_of_the_last_closed_pair(text: str, answer: str | None):
    assert extract_answer(text, AnswerRule.TAGS) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("first 3, then 1,017 apples", "1017"), ("it is -4.", "-4"), ("10-4", "4"), ("costs $ 2.50!", "2.50"), ("none", None),
        ("it falls by -$7", "-7"),
    ],
)  # fmt: skip
def test_last_number_reads_a_minus_only_where_it_is_a_sign(text: str, answer: str | None):
    assert extract_answer(text, AnswerRule.LAST_NUMBER) == answer


def test_auto_prefers_the_marks_to_a_bare_number():
    assert extract_answer("#### 5 and \\boxed{6} and 7") == "5"
    assert extract_answer("<answer>8</answer> \\boxed{6} and 7") == "8"
    assert extract_answer("\\boxed{6} and 7") == "6"
    assert extract_answer("and 7") == "7"


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("<think>x</think>\n<answer>\n18\n</answer>", "18", True), ("<answer>18.0</answer>", "18", False),
        ("<answer>$18</answer>", "18", False), ("<answer>1,018</answer>", "1018", False), ("6*3=18\n#### 18", "18", True),
        ("#### 18 dollars", "18", False), ("#### 1,018", "1018", False), ("#### 18\nand more", "18", False), ("18", "18", False),
    ],
)  # fmt: skip
def test_the_strict_rule_wants_the_gold_string_to_the_letter(text: str, gold: str, right: bool):
    assert is_strictly_right(text, gold) is right
