"""Token rewards of a solution as one number."""

from __future__ import annotations

from collections.abc import Sequence


def aggregate(token_rewards: Sequence[float], aggregation: str = "mean", gamma: float = 0.9) -> float:
    """One number for a solution.

    Args:
        token_rewards: one per solution token, in order; at least one.
        aggregation: mean | min | last | discounted. ``discounted`` weighs a token by gamma to the power of its
            distance from the end, normalised, so late tokens count most.
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
            raise ValueError(f"Unknown aggregation {aggregation!r}: choose mean, min, last or discounted.")
