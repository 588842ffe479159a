"""torch's Muon with matrices of one shape orthogonalised together: the same steps, in half the time for small models."""

# Dimension key: B matrices of one shape, M rows, N columns (M <= N while orthogonalising).
from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

ELEMENTS_AT_ONCE = 2**22
"""Larger matrices keep a processor busy one by one, and a batch of them would be a second copy of the model."""


class MuonByShape(torch.optim.Muon):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for models of many small matrices.

    torch takes one matrix after the other; where a matrix is 128 wide, half of that time goes into starting products. State and
    arguments are torch's, so a checkpoint of one is a checkpoint of the other. Sharded parameters go torch's way.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] - torch types it by overloads
        """One step on every parameter that has a gradient."""
        learning = [one for group in self.param_groups for one in group["params"] if one.grad is not None]
        if any(isinstance(one, DTensor) for one in learning):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape[tuple(sorted(parameter.shape))].append(parameter)
        for parameters in _cut(by_shape.values()):
            wide_BMN = torch.stack([_wide(self._direction(one, group)) for one in parameters])
            wide_BMN = orthogonalise(wide_BMN, group["ns_coefficients"], group["ns_steps"], group["eps"])
            for parameter, update_MN in zip(parameters, wide_BMN, strict=True):
                update = update_MN if parameter.shape[0] <= parameter.shape[1] else update_MN.mT
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-_learning_rate(group, parameter))

    def _direction(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """The gradient with momentum, as torch keeps it."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient, memory_format=torch.preserve_format)
        buffer: Tensor = state["momentum_buffer"]
        buffer.lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer


def _cut(groups: Iterable[list[Tensor]]) -> Iterator[list[Tensor]]:
    """The groups in parts of at most ``ELEMENTS_AT_ONCE``, or of one matrix."""
    for group in groups:
        size = max(1, ELEMENTS_AT_ONCE // group[0].numel())
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _wide(matrix: Tensor) -> Tensor:
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix


def _learning_rate(group: dict[str, Any], parameter: Tensor) -> float:
    rows, columns = parameter.shape
    match group["adjust_lr_fn"]:
        case "match_rms_adamw":  # Liu et al. 2025, arXiv 2502.16982
            return group["lr"] * 0.2 * max(rows, columns) ** 0.5
        case _:
            return group["lr"] * max(1.0, rows / columns) ** 0.5


def orthogonalise(wide_BMN: Tensor, coefficients: tuple[float, float, float], num_steps: int, eps: float) -> Tensor:
    """Newton-Schulz iteration towards the nearest half-orthogonal matrices.

    Args:
        wide_BMN: (B, M, N), M <= N.
        coefficients: a, b and c of ``a x + b (x x^T) x + c (x x^T)^2 x``.
        eps: smallest Frobenius norm that is divided by.
    Returns:
        (B, M, N) bfloat16 with singular values near 1 (0.5 to 1.5 by torch's coefficients).
    """
    a, b, c = coefficients
    x_BMN = wide_BMN.bfloat16()
    x_BMN = x_BMN / x_BMN.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(num_steps):
        gram_BMM = x_BMN @ x_BMN.mT
        factor_BMM = torch.baddbmm(gram_BMM, gram_BMM, gram_BMM, beta=b, alpha=c)
        x_BMN = torch.baddbmm(x_BMN, factor_BMM, x_BMN, beta=a)
    return x_BMN
