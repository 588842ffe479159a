"""Unbiased pass@k by hand."""

from __future__ import annotations

import numpy as np
import pytest

from irlops_jobs.evaluation.pass_at_k import pass_at_k


def test_two_right_of_four_are_missed_by_one_pair_in_six():
    # 1 - C(2, 2) / C(4, 2) = 1 - 1/6
    assert pass_at_k(np.array([2]), 4, 2) == pytest.approx([5 / 6])


def test_pass_at_1_is_the_part_that_is_right():
    assert pass_at_k(np.array([0, 1, 4]), 4, 1) == pytest.approx([0.0, 0.25, 1.0])


def test_no_choice_misses_when_fewer_are_wrong_than_are_drawn():
    assert pass_at_k(np.array([2]), 4, 3) == pytest.approx([1.0])


def test_many_samples_do_not_overflow():
    # One right of 256: the chance to be among 10 of 256 is 10/256.
    assert pass_at_k(np.array([1]), 256, 10) == pytest.approx([10 / 256])


@pytest.mark.parametrize("k", [0, 5])
def test_k_beyond_the_samples_is_refused(k: int):
    with pytest.raises(ValueError, match="between 1 and the 4"):
        pass_at_k(np.array([1]), 4, k)
