"""Arithmetic as solutions write it: numbers in their own style, expressions, calculator annotations.

Exact (``fractions.Fraction``), iterative and bounded: the text may come from a model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from irlops.errors import DataError

NUMBER = re.compile(r"(?<![0-9.])(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![0-9.])\.[0-9]+")
ANNOTATION = re.compile(r"<<([^<>=]*)=([^<>=]*)>>")
OPERATOR_OF_SIGN = {
    "+": "+",
    **dict.fromkeys("-\N{MINUS SIGN}\N{EN DASH}", "-"),
    **dict.fromkeys("*xX\N{MULTIPLICATION SIGN}", "*"),
    **dict.fromkeys("/\N{DIVISION SIGN}", "/"),
}
LONGEST_NUMBER = 15
LONGEST_EXPRESSION = 200
_TOKEN = re.compile(r"\s*(?:([0-9]+\.?[0-9]*|\.[0-9]+)|([-+*/()]))")
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "negate": 3}


@dataclass(frozen=True)
class Mention:
    """A number as written at ``text[start:end]``.

    Example:
        In ``"$1,200.50"``: ``Mention(1, 9, Fraction(2401, 2), "1,200.50")``.
    """

    start: int
    end: int
    value: Fraction
    written: str


def find_numbers(text: str, start: int = 0, end: int | None = None) -> list[Mention]:
    """Unsigned numbers in ``text[start:end]``, left to right; longer than 15 characters are left out."""
    found = NUMBER.finditer(text, start, len(text) if end is None else end)
    return [
        Mention(match.start(), match.end(), parse_number(match[0]), match[0])
        for match in found
        if len(match[0]) <= LONGEST_NUMBER
    ]


def parse_number(written: str) -> Fraction:
    """The value of ``1,200.50``, ``.5`` or ``-3``.

    Raises:
        DataError: it is not a plain decimal number of at most 15 characters.
    """
    plain = written.replace(",", "")
    if len(plain) > LONGEST_NUMBER or not re.fullmatch(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)", plain):
        raise DataError(f"{written[:40]!r} is not a number. Write it with digits, one point and thousands commas only.")
    return Fraction(Decimal(plain))


def write_number(value: Fraction, like: str) -> str | None:
    """``value`` in the style of ``like`` (thousands commas, decimals, bare leading point), or None when it doesn't fit.

    An integer style takes integers only, so that a changed number never stands out by its form.

    Example:
        >>> write_number(Fraction(1300), "1,250"), write_number(Fraction(5, 4), "7"), write_number(Fraction(1, 2), ".2")
        ('1,300', None, '.5')
    """
    decimals = len(like.partition(".")[2])
    scaled = value * 10**decimals
    if scaled.denominator != 1 or len(str(scaled.numerator)) > LONGEST_NUMBER:
        return None
    number = Decimal(scaled.numerator).scaleb(-decimals)
    written = f"{number:,f}" if "," in like or (number >= 10_000 and "," in like) else f"{number:f}"
    return written[1:] if like.startswith(".") and written.startswith("0.") else written


def evaluate(expression: str) -> Fraction | None:
    """The exact value of digits, points, ``+ - * /`` and parentheses, or None when it is no such expression.

    Example:
        >>> evaluate("100-50-(30+15)"), evaluate("2+"), evaluate("1/0")
        (Fraction(5, 1), None, None)
    """
    tokens = _tokenize(expression)
    if not tokens:
        return None
    try:
        return _evaluate_postfix(_to_postfix(tokens))
    except (ValueError, IndexError, ZeroDivisionError):
        return None


def _tokenize(expression: str) -> list[str]:
    """Tokens with signs of numbers as ``negate``; empty when something else than arithmetic is in it."""
    text, tokens, position = expression.strip().replace("//", "/"), [], 0  # two annotations of GSM8K divide with "//"
    if len(text) > LONGEST_EXPRESSION:
        return []
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or len(match[1] or "") > LONGEST_NUMBER:
            return []
        symbol = match[1] or match[2]
        starts_operand = not tokens or tokens[-1] in "(+-*/" or tokens[-1] == "negate"
        if symbol == "-" and starts_operand:
            symbol = "negate"
        if not (symbol == "+" and starts_operand):  # "+2=2" is how some annotations begin
            tokens.append(symbol)
        position = match.end()
    return tokens


def _to_postfix(tokens: list[str]) -> list[str]:
    """Shunting-yard.

    Raises:
        ValueError: parentheses don't match.
    """
    output: list[str] = []
    stack: list[str] = []
    for symbol in tokens:
        if symbol in ("(", "negate"):
            stack.append(symbol)
        elif symbol == ")":
            while stack and stack[-1] != "(":
                output.append(stack.pop())
            if not stack:
                raise ValueError(tokens)
            stack.pop()
        elif symbol in _PRECEDENCE:
            while stack and stack[-1] != "(" and _PRECEDENCE[stack[-1]] >= _PRECEDENCE[symbol]:
                output.append(stack.pop())
            stack.append(symbol)
        else:
            output.append(symbol)
    if "(" in stack:
        raise ValueError(tokens)
    return output + stack[::-1]


def _evaluate_postfix(postfix: list[str]) -> Fraction:
    """Raises ValueError, IndexError or ZeroDivisionError when operands are missing, left over, or a divisor is 0."""
    stack: list[Fraction] = []
    for symbol in postfix:
        if symbol == "negate":
            stack.append(-stack.pop())
        elif symbol in _PRECEDENCE:
            right, left = stack.pop(), stack.pop()
            stack.append(apply(symbol, left, right))
        else:
            stack.append(Fraction(Decimal(symbol)))
    (value,) = stack
    return value


def apply(operator: str, left: Fraction, right: Fraction) -> Fraction:
    """One of ``+ - * /``.

    Raises:
        ZeroDivisionError: ``right`` is 0 in a division.
    """
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case _:
            return left / right


def strip_annotations(solution: str) -> str:
    """The solution without GSM8K's ``<<expression=value>>`` marks, as the official code removes them."""
    return re.sub(r"<<[^<>]*>>", "", solution)
