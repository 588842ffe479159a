"""Rewards centred and scaled by what was seen so far."""

import math

import pytest
import torch

from irlops_jobs.distributed.runtime import Runtime
from irlops_jobs.rewards.running import RunningScale

ALONE = Runtime(rank=0, world_size=1, device=torch.device("cpu"))


def _after(*rounds):
    scale = RunningScale()
    for rewards in rounds:
        scale.add([torch.tensor(row) for row in rewards], ALONE)
    return scale


def test_before_anything_was_seen_rewards_stay_as_they_are():
    assert RunningScale().apply(torch.tensor([2.0])).tolist() == [2.0]


def test_every_token_counts_once_whatever_its_round():
    scale = _after([[1.0]], [[3.0], [5.0, 7.0]])
    assert scale.mean == 4.0
    assert scale.std == pytest.approx(5**0.5)  # deviations -3, -1, 1, 3: squares add up to 20, over 4


def test_rewards_that_never_differ_are_not_blown_up():
    assert _after([[2.0, 2.0]]).apply(torch.tensor([2.0])).tolist() == [0.0]


def test_a_resumed_run_goes_on_with_the_same_scale():
    scale, resumed = _after([[1.0, 3.0]]), RunningScale()
    resumed.restore(scale.state())
    assert (resumed.mean, resumed.std) == (2.0, 1.0)


def test_a_reward_that_is_no_number_does_not_spoil_the_scale_of_the_others():
    assert _after([[1.0, math.nan], [3.0, math.inf]]).state() == _after([[1.0, 3.0]]).state()
