"""What an evaluation says: evaluation.json, and calibration.json beside a critic."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Aggregation = Literal["mean", "min", "last", "discounted"]


class Calibration(BaseModel):
    """How a critic's token rewards become a chance of being right; fitted on held-out problems.

    Example:
        ``Calibration(aggregation="last", temperature=0.8, bias=0.3).probability(1.1)`` is sigmoid(1) = 0.73.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    schema_version: Literal[1] = Field(default=1, alias="schema")
    aggregation: Aggregation = "mean"
    gamma: float = Field(default=0.9, ge=0, le=1)
    temperature: float = Field(default=1.0, gt=0)
    bias: float = 0.0

    def probability(self, reward: float) -> float:
        """sigmoid((reward - bias) / temperature), without overflow."""
        logit = (reward - self.bias) / self.temperature
        if logit >= 0:
            return 1 / (1 + math.exp(-logit))
        return math.exp(logit) / (1 + math.exp(logit))
