"""What an evaluation says: evaluation.json, and calibration.json beside a critic.

A number that is not defined (an AUROC when every sample is right) is null, never NaN: gates refuse null.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Aggregation = Literal["mean", "min", "product", "last", "discounted"]
AGGREGATIONS: tuple[Aggregation, ...] = ("mean", "min", "product", "last", "discounted")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, populate_by_name=True)


class Calibration(_Record):
    """How a critic's token rewards become a chance of being right; fitted on held-out problems.

    Example:
        ``Calibration(aggregation="last", temperature=0.8, bias=0.3).probability(1.1)`` is sigmoid(1) = 0.73.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    aggregation: Aggregation = "mean"
    gamma: float = Field(default=0.9, ge=0, le=1)
    temperature: float = Field(default=1.0, gt=0)
    bias: float = 0.0
    stop_confidence: float = Field(default=0.95, gt=0, lt=1)
    """How sure adaptive sampling has to be of the leading answer before it stops."""

    def probability(self, reward: float) -> float:
        """sigmoid((reward - bias) / temperature), without overflow."""
        logit = (reward - self.bias) / self.temperature
        if logit >= 0:
            return 1 / (1 + math.exp(-logit))
        return math.exp(logit) / (1 + math.exp(logit))


class Estimate(_Record):
    """A mean over problems with its bootstrap interval (percentile, over problems)."""

    mean: float | None
    """Null when it is not defined on these samples."""
    ci95: tuple[float, float] | None = None


class DatasetFacts(_Record):
    """What was evaluated on."""

    name: str
    split: str = "test"
    digest: str | None = None
    num_problems: int


class SampleCounts(_Record):
    """What the samples are like, and which of them some number had to leave out."""

    total: int
    without_answer: int
    """No final answer found: wrong, and never votes."""
    truncated: int
    empty: int
    """No token at all: no reward, so left out of every number about the critic."""
    without_answer_span: int
    """Left out of the answer-span numbers."""
    well_formatted: int


class CriticNumbers(_Record):
    """How well the critic's reward of a whole sample tells right from wrong, over all samples unless named otherwise."""

    auroc: float | None
    """Of the reward by the calibration's aggregation."""
    auroc_within_question: float | None
    """Part of (right, wrong) pairs of the same question in which the right one has the higher reward; ties count half."""
    auroc_answer_span: float | None
    """Of the mean reward over the final answer's tokens."""
    ece: float | None
    """Expected calibration error with the fitted temperature and bias, 0 to 1, 15 bins of equal width."""
    ece_before: float | None
    """The same with the raw reward as log-odds."""
    pearson_correctness: float | None
    """Of the calibrated chance of being right, as the others: log-odds have no bound, and a few samples that fall apart
    would decide the correlation alone."""
    pearson_format: float | None
    """Null when every sample is well formatted, or none is."""
    pearson_length: float | None
    pearson_correctness_raw: float | None = None
    """Of the reward as it comes from its tokens."""
    pearson_format_raw: float | None = None
    pearson_correctness_answer_span: float | None
    pearson_format_answer_span: float | None
    ci95: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Bootstrap intervals over problems, by the names above."""


class AggregationNumbers(_Record):
    """One way to make a sample's reward from its tokens', beside the one that the calibration chose."""

    auroc: float | None
    auroc_within_question: float | None
    reward_at_1: Estimate
    """Accuracy of the sample with the highest reward."""


class ReliabilityBin(_Record):
    """Samples whose calibrated chance of being right lies between ``lower`` and ``upper``."""

    lower: float
    upper: float
    num_samples: int
    predicted: float | None
    """Mean calibrated chance; null in an empty bin."""
    observed: float | None
    """Part of them that is right."""


class FirstError(_Record):
    """Localisation of a known first error, one guess a trace: in corrupted expert solutions, or in the policy's own samples."""

    hit_at_1: float | None
    """Part of traces whose guessed token is a wrong one of that error."""
    chance: float | None
    """The exact expectation for a token drawn at random."""
    num_traces: int
    rule: str
    """How token rewards become a guess; the same rule for every trace, chosen on traces of dev problems."""
    threshold: float | None = None
    """Of the rule ``first_below``, fitted on dev solutions."""
    ci95: tuple[float, float] | None = None
    logprob_hit_at_1: float | None
    """The policy's own log-probabilities as the score, by the rule below: the baseline to beat."""
    logprob_rule: str
    """The rule that suits log-probabilities best on dev solutions; ``by_rule`` has ``lowest``, as published."""
    logprob_threshold: float | None = None
    logprob_ci95: tuple[float, float] | None = None
    recovered_hit_at_1: float | None = None
    """The token's reward plus its log-probability under the policy as the score: the expert's log-probability at the
    discriminator's optimum, which AIRL calls f. Without the sum, a reward says how much more the expert would write a token
    than the policy would, not how much."""
    recovered_rule: str = "lowest"
    recovered_threshold: float | None = None
    recovered_ci95: tuple[float, float] | None = None
    num_excluded: int = 0
    """Traces whose error lies behind their last token."""
    by_rule: dict[str, dict[str, float]] = Field(default_factory=dict)
    """hit@1 of every rule, of ``reward``, ``logprob`` and ``recovered``."""


class SamplingPoint(_Record):
    """What some number of samples buys, mean over problems and over orders of the samples."""

    mean_samples: float
    accuracy: float
    ci95: tuple[float, float] | None = None
    confidence: float | None = None
    """Of the stopping rule; null where every problem gets the same number of samples."""


class StrictRule(_Record):
    """pass@1 when the answer must be the gold string to the letter, as published, beside the one that math-verify accepts."""

    pass_at_1: Estimate
    disagreements: int
    """Samples that one rule calls right and the other wrong."""


class RowNumbers(_Record):
    """The numbers of another policy's samples on the same problems, judged by the same critic."""

    pass_at_k: dict[int, Estimate]
    selectors: dict[str, dict[int, Estimate]]
    auroc: float | None = None
    """Of the pair's critic on these samples, which another policy wrote."""
    auroc_within_question: float | None = None


class Evaluation(_Record):
    """evaluation.json.

    Made by the evaluation job; read by gates, ``irlops pairs``, the operator, reports.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    row: str = "pair"
    pair: dict[str, Any] = Field(default_factory=dict)
    dataset: DatasetFacts
    samples_per_problem: int
    sampling: dict[str, Any] = Field(default_factory=dict)
    seed: int
    pass_at_k: dict[int, Estimate]
    """Unbiased (Chen et al., arXiv 2107.03374)."""
    selectors: dict[str, dict[int, Estimate]]
    """Accuracy of a selector's best k: any of them right. ``random`` is the exact expectation."""
    differences: dict[str, Estimate] = Field(default_factory=dict)
    """Paired over problems: ``reward-random``, ``weighted_majority-majority`` at k = 1; ``pass@1-<row>`` against other rows."""
    strict: StrictRule
    samples: SampleCounts
    critic: CriticNumbers
    by_aggregation: dict[Aggregation, AggregationNumbers]
    calibration: Calibration
    reliability: list[ReliabilityBin]
    first_error: FirstError | None = None
    """In corrupted expert solutions; null when none was corrupted, and in rows other than the pair's."""
    first_own_error: FirstError | None = None
    """In wrong samples of the pair's policy, one a problem; null where a question may be solved in many words, so that
    nobody knows where a sample went wrong (GSM8K), when no sample is wrong, and in rows other than the pair's."""
    adaptive: list[SamplingPoint]
    """The stopping rule at rising confidence."""
    fixed: list[SamplingPoint]
    """Weighted majority with the same number of samples for every problem."""
    untrained: RowNumbers | None = None
    """The policy before any training; null when it was not sampled."""
    transfer: dict[str, RowNumbers] = Field(default_factory=dict)
    """The pair's critic on other policies' samples, by row; empty in rows other than the pair's."""
    timings_s: dict[str, float] = Field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """As evaluation.json holds it."""
        return self.model_dump(mode="json", by_alias=True)
