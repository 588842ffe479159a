"""Processes that join and leave process groups as jobs do, many times."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from irlops_jobs.distributed.runtime import Runtime


def leave_groups(rank: int, folder: str, num_groups: int) -> None:
    """Be one of two processes; leaves a file ``left-<number>`` for each group."""
    torch.set_num_threads(1)
    for number in range(num_groups):
        _leave_one(rank, Path(folder) / f"group-{number}")
        (Path(folder) / f"left-{number}").touch()


def _leave_one(rank: int, file: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    module = DistributedDataParallel(torch.nn.Linear(4, 4))  # freed when this returns, after the group was left
    module(torch.ones(2, 4)).sum().backward()
    runtime = Runtime(rank, 2, torch.device("cpu"))
    runtime.gather(rank)
    runtime.close()
