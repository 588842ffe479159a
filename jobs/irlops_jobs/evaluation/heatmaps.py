"""Solutions with every token coloured by its reward: a right one, a wrong one, and an expert's with one known error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from transformers import PreTrainedTokenizerBase

from irlops_jobs.evaluation.carriers import CorruptedTrace, ScoredProblem
from irlops_jobs.evaluation.first_error import guess_first_error
from irlops_jobs.evaluation.own_errors import first_difference
from irlops_jobs.evaluation.style import drawn, say_nothing
from irlops_jobs.evaluation.table import Floats
from irlops_jobs.models.prompts import decode_solution

_FEWEST_COLUMNS, _MOST_COLUMNS = 70, 86
_LINE_POINTS = 826.0
"""Font size times columns: one character is one column wide."""
_ROW_INCHES_PER_POINT = 0.031
_HEAD_INCHES = 0.55
_LONGEST = 320
"""Tokens drawn of one solution; what comes after is left out, and said so."""
_WHITE_TEXT_BEYOND = 0.72
"""Of the colour scale's reach to either side; lighter cells carry black text."""


@dataclass(frozen=True)
class Passage:
    """One solution to draw.

    Example:
        ``Passage("wrong", ("7", "+", "2", "=", "8"), (1.2, 0.9, 1.1, 0.8, -3.0), known_error=(4, 5), guess=4)``
    """

    title: str
    tokens: tuple[str, ...]
    rewards: tuple[float, ...]
    known_error: tuple[int, int] | None = None
    """Token positions, the end exclusive; framed."""
    guess: int | None = None
    """Token that the rule takes for the first error; underlined."""


def pick_passages(
    problems: Sequence[ScoredProblem],
    right_PN: Sequence[Sequence[bool]],
    corrupted: Sequence[CorruptedTrace],
    tokenizer: PreTrainedTokenizerBase,
    rule: str,
    below: float | None = None,
) -> list[Passage]:
    """The first problem that has both: its first right and its first wrong sample; and the first corrupted solution.

    Nothing is picked for how it looks. A missing kind is left out.
    """
    passages: list[Passage] = []
    for problem, right_N in zip(problems, right_PN, strict=True):
        right = next((s for s, good in zip(problem.samples, right_N, strict=True) if good and s.token_ids), None)
        wrong = next(
            (s for s, good in zip(problem.samples, right_N, strict=True) if not good and s.answer and s.token_ids), None
        )
        if right is None or wrong is None:
            continue
        place = first_difference(wrong.token_ids, problem.only_solution_ids)
        for sample, said, known in ((right, "right", None), (wrong, "wrong", place)):
            tokens = _spell(tokenizer, sample.token_ids)
            title = f"Policy's solution, {said}: answers {sample.answer}, expert {problem.gold}"
            title += "" if known is None else "; its first error is framed"
            span = None if known is None else (known, known + 1)
            passages.append(Passage(title, tokens, tuple(sample.token_rewards), span))
        break
    for trace in (one for one in corrupted if one.token_ids):
        span = (trace.first_error_start, trace.first_error_end)
        guess = guess_first_error(trace.token_rewards, rule, below)
        title = "Expert's solution with an error put in (framed); the critic's guess is underlined"
        passages.append(Passage(title, _spell(tokenizer, trace.token_ids), tuple(trace.token_rewards), span, guess))
        break
    return passages


def token_heatmaps(passages: Sequence[Passage], *, centre: float) -> Figure:
    """Draw passages under each other, in one colour scale.

    Args:
        centre: Reward that stays white: the mean over the tokens of all samples, as published (arXiv 2510.01857).
    """
    layouts = [_place(passage.tokens[:_LONGEST]) for passage in passages]
    widest = max((column + len(shown) for places in layouts for column, _, shown in places), default=0)
    columns = max(widest, _FEWEST_COLUMNS)
    row_inches = _ROW_INCHES_PER_POINT * _LINE_POINTS / columns
    heights = [_HEAD_INCHES + row_inches * (rows[-1][1] + 1 if rows else 1) for rows in layouts]
    with drawn(sum(heights) + 0.7, nrows=max(len(passages), 1), height_ratios=heights or [1], squeeze=False) as (
        figure,
        grid,
    ):
        if not passages:
            say_nothing(grid[0, 0], "no solution to show")
            return figure
        scale = _scale(passages, centre)
        for axes, passage, places in zip(grid[:, 0], passages, layouts, strict=True):
            _draw_passage(axes, passage, places, scale, columns)
        bar = figure.colorbar(
            scale, ax=list(grid[:, 0]), orientation="horizontal", fraction=0.03, pad=0.02, aspect=60, shrink=0.7
        )
        bar.set_label("reward of a token: blue reads like an expert, red does not")
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue] - the stubs know no outline
    return figure


def _scale(passages: Sequence[Passage], centre: float) -> ScalarMappable:
    values = np.concatenate([np.asarray(p.rewards[:_LONGEST], np.float64) for p in passages])
    reach = float(np.abs(values - centre).max()) or 1.0
    return ScalarMappable(TwoSlopeNorm(vcenter=centre, vmin=centre - reach, vmax=centre + reach), "RdBu")


def _spell(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> tuple[str, ...]:
    return tuple(decode_solution(tokenizer, [token]) or "\u25a0" for token in token_ids)


def _place(tokens: Sequence[str]) -> list[tuple[int, int, str]]:
    """Column, row and shown text of each token; lines break where the solution breaks them, and at the edge."""
    places: list[tuple[int, int, str]] = []
    column = row = 0
    for token in tokens:
        shown = token.replace("\n", "\u21b5").replace("\t", " ") or " "
        if column and column + len(shown) > _MOST_COLUMNS:
            column, row = 0, row + 1
        places.append((column, row, shown[:_MOST_COLUMNS]))
        column += len(shown)
        if "\n" in token:
            column, row = 0, row + 1
    return places


def _draw_passage(
    axes: Axes, passage: Passage, places: Sequence[tuple[int, int, str]], scale: ScalarMappable, columns: int
) -> None:
    values = np.asarray(passage.rewards[: len(places)], np.float64)
    shades: Floats = scale.norm(values)  # pyright: ignore[reportAssignmentType] - an array gives an array
    for index, (column, row, shown) in enumerate(places):
        colour = scale.to_rgba(values[index])
        axes.add_patch(Rectangle((column, row), len(shown), 0.9, facecolor=colour, edgecolor="white", linewidth=0.6))
        dark = abs(shades[index] - 0.5) * 2 > _WHITE_TEXT_BEYOND
        axes.text(
            column + len(shown) / 2, row + 0.47, shown.strip(), ha="center", va="center", family="DejaVu Sans Mono",
            fontsize=_LINE_POINTS / columns, color="white" if dark else "black", parse_math=False,
        )  # fmt: skip
        if passage.known_error and passage.known_error[0] <= index < passage.known_error[1]:
            axes.add_patch(
                Rectangle((column, row), len(shown), 0.9, fill=False, edgecolor="black", linewidth=2.2, zorder=3)
            )
        if index == passage.guess:
            axes.plot([column, column + len(shown)], [row + 1.0, row + 1.0], color="black", linewidth=2.2, zorder=4)
    left_out = len(passage.tokens) - len(places)
    axes.set_title(passage.title + (f" ({left_out} more tokens)" if left_out else ""), fontsize=10.5)
    axes.set_xlim(0, columns)
    axes.set_ylim((places[-1][1] if places else 0) + 1.15, -0.1)
    axes.axis("off")
