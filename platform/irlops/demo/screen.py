"""Everything the demo prints: a headline for each stage, one live line under it, what came out, and the end.

On a terminal the live line is drawn over itself; elsewhere a line is printed now and then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Column, Table
from rich.text import Text

from irlops.cli.ask import print_answer
from irlops.cli.gateway_client import Answer
from irlops.contracts.evaluation import Estimate
from irlops.demo.results import SELECTORS, TableRow, half_width, percent

_SPARSE_S = 15.0
"""Seconds between lines where nobody sees them being drawn."""
_INDENT = "      "
_TITLES = {"random": "random", "reward": "reward", "majority": "majority", "weighted_majority": "weighted majority"}


class Screen:
    """Made by the command; told by the stages what happens."""

    def __init__(self, console: Console, now_s: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self.now_s = now_s
        self._started = now_s()

    def header(self, text: str, facts: str) -> None:
        self.console.print(f"[bold]{text}[/bold]", soft_wrap=True)
        self.console.print(facts, style="dim", markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, place: str, title: str, what: str) -> Iterator[StageView]:
        """Headline now, live line until the block ends; ``view.done(...)`` says what came out."""
        head = Text.assemble((f"\n{place} ", "cyan"), (title, "bold"), (f"  {what}", "dim"))
        self.console.print(head, soft_wrap=True)
        columns = (
            TextColumn(_INDENT[:-2]),
            SpinnerColumn(),
            _Clock(),
            _Bar(bar_width=16),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
        )
        live = self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=not live) as progress:
            yield StageView(self, progress, live=live)

    def line(self, text: str, style: str | None = None) -> None:
        """One line under the headline of the stage."""
        self.console.print(f"{_INDENT}{text}", style=style, markup=False, soft_wrap=True)

    def example(self, rows: Mapping[str, str]) -> None:
        """Labelled texts of several lines."""
        self.console.print(Padding(_facts(rows), (0, 0, 0, len(_INDENT))))

    def stopping(self) -> None:
        self.console.print("Stopping what still runs …", style="yellow")

    def answer(self, answer: Answer, gold: str, *, correct: bool) -> None:
        """The chosen solution with its tokens coloured, who voted for what, and whether it is right."""
        self.console.print()
        print_answer(answer, self.console)
        verdict = f"right: the expert's answer is {gold}" if correct else f"wrong: the expert's answer is {gold}"
        self.console.print(f"\n{'✓' if correct else '✗'} {verdict}", style="green" if correct else "red", markup=False)

    def table(self, rows: Sequence[TableRow], num_problems: int, num_samples: int) -> None:
        self.console.print()
        self.console.print(_results_table(rows, num_problems, num_samples))

    def files(self, rows: Mapping[str, str]) -> None:
        """Names and where to find them."""
        self.console.print()
        self.console.print(_facts(rows))

    def note(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    @property
    def elapsed_s(self) -> float:
        return self.now_s() - self._started


class _Clock(ProgressColumn):
    """``1:32`` since the stage began."""

    def render(self, task: Task) -> Text:
        return Text(clock(task.elapsed or 0), style="progress.elapsed")


class _Bar(BarColumn):
    """A bar only where there is something to count."""

    def render(self, task: Task) -> Any:
        return super().render(task) if task.total else Text("")


class StageView:
    """The live line of one stage."""

    def __init__(self, screen: Screen, progress: Progress, *, live: bool) -> None:
        self._screen, self._progress, self._live = screen, progress, live
        self._task = progress.add_task("starting", total=None)
        self._now_s = screen.now_s
        self._started = self._said_at = self._now_s()
        self._first: tuple[float, int] | None = None
        self._said = ""

    def update(self, text: str, done: int = 0, total: int | None = None) -> None:
        """What happens now, and how far it is."""
        left = self._left(done, total)
        said = "  ".join(filter(None, (f"{done}/{total}" if total else "", left, text)))
        self._progress.update(self._task, description=said, completed=done, total=total or None)
        if not self._live and text:
            self._say_now_and_then(said)

    def _say_now_and_then(self, said: str) -> None:
        now = self._now_s()
        if said != self._said and now - self._said_at >= _SPARSE_S:
            self._said, self._said_at = said, now
            self._screen.line(f"{clock(now - self._started)}  {said}")

    def warn(self, text: str) -> None:
        self._screen.line(f"! {text}", style="yellow")

    def done(self, text: str) -> None:
        """What came out of the stage."""
        took = f"{self._now_s() - self._started:.0f} s"
        self._progress.stop()  # takes the live line away
        self._screen.line(f"✓ {text}  ({took})" if text else f"✓ {took}", style="green")

    def _left(self, done: int, total: int | None) -> str:
        """From the pace since the first sign of progress: what comes before it is loading."""
        if not total or not done or done >= total:
            return ""
        if self._first is None or done < self._first[1]:
            self._first = (self._now_s(), done)
        since, first = self._first
        if done - first < 3:
            return ""
        return f"(about {clock((self._now_s() - since) / (done - first) * (total - done))} left)"


def clock(seconds: float) -> str:
    """``92`` -> ``1:32``."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def results_title(num_problems: int, num_samples: int) -> str:
    return f"Right answers in %, {num_problems} test questions never trained on, {num_samples} samples each"


def _results_table(rows: Sequence[TableRow], num_problems: int, num_samples: int) -> Table:

    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        title=results_title(num_problems, num_samples),
        title_justify="left",
        title_style="bold",
        caption="± is half of a 95 % interval, in points. AUROC: how well the critic tells right from wrong (0.5 is chance).",
        caption_justify="left",
    )
    table.add_column("policy")
    table.add_column("pass@1", justify="right")
    for name in SELECTORS:
        table.add_column(f"{_TITLES[name]}@{num_samples}", justify="right")
    table.add_column("AUROC", justify="right")
    for row in rows:
        cells = [_estimate(row.pass_at_1), *(_estimate(row.selected[name]) for name in SELECTORS)]
        table.add_row(row.title, *cells, "-" if row.auroc is None else f"{row.auroc:.3f}")
    return table


def _estimate(estimate: Estimate) -> str:
    return f"{percent(estimate.mean).removesuffix(' %')} {half_width(estimate)}".strip()


def _facts(rows: Mapping[str, str]) -> Table:

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def shown_path(path: Path) -> str:
    """Relative to where the user is, when it lies below."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
