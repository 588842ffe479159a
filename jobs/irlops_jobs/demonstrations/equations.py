"""The equations of a solution: where each operand, operator and result is written, also when it is written twice.

GSM8K writes ``She has 12 + 5 = <<12+5=17>>17 apples``: the expression stands in the text and in the annotation, the
result in the annotation and behind it. Without annotations ``12 + 5 = 17`` is found in the text alone. Only what
evaluates to its own result counts as an equation, so a misread sentence can't become one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from irlops_jobs.demonstrations.expressions import (
    ANNOTATION,
    LONGEST_NUMBER,
    NUMBER,
    OPERATOR_OF_SIGN,
    Mention,
    evaluate,
    find_numbers,
    parse_number,
)

FINAL_ANSWER = re.compile(r"####\s*[$€£]?\s*-?(?=[0-9.])")
_SIGNS = "".join(re.escape(sign) for sign in OPERATOR_OF_SIGN if sign not in "xX")
_PIECE = re.compile(
    rf"(?P<number>{NUMBER.pattern})|(?P<parenthesis>[()])"
    rf"|(?P<sign>[{_SIGNS}]|(?<![A-Za-z])[xX](?![A-Za-z]))(?=[\s$€£(]*[0-9.])"
)
_RESULT = re.compile(rf"=\s*[$€£]?\s*(?P<number>{NUMBER.pattern})(?!\s*[{_SIGNS}xX]\s*[0-9(])")
_BEFORE_ANNOTATION = re.compile(r"=\s*[$€£]?\s*$")
LONGEST_LINE = 2000
"""Characters; a longer line isn't arithmetic and isn't searched."""


@dataclass(frozen=True)
class Sign:
    """An operator as written at ``text[start:end]``; ``operator`` is one of ``+ - * /``."""

    start: int
    end: int
    operator: str
    written: str


@dataclass(frozen=True)
class Expression:
    """One writing of an equation's left side.

    Example:
        ``6 x $3`` at 10: numbers 6 and 3, one sign, symbols ``(0, "*", 1)`` (integers count into ``numbers``).
    """

    numbers: tuple[Mention, ...]
    signs: tuple[Sign, ...]
    symbols: tuple[int | str, ...]

    def value(
        self, operands: Mapping[int, Fraction] | None = None, operators: Mapping[int, str] | None = None
    ) -> Fraction | None:
        """The value with some operands and operators (by position) replaced; None when it has none (division by 0)."""
        operands, operators = operands or {}, operators or {}
        texts, sign = [], 0
        for symbol in self.symbols:
            if isinstance(symbol, int):
                texts.append(_as_operand(operands.get(symbol, self.numbers[symbol].value)))
            elif symbol in "()":
                texts.append(symbol)
            else:
                texts.append(operators.get(sign, symbol))
                sign += 1
        return evaluate("".join(texts))


@dataclass(frozen=True)
class Equation:
    """``writings`` of the left side (in the text, in the annotation) and of the result, in text order.

    ``is_editable`` is False when the text says the left side in a way that isn't understood ("half of 48"): changing
    the annotation alone would then make the two differ.
    """

    start: int
    end: int
    writings: tuple[Expression, ...]
    results: tuple[Mention, ...]
    is_editable: bool

    @property
    def value(self) -> Fraction:
        return self.results[0].value

    @property
    def operands(self) -> tuple[Fraction, ...]:
        return tuple(number.value for number in self.writings[-1].numbers)

    @property
    def operators(self) -> tuple[str, ...]:
        return tuple(sign.operator for sign in self.writings[-1].signs)


@dataclass(frozen=True)
class ParsedSolution:
    """A solution's equations, the numbers outside them, and the final answer (behind ``####``, else None)."""

    text: str
    equations: tuple[Equation, ...]
    loose_numbers: tuple[Mention, ...]
    final: Mention | None


def parse_solution(text: str) -> ParsedSolution:
    """Find equations, loose numbers and the final answer. Never raises: text without arithmetic gives none."""
    final = _final_answer(text)
    end = text.rfind("####", 0, final.start) if final else len(text)
    equations = tuple(_equations(text, end))
    taken = sorted({(place.start, place.end) for equation in equations for place in _places(equation)})
    spans = [*taken, *(match.span() for match in ANNOTATION.finditer(text))]
    loose = [mention for mention in find_numbers(text, 0, end) if not _overlaps(mention, spans)]
    return ParsedSolution(text, equations, tuple(loose), final)


def _final_answer(text: str) -> Mention | None:
    matches = list(FINAL_ANSWER.finditer(text))
    numbers = find_numbers(text, matches[-1].end()) if matches else []
    return numbers[0] if numbers and numbers[0].start == matches[-1].end() else None


def _places(equation: Equation) -> Iterator[Mention]:
    for writing in equation.writings:
        yield from writing.numbers
    yield from equation.results


def _overlaps(mention: Mention, spans: Sequence[tuple[int, int]]) -> bool:
    return any(start < mention.end and mention.start < end for start, end in spans)


def _equations(text: str, end: int) -> Iterator[Equation]:
    line_start = 0
    for line in text[:end].splitlines(keepends=True):
        if len(line) <= LONGEST_LINE:
            yield from _equations_in_line(text, line_start, line_start + len(line))
        line_start += len(line)


def _equations_in_line(text: str, start: int, end: int) -> Iterator[Equation]:
    """Annotated equations, and between them those that the text alone writes."""
    position = start
    for match in ANNOTATION.finditer(text, start, end):
        annotated = _annotated(text, position, match)
        left_end = annotated.start if annotated else match.start()
        yield from _unannotated(text, position, left_end)
        if annotated:
            yield annotated
        position = annotated.end if annotated else match.end()
    yield from _unannotated(text, position, end)


def _annotated(text: str, left: int, match: re.Match[str]) -> Equation | None:
    inside = _read_expression(text, match.start(1), match.end(1), whole=True)
    result = find_numbers(text, match.start(2), match.end(2))
    if inside is None or not inside.signs or len(result) != 1 or result[0].written != match[2].strip():
        return None
    behind = find_numbers(text, match.end(), match.end() + LONGEST_NUMBER + 1)
    visible = [mention for mention in behind[:1] if mention.start == match.end() and mention.value == result[0].value]
    equals = _BEFORE_ANNOTATION.search(text, left, match.start())
    outside = _read_expression(text, left, equals.start()) if equals else None
    agrees = outside is not None and _same_arithmetic(outside, inside)
    writings = (outside, inside) if outside and agrees else (inside,)
    start = min(mention.start for mention in writings[0].numbers)
    end = visible[0].end if visible else match.end()
    return Equation(start, end, writings, (*result, *visible), is_editable=agrees or equals is None)


def _same_arithmetic(one: Expression, other: Expression) -> bool:
    same_values = [number.value for number in one.numbers] == [number.value for number in other.numbers]
    return same_values and [sign.operator for sign in one.signs] == [sign.operator for sign in other.signs]


def _unannotated(text: str, start: int, end: int) -> Iterator[Equation]:
    position = start
    for match in _RESULT.finditer(text, start, end):
        written = match["number"]
        left = _read_expression(text, position, match.start())
        position = match.end()
        if left is None or not left.signs or len(written) > LONGEST_NUMBER:
            continue
        result = Mention(match.start("number"), match.end("number"), parse_number(written), written)
        if _rounds_to(left.value(), result):
            yield Equation(left.numbers[0].start, result.end, (left,), (result,), is_editable=True)


def _rounds_to(value: Fraction | None, result: Mention) -> bool:
    last_place = Fraction(1, 10 ** len(result.written.partition(".")[2]))
    return value is not None and abs(value - result.value) <= (last_place / 2 if last_place < 1 else 0)


def _read_expression(text: str, start: int, end: int, *, whole: bool = False) -> Expression | None:
    """The longest arithmetic that ends at ``end``: numbers with exactly one operator between neighbours.

    With ``whole`` it has to begin at ``start``.
    """
    pieces = list(_PIECE.finditer(text, start, end))
    kept = _ending_run(pieces)
    if kept is None or (whole and (len(kept) != len(pieces) or len(text[start:end]) > LONGEST_LINE)):
        return None
    numbers: list[Mention] = []
    signs: list[Sign] = []
    symbols: list[int | str] = []
    for piece in kept:
        if written := piece["number"]:
            symbols.append(len(numbers))
            numbers.append(Mention(piece.start(), piece.end(), parse_number(written), written))
        elif written := piece["sign"]:
            signs.append(Sign(piece.start(), piece.end(), OPERATOR_OF_SIGN[written], written))
            symbols.append(OPERATOR_OF_SIGN[written])
        else:
            symbols.append(piece[0])
    expression = Expression(tuple(numbers), tuple(signs), tuple(symbols))
    return expression if expression.value() is not None else None


def _ending_run(pieces: Sequence[re.Match[str]]) -> list[re.Match[str]] | None:
    """The pieces from the right as long as numbers and operators alternate, with parentheses that match."""
    kept: list[re.Match[str]] = []
    expects_number = True
    for piece in reversed(pieces):
        if piece["parenthesis"]:
            kept.append(piece)
        elif bool(piece["number"]) != expects_number or len(piece[0]) > LONGEST_NUMBER:
            break
        else:
            kept.append(piece)
            expects_number = not expects_number
    kept.reverse()
    while kept and not kept[0]["number"] and not _closes(kept):
        kept.pop(0)
    return kept if kept and _closes(kept) and any(piece["number"] for piece in kept) else None


def _closes(pieces: Sequence[re.Match[str]]) -> bool:
    depth = 0
    for piece in pieces:
        depth += {"(": 1, ")": -1}.get(piece[0], 0)
        if depth < 0:
            return False
    return depth == 0 and not pieces[0]["sign"]


def _as_operand(value: Fraction) -> str:
    """A value for ``evaluate``: decimals when it has them exactly, else a quotient."""
    text = f"{value.numerator}/{value.denominator}" if value.denominator != 1 else str(value.numerator)
    return f"({text})"
