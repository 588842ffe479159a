"""A wrong number that looks like the right one: same style, same length, off by what people get wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction

from irlops_jobs.demonstrations.expressions import Mention, write_number

NUM_DRAWS = 12


def jitter(number: Mention, rng: random.Random) -> Fraction | None:
    """Another positive value that can be written in the style of ``number``; None when there is none in sight.

    Off by one or two, by ten (a forgotten carry), by one digit, or by two digits that changed places; in units of the
    last digit that isn't a filling zero, so that $207.00 becomes $208.00 and 450,000 becomes 460,000.
    """
    decimals = len(number.written.partition(".")[2])
    digits = number.value * 10**decimals
    if digits.denominator != 1 or digits <= 0:
        return None
    unit = _unit(int(digits), decimals)
    core = int(digits) // unit
    for _ in range(NUM_DRAWS):
        wrong = rng.choice(_SLIPS)(core, rng)
        same_length = len(str(wrong)) == len(str(core)) or core < 10
        if wrong > 0 and wrong != core and same_length:
            value = Fraction(wrong * unit, 10**decimals)
            if write_number(value, like=number.written) is not None:
                return value
    return None


def _unit(digits: int, decimals: int) -> int:
    """10 to the number of filling zeros: all decimal ones, and those of round thousands but not of tens."""
    zeros = len(str(digits)) - len(str(digits).rstrip("0"))
    return 10 ** (zeros if zeros - decimals >= 2 else min(zeros, decimals))


def _off_by_little(core: int, rng: random.Random) -> int:
    return core + rng.choice((-2, -1, 1, 2))


def _off_by_ten(core: int, rng: random.Random) -> int:
    return core + rng.choice((-10, 10)) if core >= 20 else _off_by_little(core, rng)


def _other_digit(core: int, rng: random.Random) -> int:
    text = str(core)
    position = rng.randrange(len(text))
    digit = rng.choice("0123456789" if position else "123456789")
    return int(text[:position] + digit + text[position + 1 :])


def _transposed(core: int, rng: random.Random) -> int:
    text = str(core)
    if len(text) < 2:
        return _off_by_little(core, rng)
    position = rng.randrange(len(text) - 1)
    swapped = text[:position] + text[position + 1] + text[position] + text[position + 2 :]
    return int(swapped) if swapped[0] != "0" else core


_SLIPS: tuple[Callable[[int, random.Random], int], ...] = (_off_by_little, _off_by_ten, _other_digit, _transposed)
