"""Whether two answers say the same: exact arithmetic on plain numbers, math-verify for what is a formula, text for the rest.

math-verify stops runaway expressions with SIGALRM, which only a main thread has and which would end somebody else's timer
there. So its timeouts stay off, and only formulas that can't run away reach it (``is_tame_formula``).
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

_NUMBER = re.compile(r"(?P<sign>[-+]?)(?P<whole>[0-9]*)(?:\.(?P<fraction>[0-9]*))?")
_CURRENCY = re.compile(r"^([-+]?)\s*(?:\\?\$|€|£)\s*")
_UNIT_BEHIND = re.compile(
    r"^([-+]?[0-9][0-9.,]*)\s*(?:\\?%|\\?\$|€|£|\s(?!(?:hundred|thousand|million|billion|dozen)s?\b)[A-Za-z]{3,}\.?)$"
)
_GROUPED = re.compile(r"[-+]?[0-9][0-9,]*(\.[0-9]*)?")
_MINUS_SIGNS = str.maketrans("\u2212\u2013", "--")

LONGEST_FORMULA = 100
"""Characters; longer texts are compared as they are, since parsing them could take a server's time."""
_FORMULA = re.compile(
    r"(?:\\(?:[dt]?frac|sqrt|pi|cdot|times|div|left|right|pm|infty|cup|cap|[%,; {}])|[0-9A-Za-z+\-*/^=(){}\[\].,\s])+"
)
_COMMAND = re.compile(r"\\[A-Za-z]+")
_EXPONENT = re.compile(
    r"(?:\^|\*\*)\s*(?:\{\s*-?[0-9A-Za-z]{1,2}(?:/[0-9]{1,2})?\s*\}|-?[0-9A-Za-z]{1,2}(?![0-9A-Za-z]))"
)
_POWER = re.compile(r"\^|\*\*")
_MOST_POWERS = 2


def normalise_answer(answer: str) -> str:
    """Without currency and unit behind a number, thousands separators, idle zeros, final stops and white space around.

    Example:
        >>> normalise_answer(" $1,200.00. "), normalise_answer("-$5"), normalise_answer("18 dollars")
        ('1200', '-5', '18')
    """
    text = answer.strip().translate(_MINUS_SIGNS).strip("$ ").rstrip(".").strip()
    text = _CURRENCY.sub(r"\1", text)
    text = _UNIT_BEHIND.sub(r"\1", text)
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "")
    return _plain_number(text) or text


def _plain_number(text: str) -> str | None:
    """``+007.50`` as ``7.5``, of any length; None for what is no plain number."""
    match = _NUMBER.fullmatch(text)
    if match is None or not (match["whole"] or match["fraction"]):
        return None
    whole, fraction = match["whole"].lstrip("0") or "0", (match["fraction"] or "").rstrip("0")
    number = f"{whole}.{fraction}" if fraction else whole
    return f"-{number}" if match["sign"] == "-" and number != "0" else number


def answers_agree(one: str | None, other: str | None) -> bool:
    """Whether both are answers and mean the same; no answer agrees with nothing, not even with no answer.

    Safe in servers and threads: uses no signals, and no formula that takes long.

    Example:
        >>> answers_agree("$1,200", "1200.0"), answers_agree("1/2", "0.5"), answers_agree(None, None)
        (True, True, False)
    """
    if one is None or other is None:
        return False
    left, right = sorted((normalise_answer(one), normalise_answer(other)))
    if left == right:
        return bool(left)
    if _plain_number(left) is not None and _plain_number(right) is not None:
        return False
    return is_tame_formula(left) and is_tame_formula(right) and _symbolically_equal(left, right)


def is_tame_formula(text: str) -> bool:
    """Whether a computer algebra system may be given this: short, of known signs, without words and towers of powers.

    Example:
        >>> is_tame_formula("\\\\frac{3}{4}"), is_tame_formula("9^{9^{9}}"), is_tame_formula("eighteen")
        (True, False, False)
    """
    if not text or len(text) > LONGEST_FORMULA or _FORMULA.fullmatch(text) is None:
        return False
    letters = _COMMAND.sub(" ", text)
    if re.search("[A-Za-z]{3}", letters):
        return False
    num_powers = len(_POWER.findall(text))
    if num_powers > _MOST_POWERS or len(_EXPONENT.findall(text)) != num_powers:
        return False
    has_symbols = re.search("[A-Za-z]", letters) is not None
    # A sum with symbols to a high power is multiplied out term by term.
    return not (has_symbols and (re.search(r"[0-9]{2}", "".join(_EXPONENT.findall(text))) or text.count(")^") > 1))


@lru_cache(maxsize=4096)
def _symbolically_equal(left: str, right: str) -> bool:
    # Takes a second to import, and most answers are plain numbers.
    import math_verify  # pyright: ignore[reportMissingTypeStubs] - it has none

    parse: Any = math_verify.parse  # its own types are incomplete

    for name in ("math_verify.parser", "math_verify.grader"):  # they warn that there is no timeout, which is on purpose
        logging.getLogger(name).setLevel(logging.ERROR)
    parsed = [parse(f"${text}$", parsing_timeout=None, raise_on_error=False) for text in (left, right)]
    return bool(math_verify.verify(parsed[0], parsed[1], timeout_seconds=None, raise_on_error=False))
