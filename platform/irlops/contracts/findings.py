"""What ``irlops doctor`` finds: one line per thing that training or serving needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "optional", "missing"]
"""``optional`` is absent, and something can't be done without it; ``missing`` is needed for the demo or the cluster."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. Made by checks; consumed by ``irlops doctor``.

    Example: ``Finding("machine", "memory", "ok", "24 GiB")``.
    """

    area: str
    name: str
    status: Status
    found: str
    """What is there, in a few words."""
    fix: str | None = None
    """The command, or the sentence, that mends it."""
