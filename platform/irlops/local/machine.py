"""What this machine has to share out between processes: cores, memory, GPUs."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from irlops.errors import ManifestError

GPU = "nvidia.com/gpu"
"""The name under which a cluster hands out NVIDIA's GPUs."""

_SUFFIXES = {
    "m": 1e-3,
    **{suffix: 1000.0**power for power, suffix in enumerate(("k", "M", "G", "T", "P"), start=1)},
    **{suffix: 1024.0**power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi"), start=1)},
}


@dataclass(frozen=True)
class Machine:
    """Made by ``this_machine``; consumed by whoever plans processes.

    Example: ``Machine(num_cores=2, memory_bytes=25_000_000_000, gpus=())``
    """

    num_cores: int
    """That this process may run on."""
    memory_bytes: int
    gpus: tuple[str, ...]
    """What CUDA_VISIBLE_DEVICES may list."""


def this_machine() -> Machine:
    """Look at the machine this process runs on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(cores, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), _visible_gpus())


def _visible_gpus() -> tuple[str, ...]:
    """Asked of NVIDIA's tool: importing torch to ask takes seconds, and is not possible everywhere."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    listed = subprocess.run([program, "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True)
    present = tuple(line.strip() for line in listed.stdout.splitlines() if line.strip().isdigit())
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return present if chosen is None else tuple(one.strip() for one in chosen.split(",") if one.strip())


def parse_quantity(text: str) -> float:
    """A Kubernetes quantity: ``500m`` -> 0.5, ``2Gi`` -> 2147483648.

    Raises:
        ManifestError: it is none.
    """
    suffix = text.lstrip("+-.0123456789eE") if not text[-1:].isdigit() else ""
    number = text[: len(text) - len(suffix)]
    try:
        return float(number) * (_SUFFIXES[suffix] if suffix else 1.0)
    except (KeyError, ValueError) as error:
        raise ManifestError(
            f"{text!r} is no quantity. Write a number with or without m, k, M, G, Ki, Mi, Gi ..."
        ) from error
