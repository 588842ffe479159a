"""Token rewards as colours, and without colour."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from irlops.cli.token_colours import colour_scale, render_tokens, reward_colour
from irlops.contracts.rerank import TokenReward


def tokens(*parts: tuple[str, float]) -> list[TokenReward]:
    made, start = [], 0
    for text, reward in parts:
        made.append(TokenReward(text=text, start=start, end=start + len(text), reward=reward, discounted_return=0.0))
        start += len(text)
    return made


def shown(console: Console, *parts: tuple[str, float]) -> str:
    console.print(render_tokens(tokens(*parts), console), end="")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("reward", "colour"),
    [(0.0, (247, 247, 247)), (2.0, (5, 113, 176)), (-2.0, (202, 0, 32)), (9.0, (5, 113, 176)), (-1.0, (224, 124, 140))],
    ids=["neutral is white", "full blue", "full red", "beyond the scale", "half red"],
)
def test_rewards_go_from_red_over_white_to_blue(reward: float, colour: tuple[int, int, int]) -> None:
    # Half red: 247 + (202 - 247) / 2 = 224.5, 247 / 2 = 123.5 and 247 + (32 - 247) / 2 = 139.5, rounded to even.
    assert reward_colour(reward, scale=2.0) == colour


def test_one_outlier_does_not_bleach_the_others() -> None:
    assert colour_scale([0.0] * 10 + [1.0] * 89 + [100.0]) == 1.0


def test_small_rewards_are_not_blown_up_to_full_colour() -> None:
    assert colour_scale([0.01, -0.02]) == 0.5


def test_a_terminal_gets_colours_and_the_text_unchanged() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", no_color=False, width=80)
    written = shown(console, ("2+2", 1.0), ("=5", -1.0))
    assert "\x1b[37;48;2;5;113;176m2+2" in written  # white letters on blue
    assert "48;2;202;0;32m=5" in written


@pytest.mark.parametrize("options", [{"no_color": True, "force_terminal": True}, {}], ids=["NO_COLOR", "a pipe"])
def test_without_colour_doubtful_tokens_are_bracketed(options: dict) -> None:
    console = Console(file=io.StringIO(), width=80, **options)
    assert shown(console, ("2+2", 1.0), (" =", -0.1), (" 5\n", -1.0)) == "2+2 = [5 -1.0]\n"


def test_line_breaks_are_not_painted() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", no_color=False, width=80)
    lines = shown(console, ("a\n", 1.0), ("b", 1.0)).split("\n")
    assert lines[0].endswith("\x1b[0m")
    assert lines[1].count("\x1b[0m") == 1
