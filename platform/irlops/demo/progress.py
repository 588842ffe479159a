"""What workers print, as a fraction done and a few words.

    line of worker-0 -> JobProgress.read -> done, total, text

The workers' own lines are the only source: a job that runs on a cluster is followed in the same way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_STEPS = re.compile(r"steps (\d+) to (\d+)$")
_STEP = re.compile(r"step\s+(\d+)\s+loss (\S+)")
_ROUND = re.compile(r"round\s+(\d+)/(\d+)\s+(.*)")
_FIELD = re.compile(r"([a-z][a-z ]*?) (-?\d+(?:\.\d+)?)(?:\s{2,}|$)")
_WARM_UP = re.compile(r"critic warm-up\s+(\d+)/(\d+)\s+expert token preferred (\S+)")
_SOLVES = re.compile(r"(\S+) solves (\d+ test problems), (\d+ times each)")
_SAMPLED = re.compile(r"sampled (\d+) of (\d+) problems")
_FIRST_ERRORS = re.compile(r"looking for the known first error of (\d+) corrupted solutions")
_CALIBRATES = re.compile(r"calibrating on (\d+) dev problems")


@dataclass
class JobProgress:
    """How far one job is, read from its lines.

    Example: after ``"round    3/40  accuracy 0.412  critic 0.610"`` it has ``done=3, total=40`` and says
    ``"right 41 %"``.
    """

    total: int | None = None
    """Steps, rounds or parts; None until a line tells."""
    done: int = 0
    text: str = ""
    warnings: list[str] = field(default_factory=list[str])
    """Lines that nobody should miss; the reader takes them out."""

    def read(self, line: str) -> bool:
        """Take in one line; True when it changed something."""
        if line.startswith("warning:"):
            self.warnings.append(line.removeprefix("warning:").strip())
            return True
        for pattern, reader in (
            (_STEPS, self._steps),
            (_STEP, self._step),
            (_WARM_UP, self._warm_up),
            (_ROUND, self._round),
            (_SOLVES, self._solves),
            (_CALIBRATES, self._calibrates),
            (_SAMPLED, self._sampled),
            (_FIRST_ERRORS, self._first_errors),
        ):
            if match := pattern.search(line):
                reader(match)
                return True
        return False

    def _steps(self, match: re.Match[str]) -> None:
        self.done, self.total = int(match[1]), int(match[2])

    def _step(self, match: re.Match[str]) -> None:
        self.done, self.text = int(match[1]), f"loss {match[2]}"

    def _warm_up(self, match: re.Match[str]) -> None:
        self.done, self.total = int(match[1]), int(match[2])
        self.text = f"critic warms up: prefers the expert's token {float(match[3]):.0%} of the time"

    def _round(self, match: re.Match[str]) -> None:
        self.done, self.total = int(match[1]), int(match[2])
        seen = {name: float(value) for name, value in _FIELD.findall(match[3])}
        parts: list[str] = []
        if "accuracy" in seen:
            parts.append(f"right {seen['accuracy']:.0%}")
        if "reward right" in seen and "wrong" in seen:
            parts.append(f"reward of right {seen['reward right']:+.2f}, of wrong {seen['wrong']:+.2f}")
        if "kl" not in seen:
            parts.append("critic warms up")
        if "dev accuracy" in seen:
            parts.append(f"held out: right {seen['dev accuracy']:.0%}")
        self.text = ", ".join(parts)

    def _calibrates(self, match: re.Match[str]) -> None:
        self.text = f"calibrating the critic on {match[1]} held-out problems"

    def _sampled(self, match: re.Match[str]) -> None:
        """Of the first worker's share, which is as good as the others'."""
        self.text = f"sampling: {int(match[1]) / int(match[2]):.0%} of the problems"

    def _first_errors(self, match: re.Match[str]) -> None:
        self.text = f"looking for the first error of {match[1]} corrupted solutions"

    def _solves(self, match: re.Match[str]) -> None:
        self.done += 1
        self.text = f"{match[1]} solves {match[2]}, {match[3]}"
