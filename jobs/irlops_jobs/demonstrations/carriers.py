"""What leaves the loaders: demonstrations, and the three splits of one data set.

Nothing here reads a file; ``gsm8k`` and ``arithmetic`` make these, every job consumes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from irlops_jobs.demonstrations.digests import digest_demonstrations, digest_of_digests


@dataclass(frozen=True)
class Demonstration:
    """One question with an expert's solution.

    Made by a loader, consumed by the warm start, the critic's positives and the perturbations.

    Example:
        ``Demonstration("Ava has 2, buys 3. Now?", "now: 2+3=<<2+3=5>>5 eggs\\n#### 5", "5", "arithmetic/train:0")``
    """

    question: str
    solution: str
    """The expert's text, ending in ``#### answer``."""
    answer: str
    """The final answer by the data set's own rule, without thousands separators."""
    source: str
    """Where the row comes from, for messages: ``gsm8k/train:17`` counts rows from 0."""


@dataclass(frozen=True)
class DemonstrationSet:
    """The splits of one data set. ``test`` is never tuned on; ``dev`` is held out of the training rows.

    Example:
        ``DemonstrationSet.of("gsm8k", train=rows[:7000], dev=rows[7000:], test=test_rows)``
    """

    name: str
    train: tuple[Demonstration, ...]
    dev: tuple[Demonstration, ...]
    test: tuple[Demonstration, ...]
    num_skipped: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Malformed rows left out, by reason; empty when every row was sound."""
    has_one_solution_each: bool = False
    """Whether a question has one right solution to the letter, so that whatever departs from it is an error."""

    @classmethod
    def of(
        cls,
        name: str,
        *,
        train: Iterable[Demonstration],
        dev: Iterable[Demonstration],
        test: Iterable[Demonstration],
        num_skipped: Mapping[str, int] | None = None,
        has_one_solution_each: bool = False,
    ) -> DemonstrationSet:
        """A set from any iterables."""
        skipped = MappingProxyType(dict(num_skipped or {}))
        return cls(name, tuple(train), tuple(dev), tuple(test), skipped, has_one_solution_each)

    @cached_property
    def digests(self) -> dict[str, str]:
        """sha256 of each split's rows, in order; see ``digests`` for what counts."""
        return {
            "train": digest_demonstrations(self.train),
            "dev": digest_demonstrations(self.dev),
            "test": digest_demonstrations(self.test),
        }

    @property
    def digest(self) -> str:
        """One sha256 for the whole set: what a pair is tagged with."""
        return digest_of_digests(self.digests)
