"""Which answers are one, within a time limit.

Numbers are compared here. Formulas are compared by math-verify, which has no time limit of its own off the main thread
and can be led into ``9^9^9^9`` by whoever writes the prompt: that runs in one process apart, which is ended when late.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from decimal import Decimal, InvalidOperation

from irlops.answers import answers_agree, normalise_answer
from irlops.selection import Agree
from irlops_serving.gateway.logs import logger

COMPARING_LIMIT_S = 2.0
# The first comparison also starts a process and imports a computer algebra system.
FIRST_COMPARING_LIMIT_S = 20.0


def same_text(one: str | None, other: str | None) -> bool:
    """Whether both are answers and, normalised, the same text: what is left when there is no time."""
    return one is not None and other is not None and normalise_answer(one) == normalise_answer(other) != ""


def classes_of(answers: Sequence[str]) -> list[int]:
    """For each answer the place of the first that agrees with it. Runs in the process apart."""
    firsts: list[int] = []
    classes = []
    for place, answer in enumerate(answers):
        first = next((known for known in firsts if answers_agree(answers[known], answer)), None)
        if first is None:
            first = place
            firsts.append(place)
        classes.append(first)
    return classes


def _is_number(text: str) -> bool:
    try:
        return Decimal(text).is_finite()
    except InvalidOperation:
        return False


class BoundedAgreement:
    """Makes the agreement that selection uses for one request's answers."""

    def __init__(
        self,
        limit_s: float = COMPARING_LIMIT_S,
        first_limit_s: float = FIRST_COMPARING_LIMIT_S,
        compare: Callable[[Sequence[str]], list[int]] = classes_of,
    ) -> None:
        self._limit_s, self._first_limit_s, self._compare_answers = limit_s, first_limit_s, compare
        self._workers: ProcessPoolExecutor | None = None
        self._turn = asyncio.Lock()

    async def among(self, answers: Sequence[str | None], limit_s: float | None = None) -> Agree:
        """An agreement for exactly these answers; never raises, at worst formulas are told apart by their text.

        Args:
            answers: those of all candidates.
            limit_s: what is left of the request's own time; None: only the limit of a comparison counts.
        """
        distinct = sorted({normalise_answer(answer) for answer in answers if answer is not None})
        if len(distinct) < 2 or all(map(_is_number, distinct)):
            return answers_agree
        try:
            async with asyncio.timeout(limit_s), self._turn:
                classes = await self._compare(distinct)
        except TimeoutError:
            classes = None
        if classes is None:
            return same_text
        known = dict(zip(distinct, classes, strict=True))

        def agree(one: str | None, other: str | None) -> bool:
            if one is None or other is None:
                return False
            return known[normalise_answer(one)] == known[normalise_answer(other)] and normalise_answer(one) != ""

        return agree

    async def _compare(self, distinct: Sequence[str]) -> list[int] | None:
        limit_s, loop = self._limit_s, asyncio.get_running_loop()
        if self._workers is None:
            self._workers = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
            limit_s += self._first_limit_s
        try:
            async with asyncio.timeout(limit_s):
                return await loop.run_in_executor(self._workers, self._compare_answers, distinct)
        except (TimeoutError, BrokenProcessPool) as error:
            logger.warning("answers_not_compared", reason=repr(error), num_answers=len(distinct))
            self.close()
            return None

    def close(self) -> None:
        """End the process apart, also in the middle of a comparison."""
        if self._workers is None:
            return
        for process in list((self._workers._processes or {}).values()):
            process.kill()
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._workers = None
