"""Token rewards of a solution as one number."""

from __future__ import annotations

import math
from collections.abc import Sequence


def aggregate(token_rewards: Sequence[float], aggregation: str = "mean", gamma: float = 0.9) -> float:
    """One number for a solution.

    Args:
        token_rewards: one per solution token, in order; at least one.
        aggregation: mean | min | product | last | discounted. ``product`` takes each reward as the log-odds that its
            token is right, multiplies the probabilities and gives the log-odds that all are. ``discounted`` weighs a
            token by gamma to the power of its distance from the end, normalised, so late tokens count most.
    Raises:
        ValueError: no tokens, or an unknown aggregation.

    Example:
        >>> aggregate([1.0, 2.0, 3.0], "discounted", 0.5)
        2.4285714285714284
    """
    if not token_rewards:
        raise ValueError("A solution without tokens has no reward; leave it out before aggregating.")
    match aggregation:
        case "mean":
            return sum(token_rewards) / len(token_rewards)
        case "min":
            return min(token_rewards)
        case "product":
            return _log_odds_of_all(token_rewards)
        case "last":
            return token_rewards[-1]
        case "discounted":
            total = weight_sum = 0.0
            weight = 1.0
            for reward in reversed(token_rewards):
                total += weight * reward
                weight_sum += weight
                weight *= gamma
            return total / weight_sum
        case _:
            raise ValueError(f"Unknown aggregation {aggregation!r}: choose mean, min, product, last or discounted.")


def _log_odds_of_all(rewards: Sequence[float]) -> float:
    """log(p / (1 - p)) of p = product of sigmoid(reward), without overflow; of one reward it is that reward."""
    surprise = sum(max(-reward, 0.0) + math.log1p(math.exp(-abs(reward))) for reward in rewards)  # -log p
    surprise = max(surprise, 1e-300)  # rewards above 700 leave nothing of it
    return -surprise - math.log(-math.expm1(-surprise))
