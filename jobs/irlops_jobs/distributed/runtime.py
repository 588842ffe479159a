"""The process group that torchrun describes, and the few collectives the jobs need.

Without torchrun's variables a job runs as a group of one, so every command below works in a plain Python too.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Longer than any model takes to load or any round takes to sample; a dead peer is noticed by torchelastic sooner."""

_left_groups: list[dist.ProcessGroup | None] = []
"""Groups outlive what was wrapped in them. Where a DistributedDataParallel is the last to hold one, it ends the group with
Python's lock in its hand, and gloo's thread may be waiting for that very lock to let go of the last barrier."""


@dataclass
class Runtime:
    """Where this process stands among its peers, and whether it was asked to stop."""

    rank: int
    world_size: int
    device: torch.device
    stop_requested: bool = False

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's items: every ``world_size``-th, so that neighbours in difficulty spread over processes."""
        return list(items[self.rank :: self.world_size])

    def unshare(self, parts: Sequence[T]) -> list[T]:
        """Everybody's items in the order they had before ``share``, on every process."""
        gathered = self.gather(list(parts))
        longest = max(len(part) for part in gathered)
        return [part[index] for index in range(longest) for part in gathered if index < len(part)]

    def gather(self, item: T) -> list[T]:
        """``item`` of every process, in rank order, on every process."""
        if self.world_size == 1:
            return [item]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, item)
        return gathered

    def total(self, *values: float) -> list[float]:
        """Sums over processes, in float64."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor.tolist()

    def largest(self, value: float) -> float:
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        if self.world_size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor.item()

    def agree_to_stop(self) -> bool:
        """Whether any process was asked to stop; every process gets the same answer, so none leaves a collective alone."""
        return self.largest(float(self.stop_requested)) > 0

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the group; peers that still need this process have been waited for."""
        if self.world_size > 1 and dist.is_initialized():
            dist.barrier()
            _left_groups.append(dist.group.WORLD)
            dist.destroy_process_group()


def start_runtime() -> Runtime:
    """Join torchrun's process group (gloo on a CPU, NCCL on GPUs) and answer SIGTERM by asking the loop to stop."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = _device()
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if world_size > 1 and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    runtime = Runtime(rank, world_size, device)
    _on_sigterm(lambda: setattr(runtime, "stop_requested", True))
    return runtime


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _on_sigterm(action: Callable[[], None]) -> None:
    def handle(_signal: int, _frame: FrameType | None) -> None:
        action()

    signal.signal(signal.SIGTERM, handle)
