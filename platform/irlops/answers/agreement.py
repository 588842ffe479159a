"""Whether two answers say the same, by exact arithmetic first and by math-verify for what is not a plain number."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from functools import lru_cache

_PLAIN = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)")
LONGEST_SYMBOLIC_ANSWER = 200
"""Characters; longer texts are compared as they are, since parsing them could take a server's time."""


def normalise_answer(answer: str) -> str:
    """Without currency, units signs, thousands separators, final stops and white space around.

    Example:
        >>> normalise_answer(" $1,200.00. ")
        '1200'
    """
    text = answer.strip().strip("$€£%").strip().rstrip(".").replace(",", "").replace("\\$", "").strip()
    if not _PLAIN.fullmatch(text):
        return text
    try:
        number = Decimal(text)
    except InvalidOperation:  # pragma: no cover - the pattern lets numbers through only
        return text
    return format(number.normalize(), "f") if number else "0"


def answers_agree(one: str | None, other: str | None) -> bool:
    """Whether both are answers and mean the same; no answer agrees with nothing, not even with no answer.

    Plain numbers are compared exactly; anything else by math-verify (fractions, roots, intervals), without its
    timeouts, which need the main thread's signals.

    Example:
        >>> answers_agree("$1,200", "1200.0"), answers_agree("1/2", "0.5"), answers_agree(None, None)
        (True, True, False)
    """
    if one is None or other is None:
        return False
    left, right = normalise_answer(one), normalise_answer(other)
    if left == right:
        return bool(left)
    if _PLAIN.fullmatch(left) and _PLAIN.fullmatch(right):
        return False
    if max(len(left), len(right)) > LONGEST_SYMBOLIC_ANSWER:
        return False
    return _symbolically_equal(left, right)


@lru_cache(maxsize=4096)
def _symbolically_equal(left: str, right: str) -> bool:
    from math_verify import parse, verify  # takes a second to import; most answers are plain numbers

    parsed = [parse(f"${text}$", parsing_timeout=None, raise_on_error=False) for text in (left, right)]
    return bool(verify(parsed[0], parsed[1], timeout_seconds=None, raise_on_error=False))
