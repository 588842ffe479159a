"""One optimizer step over micro-batches and processes, equal to one step on the whole batch by one process.

Losses arrive as sums whose weights already hold the global denominators, so adding them up over micro-batches and
processes is all there is to do. DDP averages gradients, hence the factor ``world_size``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from irlops.contracts.jobs import OptimizerConfig
from irlops.errors import DivergenceError
from irlops_jobs.distributed.optimizers import build_optimizers, learning_rate_factor
from irlops_jobs.distributed.runtime import Runtime

Batch = TypeVar("Batch")

MAX_SKIPPED_IN_A_ROW = 5
"""One bad batch is left out; weights that give no finite gradient for any batch will not recover by themselves."""


class Trainer:
    """A scorer (a module that turns a batch into numbers), its optimizers and its place in the process group.

    Args:
        scorer: the module whose forward pass is wrapped; its ``model`` attribute holds the weights to export.
        sharding: ``ddp`` copies the weights to every process, ``fsdp`` shards them (FSDP2, for models that don't fit).
        num_steps: optimizer steps of the whole run, for the schedule.
    """

    def __init__(
        self, scorer: nn.Module, config: OptimizerConfig, runtime: Runtime, *, num_steps: int, sharding: str = "ddp"
    ) -> None:
        self.scorer = scorer.to(runtime.device).eval()
        self.runtime = runtime
        self._config = config
        self._num_steps = num_steps
        self._wrapped = _wrap(self.scorer, runtime, sharding)
        self.optimizers = build_optimizers(self.scorer, config)
        self.num_steps_done = 0
        self._num_skipped_in_a_row = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """A pass without gradients or dropout through the wrapped module."""
        with torch.no_grad():
            return self._wrapped(*args, **kwargs)

    def step(self, batches: Sequence[Batch], loss_of: Callable[[nn.Module, Batch], Tensor]) -> dict[str, float]:
        """Add up ``loss_of(module, batch)`` over this process's batches and all processes, then take one step.

        Every process must bring the same number of batches (``plan`` in ``microbatches`` sees to it).

        Returns:
            ``loss`` (the global sum), ``grad_norm`` (before clipping) and ``skipped`` (1.0 when the gradient was not
            finite: the step is left out on every process alike and the weights stay as they were).

        Raises:
            DivergenceError: several steps in a row had to be left out.
        """
        self._set_learning_rate()
        loss_sum = self._accumulate(batches, loss_of)
        parameters = [parameter for parameter in self.scorer.parameters() if parameter.requires_grad]
        norm = float(_full(nn.utils.clip_grad_norm_(parameters, self._config.max_grad_norm)))
        finite = math.isfinite(norm)
        for optimizer in self.optimizers:
            if finite:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.num_steps_done += 1
        (loss_total,) = self.runtime.total(loss_sum)
        self._num_skipped_in_a_row = 0 if finite else self._num_skipped_in_a_row + 1
        if not finite:
            self._report_skipped(loss_total, norm)
        return {"loss": loss_total, "grad_norm": norm, "skipped": 0.0 if finite else 1.0}

    def _accumulate(self, batches: Sequence[Batch], loss_of: Callable[[nn.Module, Batch], Tensor]) -> float:
        """Gradients of all batches; returns the sum of this process's losses. Dropout is on here and nowhere else."""
        loss_sum = 0.0
        self.scorer.train()
        for index, batch in enumerate(batches):
            with self._sync_only_at(last=index == len(batches) - 1):
                loss = loss_of(self._wrapped, batch)
                (loss * self.runtime.world_size).backward()
            loss_sum += float(loss.detach())
        self.scorer.eval()
        return loss_sum

    def _report_skipped(self, loss: float, norm: float) -> None:
        seen = f"loss {loss:.4g}, gradient norm {norm:.4g}, learning rate {self._config.learning_rate:g}"
        name = type(self.scorer).__name__
        if self._num_skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise DivergenceError(
                f"{self._num_skipped_in_a_row} steps of the {name} in a row had no finite gradient ({seen}), so it no longer "
                "learns. Lower optimizer.learning_rate or max_grad_norm, or use autocast: none, and resume from the last "
                "checkpoint; if the first step is already like this, look at the model and the data."
            )
        if self.runtime.is_main:
            print(f"warning: left out step {self.num_steps_done} of the {name}: {seen}", flush=True)

    def _set_learning_rate(self) -> None:
        factor = learning_rate_factor(self.num_steps_done, self._config, self._num_steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self._config.learning_rate * factor

    def _sync_only_at(self, *, last: bool) -> Any:
        if isinstance(self._wrapped, FSDPModule):
            self._wrapped.set_requires_gradient_sync(last)
            return nullcontext()
        if isinstance(self._wrapped, DistributedDataParallel) and not last:
            return self._wrapped.no_sync()
        return nullcontext()


def _full(norm: Tensor) -> Tensor:
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _wrap(scorer: nn.Module, runtime: Runtime, sharding: str) -> nn.Module:
    if runtime.world_size == 1:
        return scorer
    if sharding == "fsdp":
        for module in scorer.modules():
            if type(module).__name__.endswith("DecoderLayer"):
                fully_shard(module)
        fully_shard(scorer)
        for other_pass in ("propose", "trunk"):  # of a policy, of a critic; without this the weights stay sharded in it
            if hasattr(scorer, other_pass):
                register_fsdp_forward_method(scorer, other_pass)
        return scorer
    device_ids = [runtime.device.index] if runtime.device.type == "cuda" else None
    return DistributedDataParallel(scorer, device_ids=device_ids, forward_sync_buffers=False)
