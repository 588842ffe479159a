"""Format-preserving corruptions of a right solution, with the place of the first error known to the character.

    kind         what is wrong first                         what follows
    result       an equation's result: a slip of arithmetic  later steps go on with the wrong number, or ignore it
    number       an operand: misread, or another quantity    recomputed and carried on, or the old result kept
    operator     an operator: the wrong operation            recomputed and carried on, or the old result kept
    answer       only the number behind ``####``             nothing
    step_swap    a step that uses what isn't derived yet     the two steps in the wrong order, the answer unchanged

A number that stands in several places (text, annotation, later steps, final answer) changes in all of them, in its own
style, so that nothing but the arithmetic tells a corrupted solution from a right one. Most errors are carried on to the
answer, because that is how a policy errs; the rest aren't, so that "everything after is strange" is no shortcut either.

Every corruption belongs to one positive and carries that positive's question.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from irlops_jobs.demonstrations.equations import Equation, ParsedSolution, parse_solution
from irlops_jobs.demonstrations.expressions import Mention, find_numbers, write_number
from irlops_jobs.demonstrations.jitter import jitter

Kind = Literal["result", "number", "operator", "answer", "step_swap"]
KINDS: tuple[Kind, ...] = ("result", "number", "operator", "answer", "step_swap")
LOCALISATION_KINDS: tuple[Kind, ...] = ("result", "number", "operator", "answer")
"""Where one place is the first error beyond dispute; a swapped step could be called wrong from its first word."""
NUM_DRAWS_PER_KIND = 6
MOST_DRAWS_PER_COPY = 4
MOST_ADDED_DIGITS = 1


@dataclass(frozen=True)
class Perturbed:
    """A corrupted solution; ``solution[:first_error_start]`` is still right.

    Example:
        ``Perturbed("12+5=18\\n#### 18", 6, 7, "result", question, carried=True)``: the first wrong character is the 8.
    """

    solution: str
    first_error_start: int
    """Characters. The first one that differs from the right solution; of ``step_swap`` the operand used too early."""
    first_error_end: int
    """Characters, exclusive: the end of the corrupted number, operator or operand."""
    kind: Kind
    question: str
    """Of the positive that was corrupted: the only question it may be trained with."""
    carried: bool
    """Whether the final answer is wrong too."""


@dataclass(frozen=True)
class PerturbationMix:
    """How often each kind is tried first; a kind that a solution doesn't allow gives way to the others."""

    result: float = 0.3
    number: float = 0.25
    operator: float = 0.2
    answer: float = 0.1
    step_swap: float = 0.15
    carried: float = 0.75
    """Of result, number and operator errors, the part that is carried on to the following steps."""

    @classmethod
    def for_localisation(cls) -> PerturbationMix:
        """Without the kinds whose first error isn't one place."""
        return cls(**dict.fromkeys(set(KINDS) - set(LOCALISATION_KINDS), 0.0))


@dataclass(frozen=True)
class _Edit:
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class _Case:
    """What a corruption is drawn from."""

    parsed: ParsedSolution
    question_values: frozenset[Fraction]
    rng: random.Random
    carried_share: float


def perturb(
    question: str, solution: str, *, rng: random.Random, mix: PerturbationMix | None = None
) -> Perturbed | None:
    """One corruption of a right solution, or None when it has no number to corrupt.

    Deterministic in ``rng``; never returns a solution that is still right by accident.
    """
    mix = mix or PerturbationMix()
    question_values = frozenset(mention.value for mention in find_numbers(question))
    case = _Case(parse_solution(solution), question_values, rng, mix.carried)
    for kind in _kinds_in_drawn_order(mix, rng):
        for _ in range(NUM_DRAWS_PER_KIND):
            drawn = _DRAWS[kind](case)
            if drawn is not None:
                perturbed = _apply(case, kind, *drawn, question)
                if perturbed is not None:
                    return perturbed
    return None


def perturb_positives(
    positives: Sequence[tuple[str, str]],
    *,
    num_each: int,
    seed: int,
    round_index: int,
    first_index: int = 0,
    mix: PerturbationMix | None = None,
) -> list[tuple[Perturbed, ...]]:
    """Corruptions of every positive, parallel to ``positives`` (question, right solution).

    Each depends only on (seed, round_index, first_index + position), never on the other positives, so a
    rank that holds a part of the batch draws what one process would have drawn for it.

    Returns:
        One tuple per positive of at most ``num_each`` different corruptions; empty where nothing can be corrupted.
    """
    corrupted = []
    for index, (question, solution) in enumerate(positives, start=first_index):
        rng = random.Random(f"irlops-perturb-{seed}-{round_index}-{index}")  # noqa: S311 - not for secrets
        mine: dict[str, Perturbed] = {}
        for _ in range(MOST_DRAWS_PER_COPY * num_each):
            perturbed = perturb(question, solution, rng=rng, mix=mix) if len(mine) < num_each else None
            if perturbed is None:
                break
            mine.setdefault(perturbed.solution, perturbed)
        corrupted.append(tuple(mine.values()))
    return corrupted


def token_span(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """The tokens that a span of characters touches.

    Args:
        offsets: (start, end) of each token of the solution in characters, as a fast tokenizer gives them
            (``return_offsets_mapping``); tokens without characters (special ones) have start == end.
        start: First character of the span.
        end: One after the last character.

    Returns:
        (first, one after the last) token position; (n, n) with n tokens when the span lies behind the last of them,
        as it does for a solution cut at the model's length.
    """
    touched = [
        position for position, (begin, stop) in enumerate(offsets) if begin < end and stop > start and stop > begin
    ]
    return (touched[0], touched[-1] + 1) if touched else (len(offsets), len(offsets))


def _kinds_in_drawn_order(mix: PerturbationMix, rng: random.Random) -> Iterator[Kind]:
    """All kinds with a positive weight, each next one drawn by weight from those left."""
    left: list[Kind] = [kind for kind in KINDS if getattr(mix, kind) > 0]
    while left:
        kind = rng.choices(left, weights=[getattr(mix, kind) for kind in left])[0]
        left.remove(kind)
        yield kind


def _apply(
    case: _Case, kind: Kind, edits: list[_Edit], place: tuple[int, int] | None, question: str
) -> Perturbed | None:
    """The corrupted text; None when the first error can't be pointed at (a shortened number: its end is the error)."""
    old, edits = case.parsed.text, sorted(edits, key=lambda edit: edit.start)
    pieces, position = [], 0
    for edit in edits:
        pieces += [old[position : edit.start], edit.text]
        position = edit.end
    new = "".join([*pieces, old[position:]])
    if place is None:
        first = edits[0]
        same = next(
            (n for n, (a, b) in enumerate(zip(old[first.start :], new[first.start :], strict=False)) if a != b), None
        )
        if same is None or same >= len(first.text):
            return None
        place = (first.start + same, first.start + len(first.text))
    final_changed = case.parsed.final is not None and any(e.start == case.parsed.final.start for e in edits)
    return Perturbed(new, *place, kind, question, carried=final_changed)


_Drawn = tuple[list[_Edit], tuple[int, int] | None] | None


def _draw_result(case: _Case) -> _Drawn:
    """A slip of arithmetic: an equation's result is off."""
    equations = case.parsed.equations
    if not equations:
        return None
    index = case.rng.randrange(len(equations))
    wrong = jitter(equations[index].results[-1], case.rng)
    edits = None if wrong is None else _rewrite(equations[index].results, wrong)
    if wrong is None or edits is None:
        return None
    if case.rng.random() < case.carried_share:
        edits += _carry(case, index, wrong) or []
    return edits, None


def _draw_number(case: _Case) -> _Drawn:
    """An operand is misread: another quantity of the problem in its place, or a slip of the pen."""
    index = _draw_editable(case)
    if index is None:
        return None
    equation = case.parsed.equations[index]
    position = case.rng.randrange(len(equation.operands))
    written = equation.writings[-1].numbers[position]
    others = sorted(case.question_values | {e.value for e in case.parsed.equations[:index]} - {written.value})
    others = [value for value in others if value != written.value and value > 0]
    wrong = case.rng.choice(others) if others and case.rng.random() < 0.5 else jitter(written, case.rng)
    edits = None if wrong is None else _rewrite([w.numbers[position] for w in equation.writings], wrong)
    if wrong is None or edits is None:
        return None
    return _with_consequences(case, index, edits, equation.writings[-1].value(operands={position: wrong}))


def _draw_operator(case: _Case) -> _Drawn:
    """The wrong operation."""
    index = _draw_editable(case)
    if index is None:
        return None
    equation = case.parsed.equations[index]
    position = case.rng.randrange(len(equation.operators))
    wrong = case.rng.choice([sign for sign in "+-*/" if sign != equation.operators[position]])
    edits = [
        _Edit(sign.start, sign.end, _written_sign(case.parsed, writing is equation.writings[-1], wrong))
        for writing in equation.writings
        for sign in [writing.signs[position]]
    ]
    return _with_consequences(case, index, edits, equation.writings[-1].value(operators={position: wrong}))


def _draw_answer(case: _Case) -> _Drawn:
    """The reasoning is right, the answer given is another: a number from on the way, or a slip."""
    final = case.parsed.final
    if final is None:
        return None
    others = sorted({e.value for e in case.parsed.equations} - {final.value})
    wrong = case.rng.choice(others) if others and case.rng.random() < 0.5 else jitter(final, case.rng)
    edits = None if wrong is None else _rewrite([final], wrong)
    return None if edits is None else (edits, None)


def _draw_step_swap(case: _Case) -> _Drawn:
    """Two neighbouring lines change places although the second uses what the first derives."""
    parsed = case.parsed
    pairs = list(_dependent_neighbours(case))
    if not pairs:
        return None
    (start, middle, end), used = case.rng.choice(pairs)
    first, second = parsed.text[start : middle - 1], parsed.text[middle:end]
    edits = [_Edit(start, end, f"{second}\n{first}")]
    moved = used.start - middle + start
    return edits, (moved, moved + len(used.written))


_DRAWS: dict[Kind, Callable[[_Case], _Drawn]] = {
    "result": _draw_result,
    "number": _draw_number,
    "operator": _draw_operator,
    "answer": _draw_answer,
    "step_swap": _draw_step_swap,
}


def _draw_editable(case: _Case) -> int | None:
    editable = [index for index, equation in enumerate(case.parsed.equations) if equation.is_editable]
    return case.rng.choice(editable) if editable else None


def _with_consequences(case: _Case, index: int, edits: list[_Edit], recomputed: Fraction | None) -> _Drawn:
    """The changed left side with its new result, carried on; or with the old result left to stand."""
    equation = case.parsed.equations[index]
    if recomputed == equation.value:
        return None  # 2*2 and 2+2: the step is still right
    if case.rng.random() >= case.carried_share:
        return edits, None
    results = None if recomputed is None else _rewrite(equation.results, recomputed)
    carried = None if recomputed is None or results is None else _carry(case, index, recomputed)
    return None if results is None or carried is None else (edits + results + carried, None)


def _carry(case: _Case, index: int, wrong: Fraction) -> list[_Edit] | None:
    """Edits that go on with a wrong result of equation ``index`` to the end; None when it leads to an odd number.

    A later operand is taken for this result when the question has no such number, or when the result wasn't used yet.
    """
    parsed = case.parsed
    changed = {parsed.equations[index].value: wrong}
    unused = {parsed.equations[index].value}
    edits: list[_Edit] = []
    later = [
        *parsed.equations[index + 1 :],
        *(m for m in parsed.loose_numbers if m.start > parsed.equations[index].start),
    ]
    for item in sorted(later, key=lambda item: item.start):
        if isinstance(item, Mention):
            known = item.value in changed and item.value not in case.question_values
            rewritten = _rewrite([item], changed[item.value]) if known else []
        else:
            rewritten = _carry_into(case, item, changed, unused)
        if rewritten is None:
            return None
        edits += rewritten
    final = parsed.final
    if final is None or final.value not in changed or changed[final.value] == final.value:
        return edits
    written = _rewrite([final], changed[final.value])
    return None if written is None else edits + written


def _carry_into(
    case: _Case, equation: Equation, changed: dict[Fraction, Fraction], unused: set[Fraction]
) -> list[_Edit] | None:
    """Edits of one later equation; adds its own changed result to ``changed`` and ``unused``."""
    wrong_operands = {
        position: changed[value]
        for position, value in enumerate(equation.operands)
        if value in changed and (value in unused or value not in case.question_values)
    }
    if not wrong_operands:
        changed.pop(equation.value, None)  # derived anew, and rightly: what follows may mean this one
        return []
    if not equation.is_editable:
        return None
    unused.difference_update(equation.operands)
    value = equation.writings[-1].value(operands=wrong_operands)
    rewritten = None if value is None else _rewrite(equation.results, value)
    if value is None or rewritten is None:
        return None
    for position, operand in wrong_operands.items():
        written = _rewrite([writing.numbers[position] for writing in equation.writings], operand)
        if written is None:
            return None
        rewritten += written
    changed[equation.value] = value
    unused.add(equation.value)
    return rewritten


def _rewrite(places: Sequence[Mention], value: Fraction) -> list[_Edit] | None:
    """The same number at each place, in each place's style; None when it would stand out (sign, decimals, length)."""
    edits = []
    for place in places:
        written = write_number(value, like=place.written)
        if written is None or value < 0 or (value == 0) != (place.value == 0):
            return None
        if len(written) > len(place.written) + MOST_ADDED_DIGITS:
            return None
        edits.append(_Edit(place.start, place.end, written))
    return edits


def _written_sign(parsed: ParsedSolution, in_annotation: bool, operator: str) -> str:
    """The operator as this solution writes it: ``x`` where its text multiplies with x; annotations always use ``*``."""
    signs = [sign for equation in parsed.equations for sign in equation.writings[0].signs if sign.operator == operator]
    has_annotations = any(len(equation.writings) == 2 for equation in parsed.equations)
    return operator if (in_annotation and has_annotations) or not signs else signs[0].written


def _dependent_neighbours(case: _Case) -> Iterator[tuple[tuple[int, int, int], Mention]]:
    """Neighbouring lines (start, start of the second, end), and the operand of the second that the first derives."""
    text, equations = case.parsed.text, case.parsed.equations
    starts = [0, *(position + 1 for position, character in enumerate(text) if character == "\n")]
    edges = [*starts, len(text) + 1]
    for start, middle, after in zip(edges, edges[1:], edges[2:], strict=False):
        known = case.question_values | {m.value for m in find_numbers(text, 0, start)}
        derived = {e.value for e in equations if start <= e.start < middle} - known
        second = [e for e in equations if middle <= e.start < after]
        used = [n for e in second for n in e.writings[0].numbers if n.value in derived]
        if used and text[middle:].strip() and not text[middle:].startswith("####"):
            yield (start, middle, after - 1), used[0]
