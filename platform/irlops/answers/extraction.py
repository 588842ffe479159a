"""Finding the final answer in a solution, by named rules."""

from __future__ import annotations

import re
from enum import StrEnum

_LAST_NUMBER = re.compile(r"(?P<minus>(?<![\w)])[-\u2212])?\s?\$?\s?(?P<digits>[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)")
_GSM8K = re.compile(r"####\s*(?:\$\s*)?(-?)\s*\$?\s*([0-9][0-9.,]*|\.[0-9]+)")
_STRICT_GSM8K = re.compile(r"#### (-?[0-9.,]+)\s*\Z")
_OPENING, _CLOSING = "<answer>", "</answer>"


class AnswerRule(StrEnum):
    """How a solution marks its answer."""

    GSM8K = "gsm8k"
    """The number after the first ``#### ``, commas stripped (openai/grade-school-math)."""
    BOXED = "boxed"
    """The content of the last ``\\boxed{...}``."""
    TAGS = "tags"
    """The text between the last ``<answer>`` and the ``</answer>`` behind it (the published protocol, arXiv 2510.01857)."""
    LAST_NUMBER = "last_number"
    """The last number anywhere."""
    AUTO = "auto"
    """The first of gsm8k, tags, boxed and last_number that finds something."""


def extract_answer(text: str, rule: AnswerRule = AnswerRule.AUTO) -> str | None:
    """The final answer as written, stripped, or None when the rule finds none.

    Example:
        >>> extract_answer("12+5=17\\n#### 1,017", AnswerRule.GSM8K)
        '1017'
    """
    match rule:
        case AnswerRule.GSM8K:
            found = _GSM8K.search(text)
            return None if found is None else found[1] + found[2].replace(",", "").rstrip(".")
        case AnswerRule.TAGS:
            return _between_tags(text)
        case AnswerRule.BOXED:
            return _last_boxed(text)
        case AnswerRule.LAST_NUMBER:
            return _last_number(text)
        case AnswerRule.AUTO:
            rules = (AnswerRule.GSM8K, AnswerRule.TAGS, AnswerRule.BOXED, AnswerRule.LAST_NUMBER)
            return next((answer for one in rules if (answer := extract_answer(text, one)) is not None), None)


def is_strictly_right(text: str, gold: str) -> bool:
    """The published strict rule: what stands in the answer's place is the gold string to the letter.

    ``<answer>18.0</answer>``, ``$18`` and ``1,018`` are wrong where gold is ``18`` or ``1018``. Solutions without tags are
    held to the place that GSM8K gives an answer: ``#### 18`` at the very end.
    """
    if _OPENING in text:
        return _between_tags(text) == gold
    found = _STRICT_GSM8K.search(text)
    return found is not None and found[1] == gold


def _between_tags(text: str) -> str | None:
    start = text.rfind(_OPENING)
    end = text.find(_CLOSING, start)
    return None if start < 0 or end < 0 else text[start + len(_OPENING) : end].strip() or None


def _last_number(text: str) -> str | None:
    last = None
    for last in _LAST_NUMBER.finditer(text):  # noqa: B007 - the last one is what is wanted
        pass
    if last is None:
        return None
    return ("-" if last["minus"] else "") + last["digits"].replace(",", "")


def _last_boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 1, start + len("\\boxed{")
    for index in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return text[begin:index].strip() or None
    return None
