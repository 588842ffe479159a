"""Unbiased pass@k (Chen et al., arXiv 2107.03374): the chance that k of a problem's N samples hold a right one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pass_at_k(num_right_P: NDArray[np.int64], num_samples: int, k: int) -> NDArray[np.float64]:
    """1 - C(N - c, k) / C(N, k) for each problem with c right samples, as a product, so nothing overflows.

    Example:
        N = 4, c = 2, k = 2: 1 - (2/4)(1/3) = 5/6.

    Raises:
        ValueError: k is not between 1 and N.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k = {k} is not between 1 and the {num_samples} samples of a problem.")
    wrong_P = num_samples - num_right_P.astype(np.float64)
    drawn = np.arange(k, dtype=np.float64)
    # Every draw without replacement misses with (wrong left) / (samples left); 0 once no wrong one is left.
    misses_PK = np.clip(wrong_P[:, None] - drawn, 0.0, None) / (num_samples - drawn)
    return 1.0 - misses_PK.prod(axis=1)
