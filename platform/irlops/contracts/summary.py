"""summary.json: what ``irlops demo`` leaves of one run of the whole loop.

Made by ``irlops.demo``; read by people, by tests, and by whoever compares seeds.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from irlops.contracts.evaluation import Evaluation
from irlops.contracts.pair import Pair
from irlops.contracts.rerank import RerankResult

SummaryRow = Literal["untrained", "sft", "airl"]
SUMMARY_ROWS: tuple[SummaryRow, ...] = ("untrained", "sft", "airl")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, populate_by_name=True)


class StageTime(_Record):
    """How long one stage took. Example: ``StageTime(name="airl", wall_s=151.8)``."""

    name: str
    wall_s: float


class SummaryUrls(_Record):
    """Where the servers listened; they still do only while ``irlops demo --keep`` runs."""

    gateway: str
    mlflow: str


class DemoAnswer(_Record):
    """One test question, asked of the gateway."""

    question: str
    text: str
    """The solution that was chosen."""
    correct: bool
    """Its final answer agrees with the expert's."""
    rerank: RerankResult


class Summary(_Record):
    """summary.json."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    seed: int
    wall_s: float
    """From the start of the command to the end of the last stage."""
    peak_rss_mib: int
    """Most memory that the command and all its processes held at one moment (looked at once a second)."""
    stages: list[StageTime]
    pair: Pair
    urls: SummaryUrls
    evaluations: dict[SummaryRow, Evaluation]
    """Each row's evaluation.json; all three are judged by the pair's critic on the same problems."""
    answer: DemoAnswer

    def to_json(self) -> str:
        """As summary.json holds it."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"
