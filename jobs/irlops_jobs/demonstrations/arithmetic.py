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

NAMES = ("Ava", "Cleo", "Eva", "Gina", "Ida", "Kira", "Mona", "Olga", "Rosa", "Tess", "Uma", "Vera", "Xena", "Zoe")
THINGS = ("apples", "books", "cards", "coins", "cookies", "eggs", "marbles", "pencils", "shells", "stamps", "stickers")
CONTAINERS = ("bags", "boxes", "baskets", "packs")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "Monday")
LARGEST_AMOUNT = 60
"""Intermediate results stay at or below this: what a model of a million parameters can learn in minutes."""


@dataclass(frozen=True)
class Step:
    """One sentence of the question, one or two lines of the solution.

    Example:
        ``Step("buys_packs", a=3, b=4)``: "Monday she buys 3 bags of 4."
    """

    kind: str
    a: int = 0
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
    """A step in words: what is said of it, the equations that solve it, and the amount afterwards."""

    sentence: str
    equations: tuple[tuple[str, int], ...]
    amount: int


def _buys(step: Step, amount: int, _: str) -> Telling:
    total = amount + step.a
    return Telling(f"buys {step.a}", ((f"{amount}+{step.a}", total),), total)


def _loses(step: Step, amount: int, _: str) -> Telling:
    total = amount - step.a
    return Telling(f"loses {step.a}", ((f"{amount}-{step.a}", total),), total)


def _buys_packs(step: Step, amount: int, container: str) -> Telling:
    product = step.a * step.b
    total = amount + product
    equations = ((f"{step.a}*{step.b}", product), (f"{amount}+{product}", total))
    return Telling(f"buys {step.a} {container} of {step.b}", equations, total)


def _gives_each(step: Step, amount: int, _: str) -> Telling:
    product = step.a * step.b
    total = amount - product
    equations = ((f"{step.a}*{step.b}", product), (f"{amount}-{product}", total))
    return Telling(f"gives {step.a} friends {step.b} each", equations, total)


def _doubles(_: Step, amount: int, __: str) -> Telling:
    return Telling("doubles them", ((f"{amount}*2", amount * 2),), amount * 2)


def _halves(_: Step, amount: int, __: str) -> Telling:
    return Telling("gives half away", ((f"{amount}/2", amount // 2),), amount // 2)


def _keeps_third(_: Step, amount: int, __: str) -> Telling:
    return Telling("keeps a third", ((f"{amount}/3", amount // 3),), amount // 3)


TELLERS: dict[str, Callable[[Step, int, str], Telling]] = {
    "buys": _buys,
    "loses": _loses,
    "buys_packs": _buys_packs,
    "gives_each": _gives_each,
    "doubles": _doubles,
    "halves": _halves,
    "keeps_third": _keeps_third,
}


def _draw_step(rng: random.Random, amount: int) -> Step | None:
    """A step that keeps the amount a whole number between 2 and LARGEST_AMOUNT, or None when the draw doesn't fit."""
    kind = rng.choice(("buys", "loses", "buys_packs", "gives_each", "doubles", "halves", "keeps_third"))
    match kind:
        case "buys" | "loses":
            step = Step(kind, rng.randint(2, 9))
        case "buys_packs" | "gives_each":
            step = Step(kind, rng.randint(2, 4), rng.randint(2, 5))
        case _:
            step = Step(kind)
    divisor = {"halves": 2, "keeps_third": 3}.get(kind, 1)
    if amount % divisor:
        return None
    return step if 2 <= _apply(step, amount) <= LARGEST_AMOUNT else None


def _apply(step: Step, amount: int) -> int:
    return TELLERS[step.kind](step, amount, "").amount


def draw_program(rng: random.Random, num_steps: int) -> Program:
    """A random program of ``num_steps`` steps whose every intermediate amount is a whole number."""
    start = amount = rng.randint(4, 30)
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
        telling = TELLERS[step.kind](step, amount, container)
        sentences.append(f"{day} she {telling.sentence}.")
        lines.append(
            f"{day}: " + ", ".join(f"{expr}=<<{expr}={result}>>{result}" for expr, result in telling.equations)
        )
        amount = telling.amount
    question = " ".join([*sentences, f"How many {thing} are left?"])
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
