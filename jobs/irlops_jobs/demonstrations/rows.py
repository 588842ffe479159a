"""From one raw GSM8K row to a demonstration, or to the reason why not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from irlops.answers import AnswerRule, extract_answer
from irlops.errors import DataError
from irlops_jobs.demonstrations.carriers import Demonstration
from irlops_jobs.demonstrations.expressions import ANNOTATION, evaluate, find_numbers, parse_number, strip_annotations

MARKED_ANSWER = re.compile(r"####\s*\$?\s*(-?[0-9.,]*[0-9])")
RELATIVE_ROUNDING = Fraction(1, 100)
"""An annotation may round its result this much; GSM8K's own are all within a millionth."""
SMALL_NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)


class MalformedRowError(DataError):
    """A row that can't become a demonstration; ``reason_of`` gives the word under which it is counted."""


def reason_of(error: MalformedRowError) -> str:
    """The part before the colon: ``empty_question``, ``no_answer``, ..."""
    return str(error).partition(":")[0]


def official_answer(solution: str) -> str:
    """The number behind ``####``, commas removed, by the rule that training, evaluation and the gateway share.

    Raises:
        MalformedRowError: ``no_answer`` or ``unparsable_answer``.
    """
    answer = extract_answer(solution, AnswerRule.GSM8K)
    if answer is None:
        raise MalformedRowError("no_answer: the solution has no '#### number'; add the final answer as its last line")
    try:
        parse_number(answer)
    except DataError as error:
        raise MalformedRowError(f"unparsable_answer: '#### {answer[:40]}' is not a number") from error
    return answer


def parse_row(row: Any, *, source: str, keep_annotations: bool) -> Demonstration:
    """A demonstration from ``{"question": ..., "answer": ...}``; other keys are left alone.

    Raises:
        MalformedRowError: a key is missing, not text or empty, or the solution has no parsable final answer.
    """
    if not isinstance(row, dict):
        raise MalformedRowError(f"not_an_object: a row is a JSON object, this is {type(row).__name__}")
    question, solution = (_text(row, key) for key in ("question", "answer"))
    answer = official_answer(solution)
    return Demonstration(question, solution if keep_annotations else strip_annotations(solution), answer, source)


def _text(row: dict[str, Any], key: str) -> str:
    if key not in row:
        raise MalformedRowError(f"missing_{key}: the keys are {sorted(map(str, row))[:8]}")
    text = row[key]
    if not isinstance(text, str):
        raise MalformedRowError(f"{key}_not_text: {key!r} is {type(text).__name__}")
    if not text.strip():
        raise MalformedRowError(f"empty_{key}: {key!r} holds no text")
    return text


def contradiction_in(solution: str) -> str | None:
    """Why an annotated or stripped expert solution contradicts itself, or None.

    Found: an annotation whose arithmetic is wrong, a visible result that differs from its annotation, two different
    ``####`` answers, and a final answer that the reasoning never states. GSM8K's train split has nine of the last kind,
    all of them slips of the annotators.
    """
    return next(_contradictions(solution), None)


def _contradictions(solution: str) -> Iterator[str]:
    for match in ANNOTATION.finditer(solution):
        stated, value = evaluate(match[2]), evaluate(match[1])
        if stated is None or value is None:
            continue  # not arithmetic, so nothing to hold it against
        if abs(stated - value) > RELATIVE_ROUNDING * max(1, abs(value)):
            yield f"the annotation {match[0]} is wrong: {match[1]} is {float(value):g}"
        visible = find_numbers(solution, match.end(), match.end() + 24)
        is_plain = "/" not in match[2]
        if is_plain and visible and visible[0].start == match.end() and not _close(visible[0].value, abs(stated)):
            yield f"{match[0]} is followed by {visible[0].written}"
    finals = {answer.replace(",", "") for answer in MARKED_ANSWER.findall(solution)}
    if len(finals) > 1:
        yield f"it gives {len(finals)} final answers: {', '.join(sorted(finals))}"
    for answer in finals:
        if not _is_stated(parse_number(answer), solution[: solution.find("####")]):
            yield f"its reasoning never states the final answer {answer}"


def _close(left: Fraction, right: Fraction) -> bool:
    return abs(left - right) <= RELATIVE_ROUNDING * max(1, abs(right))


def _is_stated(answer: Fraction, reasoning: str) -> bool:
    """Whether the reasoning mentions the number: in digits, as cents or per cent of them, or as a small word."""
    visible = strip_annotations(reasoning)
    if not visible.strip():
        return True  # a bare answer states nothing to contradict
    if re.search(rf"(?<![\d.,]){abs(answer)}(?![\d/]|[.,]\d)", visible):
        return True  # the plain case, a hundred times quicker than what follows
    readings = (visible, re.sub(r"(?<=\d) (?=\d{3}\b)", "", visible), *re.split(r"[.,]", visible))  # "17 000", "1,2,3"
    values = {mention.value for reading in readings for mention in find_numbers(reading)}
    words = {
        Fraction(SMALL_NUMBERS.index(word)) for word in re.findall(r"[a-z]+", visible.lower()) if word in SMALL_NUMBERS
    }
    return abs(answer) in {*values, *words, *(value * 100 for value in values)}
