"""How pictures look: readable at 800 pixels, in colours that colour-blind readers tell apart (Okabe and Ito, 2008)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from irlops.errors import StorageError

RIGHT = "#0072B2"
WRONG = "#D55E00"
CRITIC = "#009E73"
NEUTRAL = "#6E6E6E"
SELECTOR_COLOURS = {
    "weighted_majority": CRITIC,
    "reward": RIGHT,
    "majority": WRONG,
    "random": NEUTRAL,
    "longest": "#CC79A7",
    "logprob": "#A6761D",
}
SELECTOR_TITLES = {
    "weighted_majority": "weighted majority",
    "reward": "reward",
    "majority": "majority",
    "random": "random (exact)",
    "longest": "longest",
    "logprob": "log-probability",
}

_WIDTH_INCHES = 8.0
_DOTS_PER_INCH = 200
_SETTINGS: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.0,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
}


@contextmanager
def drawn(height_inches: float, **subplots: Any) -> Iterator[tuple[Figure, Any]]:
    """A figure and its axes in our style; nothing global changes."""
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")
        yield figure, figure.subplots(**subplots)


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG of 1600 pixels in width.

    Raises:
        StorageError: it can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Drawn under the same settings as made: text is laid out only now.
        with matplotlib.rc_context(_SETTINGS):
            figure.savefig(path, dpi=_DOTS_PER_INCH, metadata={"Software": None})
    except OSError as error:
        raise StorageError(f"{path} can't be written: {error}. Free space and start again.") from error
    return path


def say_nothing(axes: Axes, reason: str) -> None:
    """In place of a picture that these samples can't give."""
    axes.text(0.5, 0.5, reason, ha="center", va="center", transform=axes.transAxes, color=NEUTRAL, wrap=True)
    axes.axis("off")
