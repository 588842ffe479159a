"""Noticing that adversarial training has gone wrong, early enough to keep the last pair that was well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from irlops.contracts.jobs import CollapseConfig


@dataclass(frozen=True)
class Verdict:
    """What a check on held-out questions says.

    Example:
        ``Verdict(is_healthy=False, should_roll_back=False, warnings=("critic AUROC 0.52 is below 0.60",))``
    """

    is_healthy: bool
    should_roll_back: bool
    warnings: tuple[str, ...] = ()


class CollapseGuard:
    """Judges checks; after ``patience`` unhealthy ones in a row, or when the last is one, it asks for the last healthy pair.

    The limits read what a collapse looks like before accuracy is gone: a critic that no longer sorts fresh samples,
    rewards that no longer differ within a question, samples that run out of tokens, a policy far from its warm start.
    """

    def __init__(self, config: CollapseConfig) -> None:
        self._config = config
        self._num_unhealthy = 0
        self._best_accuracy = 0.0
        self.last_reasons = ""

    def judge(self, metrics: Mapping[str, float], *, is_last: bool = False) -> Verdict:
        """Judge ``dev/...`` and ``policy/...`` metrics of one check; what is not among them is not judged.

        Args:
            is_last: no check follows that could show better; there is nothing to be patient for.
        """
        reasons = tuple(self._reasons(metrics))
        self._best_accuracy = max(self._best_accuracy, metrics.get("dev/accuracy", 0.0))
        self._num_unhealthy = self._num_unhealthy + 1 if reasons else 0
        self.last_reasons = "; ".join(reasons)
        patience = 1 if is_last else self._config.patience
        give_up = self._config.action == "rollback" and self._num_unhealthy >= patience
        return Verdict(not reasons, give_up, reasons)

    def _reasons(self, metrics: Mapping[str, float]) -> list[str]:
        config = self._config
        lowest_accuracy = self._best_accuracy - config.max_accuracy_drop
        rules = (
            ("dev/auroc", "critic AUROC", config.min_auroc, "below"),
            ("dev/group_std", "reward spread within a question", config.min_reward_std, "below"),
            ("dev/accuracy", "accuracy on held-out questions", lowest_accuracy, "below"),
            ("dev/truncated", "truncated part of samples", config.max_truncated, "above"),
            ("policy/kl", "KL to the warm start, nats per token,", config.max_kl, "above"),
        )
        return [
            f"{name} {metrics[key]:.3f} is {side} {limit:.3f}"
            for key, name, limit, side in rules
            if key in metrics
            and not (metrics[key] >= limit if side == "below" else metrics[key] <= limit)  # NaN is neither
        ]

    def state(self) -> dict[str, Any]:
        return {"num_unhealthy": self._num_unhealthy, "best_accuracy": self._best_accuracy}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._num_unhealthy, self._best_accuracy = state["num_unhealthy"], state["best_accuracy"]
