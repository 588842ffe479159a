"""Finding the final answer in a solution, by named rules."""

from __future__ import annotations

import re
from enum import StrEnum

_NUMBER = re.compile(r"-?\$?\s?(\d[\d,]*(?:\.\d+)?|\.\d+)")
_GSM8K = re.compile(r"####\s*\$?\s*(-?[\d.,]*\d)")
_TAGS = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class AnswerRule(StrEnum):
    """How a solution marks its answer."""

    GSM8K = "gsm8k"
    """The number after the last ``#### `` (openai/grade-school-math)."""
    BOXED = "boxed"
    """The content of the last ``\\boxed{...}``."""
    TAGS = "tags"
    """The text between the last ``<answer>`` and ``</answer>`` (the published protocol, arXiv 2510.01857)."""
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
            found = _GSM8K.findall(text)
            return found[-1].replace(",", "").rstrip(".") if found else None
        case AnswerRule.TAGS:
            found = _TAGS.findall(text)
            return found[-1].strip() or None if found else None
        case AnswerRule.BOXED:
            return _last_boxed(text)
        case AnswerRule.LAST_NUMBER:
            found = list(_NUMBER.finditer(text))
            return _signed(found[-1]) if found else None
        case AnswerRule.AUTO:
            rules = (AnswerRule.GSM8K, AnswerRule.TAGS, AnswerRule.BOXED, AnswerRule.LAST_NUMBER)
            return next((answer for one in rules if (answer := extract_answer(text, one)) is not None), None)


def _signed(match: re.Match[str]) -> str:
    sign = "-" if match.group(0).startswith("-") else ""
    return sign + match.group(1).replace(",", "")


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
