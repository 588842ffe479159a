"""How many cores this process may use, as the kernel and the container's limit say."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(cpu_max: Path = CGROUP_CPU_MAX) -> int:
    """Cores for computing threads, at least 1.

    A pod limited to two cores still sees all of the node's; as many threads would be throttled to a crawl.

    Args:
        cpu_max: cgroup v2's "quota period" file, in microseconds; "max" is no limit.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text().split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, math.ceil(int(quota) / int(period))))
