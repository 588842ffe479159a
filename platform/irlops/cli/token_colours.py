"""Token rewards as text: red reads unlike an expert, white is neutral, blue reads like one.

Without colour (a pipe, NO_COLOR) the tokens that the critic doubts are put in brackets with their reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from irlops.contracts.rerank import TokenReward

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_RED, _WHITE, _BLUE = (202, 0, 32), (247, 247, 247), (5, 113, 176)
"""The ends and the middle of ColorBrewer's RdBu: also told apart by most who are colour-blind."""

_MIN_SPAN = 0.5
"""Rewards (logits) closer together than this are not blown up to full colours."""


def colour_scale(rewards: Sequence[float]) -> float:
    """The reward, up or down, that gets the full colour: the 95th percentile of magnitudes."""
    if not rewards:
        return _MIN_SPAN
    magnitudes = sorted(abs(reward) for reward in rewards)
    return max(magnitudes[round(0.95 * (len(magnitudes) - 1))], _MIN_SPAN)


def reward_colour(reward: float, scale: float) -> tuple[int, int, int]:
    """Red, green, blue (0-255) of a reward: -scale is red, 0 white, +scale blue; beyond that it stays."""
    share = min(abs(reward) / scale, 1.0)
    end = _BLUE if reward >= 0 else _RED
    red, green, blue = (round(middle + share * (tip - middle)) for middle, tip in zip(_WHITE, end, strict=True))
    return red, green, blue


def render_tokens(tokens: Sequence[TokenReward], console: Console) -> Text:
    """The solution as it was written, each token on the colour of its reward."""
    from rich.text import Text

    scale = colour_scale([token.reward for token in tokens])
    rendered = Text()
    for token in tokens:
        if console.color_system is None or console.no_color:
            rendered.append(_bracketed(token, scale))
        else:
            _append_coloured(rendered, token, scale)
    return rendered


def legend(tokens: Sequence[TokenReward], console: Console) -> Text:
    """What the colours mean, with their numbers."""
    from rich.text import Text

    scale = colour_scale([token.reward for token in tokens])
    if console.color_system is None or console.no_color:
        doubted = any(_is_doubted(token, scale) for token in tokens)
        return Text(f"[token reward]: below {-scale / 3:.1f}, unlike an expert" if doubted else "No token stands out.")
    text = Text()
    for step in range(-4, 5):
        text.append(f"{step * scale / 4:+5.1f} ", style=_style(step * scale / 4, scale))
    return text.append("  unlike an expert … like an expert", style="dim")


def _append_coloured(rendered: Text, token: TokenReward, scale: float) -> None:
    """Colour the letters, not the line breaks: a coloured break would paint to the end of the line."""
    for position, part in enumerate(token.text.split("\n")):
        if position:
            rendered.append("\n")
        rendered.append(part, style=_style(token.reward, scale))


def _bracketed(token: TokenReward, scale: float) -> str:
    text = token.text
    if not _is_doubted(token, scale):
        return text
    before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    return f"{before}[{text.strip()} {token.reward:+.1f}]{after}"


def _is_doubted(token: TokenReward, scale: float) -> bool:
    return token.reward <= -scale / 3 and bool(token.text.strip())


def _style(reward: float, scale: float) -> str:
    red, green, blue = reward_colour(reward, scale)
    is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140  # luma of BT.601
    return f"{'white' if is_dark else 'black'} on #{red:02x}{green:02x}{blue:02x}"
