"""Seeded word problems in the manner of GSM8K: several steps, annotated expert solutions, ``#### n`` at the end.

A problem is a *program* (a start amount and a chain of operations on it) told in words. Train, dev and test are
disjoint by program, not by wording: a program's digest decides its split, so no split can hold a paraphrase of another's.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from irlops_jobs.demonstrations.carriers import Demonstration

Split = Literal["train", "dev", "test"]

NAMES = (
    "Ava Ben Cleo Dan Eva Finn Gina Hugo Ida Jack Kira Liam Mona Nils Olga Paul Quinn Rosa Sam Tess Uma Vera Will Xena Yuri Zoe"
).split()
THINGS = "apples books cards coins cookies eggs flowers marbles pencils shells stamps stickers".split()
CONTAINERS = "bags boxes baskets packs".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday Monday".split()
LARGEST_AMOUNT = 99
"""Intermediate results stay at or below this: two digits are what a model of a million parameters learns in minutes."""


@dataclass(frozen=True)
class Step:
    """One sentence of the question, one or two lines of the solution.

    Example:
        ``Step("buys_packs", a=3, b=8)``: "She buys 3 bags with 8 apples each."
    """

    kind: str
    a: int
    b: int = 0


@dataclass(frozen=True)
class Program:
    start: int
    steps: tuple[Step, ...]

    def digest(self) -> str:
        text = repr((self.start, [(s.kind, s.a, s.b) for s in self.steps]))
        return hashlib.sha256(text.encode()).hexdigest()

    def split(self) -> Split:
        bucket = int(self.digest()[:8], 16) % 100
        return "test" if bucket < 10 else "dev" if bucket < 20 else "train"


@dataclass(frozen=True)
class Telling:
    """Told words of a step: its sentence, and its solution lines as (lead-in, expression, result, tail)."""

    sentence: str
    lines: tuple[tuple[str, str, int, str], ...]
    amount: int


def _buys(step: Step, amount: int, thing: str, _: str) -> Telling:
    total = amount + step.a
    return Telling(f"buys {step.a} more {thing}", (("so", f"{amount}+{step.a}", total, thing),), total)


def _gives(step: Step, amount: int, thing: str, _: str) -> Telling:
    total = amount - step.a
    return Telling(f"gives away {step.a} {thing}", (("so", f"{amount}-{step.a}", total, thing),), total)


def _buys_packs(step: Step, amount: int, thing: str, container: str) -> Telling:
    product = step.a * step.b
    total = amount + product
    lines = (("new", f"{step.a}*{step.b}", product, thing), ("so", f"{amount}+{product}", total, thing))
    return Telling(f"buys {step.a} {container} with {step.b} {thing} each", lines, total)


def _uses_daily(step: Step, amount: int, thing: str, _: str) -> Telling:
    product = step.a * step.b
    total = amount - product
    lines = (("used", f"{step.a}*{step.b}", product, thing), ("so", f"{amount}-{product}", total, thing))
    return Telling(f"uses {step.a} {thing} a day for {step.b} days", lines, total)


def _multiplies(step: Step, amount: int, thing: str, _: str) -> Telling:
    total = amount * step.a
    return Telling(f"ends up with {step.a} times as many {thing}", (("so", f"{amount}*{step.a}", total, thing),), total)


def _shares(step: Step, amount: int, thing: str, _: str) -> Telling:
    total = amount // step.a
    sentence = f"shares the {thing} equally among {step.a} people and keeps one share"
    return Telling(sentence, (("so", f"{amount}/{step.a}", total, thing),), total)


TELLERS: dict[str, Callable[[Step, int, str, str], Telling]] = {
    "buys": _buys,
    "gives": _gives,
    "buys_packs": _buys_packs,
    "uses_daily": _uses_daily,
    "multiplies": _multiplies,
    "shares": _shares,
}


def _draw_step(rng: random.Random, amount: int) -> Step | None:
    """A step that keeps the amount a whole number between 2 and LARGEST_AMOUNT, or None when the draw doesn't fit."""
    kind = rng.choice(("buys", "gives", "buys_packs", "uses_daily", "multiplies", "shares"))
    match kind:
        case "buys":
            step, after = Step(kind, a := rng.randint(2, 40)), amount + a
        case "gives":
            step, after = Step(kind, a := rng.randint(2, max(2, min(40, amount - 2)))), amount - a
        case "buys_packs":
            a, b = rng.randint(2, 9), rng.randint(2, 9)
            step, after = Step(kind, a, b), amount + a * b
        case "uses_daily":
            a, b = rng.randint(2, 9), rng.randint(2, 9)
            step, after = Step(kind, a, b), amount - a * b
        case "multiplies":
            step, after = Step(kind, a := rng.randint(2, 3)), amount * a
        case _:
            divisors = [d for d in range(2, 6) if amount % d == 0]
            if not divisors:
                return None
            step, after = Step(kind, a := rng.choice(divisors)), amount // a
    return step if 2 <= after <= LARGEST_AMOUNT else None


def _apply(step: Step, amount: int) -> int:
    return TELLERS[step.kind](step, amount, "", "").amount


def draw_program(rng: random.Random, num_steps: int) -> Program:
    """A random program of ``num_steps`` steps whose every intermediate amount is a whole number."""
    start = amount = rng.randint(5, 80)
    steps: list[Step] = []
    while len(steps) < num_steps:
        step = _draw_step(rng, amount)
        if step is None or (steps and steps[-1].kind == step.kind):
            continue
        steps.append(step)
        amount = _apply(step, amount)
    return Program(start, tuple(steps))


def tell(program: Program, rng: random.Random) -> tuple[str, str, str]:
    """Question, annotated solution and answer of a program, in words drawn from ``rng``."""
    name, thing, container = rng.choice(NAMES), rng.choice(THINGS), rng.choice(CONTAINERS)
    amount = program.start
    sentences, lines = [f"{name} has {amount} {thing}."], []
    for day, step in zip(DAYS, program.steps, strict=False):
        telling = TELLERS[step.kind](step, amount, thing, container)
        sentences.append(f"On {day} {name} {telling.sentence}.")
        for index, (what, expr, result, unit) in enumerate(telling.lines):
            lines.append(f"{what if index else f'On {day}'}: {expr}=<<{expr}={result}>>{result} {unit}")
        amount = telling.amount
    question = " ".join([*sentences, f"How many {thing} does {name} have now?"])
    return question, "\n".join([*lines, f"#### {amount}"]), str(amount)


def generate(split: Split, *, seed: int, min_steps: int = 2, max_steps: int = 4) -> Iterator[Demonstration]:
    """Endless demonstrations of one split, without repeated programs; the same arguments give the same sequence.

    Example:
        >>> next(generate("train", seed=0)).solution.splitlines()[-1].startswith("#### ")
        True
    """
    rng = random.Random(f"irlops-arithmetic-{seed}-{split}-{min_steps}-{max_steps}")  # noqa: S311 - not for secrets
    seen: set[str] = set()
    while True:
        program = draw_program(rng, rng.randint(min_steps, max_steps))
        digest = program.digest()
        if program.split() != split or digest in seen:
            continue
        seen.add(digest)
        question, solution, answer = tell(program, rng)
        yield Demonstration(question, solution, answer, source=f"arithmetic/{split}:{len(seen) - 1}")


def load_arithmetic(
    split: Split, num: int, *, seed: int, min_steps: int = 2, max_steps: int = 4
) -> list[Demonstration]:
    """The first ``num`` demonstrations of a split."""
    return list(islice(generate(split, seed=seed, min_steps=min_steps, max_steps=max_steps), num))
