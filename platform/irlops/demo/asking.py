"""The demo's last question: one on which the candidates disagree, for otherwise there is nothing to choose.

Which questions come, and in which order, is fixed before anything was measured; whether one is shown depends on whether
its candidates agree with each other, never on whether they are right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from irlops.cli.gateway_client import Answer

MAX_QUESTIONS = 8
"""About a second each."""


@dataclass(frozen=True)
class Asked:
    """The question that the demo shows, and what came back.

    Made by ``ask_until_disputed``; consumed by the demo's last stage.
    Example: ``Asked(row={"question": "…", "answer": "26"}, answer=Answer(…), num_agreed=2)``
    """

    row: Mapping[str, str]
    answer: Answer
    num_agreed: int
    """Questions asked before, on which all candidates gave one answer."""


def ask_until_disputed(rows: Sequence[Mapping[str, str]], seed: int, ask: Callable[[str], Answer]) -> Asked:
    """Ask longer test problems in turn until candidates disagree; the first one when they never do.

    Args:
        rows: Test problems with question, solution and answer; at least one.
        seed: Which of the longer ones comes first.
    """
    agreed: list[Asked] = []
    for row in _in_turn(rows, seed)[:MAX_QUESTIONS]:
        asked = Asked(row, ask(row["question"]), num_agreed=len(agreed))
        if _is_disputed(asked.answer):
            return asked
        agreed.append(asked)
    return agreed[0]


def _in_turn(rows: Sequence[Mapping[str, str]], seed: int) -> list[Mapping[str, str]]:
    """From one of the longest quarter on: on short problems all candidates agree."""
    longest_first = sorted(rows, key=lambda row: -len(row["solution"]))
    start = seed % max(1, len(rows) // 4)
    return longest_first[start:] + longest_first[:start]


def _is_disputed(answer: Answer) -> bool:
    return answer.rerank is not None and len(answer.rerank.answers) > 1
