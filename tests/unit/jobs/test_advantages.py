"""Aggregation, baselines and discounting, against sums worked out by hand."""

import math

import pytest
import torch

from irlops.contracts.jobs import PolicyConfig, RewardConfig
from irlops.selection import aggregate
from irlops_jobs.rewards.advantages import (
    aggregate_rewards,
    centred_dense_advantages,
    clip_rewards,
    discounted_suffix_sums,
    group_advantages,
)

REWARDS = torch.tensor([[1.0, 2.0, 3.0], [4.0, -2.0, 0.0]])
MASK = torch.tensor([[True, True, True], [True, True, False]])
EVERYBODY = torch.tensor([True, True])


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("mean", [2.0, 1.0]),
        ("min", [1.0, -2.0]),
        # sigmoid of 1, 2, 3: .73106 x .88080 x .95257 = .61339; of 4 and -2: .98201 x .11920 = .11706
        ("product", [math.log(0.61339 / 0.38661), math.log(0.11706 / 0.88294)]),
        ("last", [3.0, -2.0]),
        ("discounted", [(0.25 * 1 + 0.5 * 2 + 3) / 1.75, (0.5 * 4 - 2) / 1.5]),
    ],
)
def test_token_rewards_become_one_number_a_trace(aggregation, expected):
    assert aggregate_rewards(REWARDS, MASK, aggregation=aggregation, gamma=0.5).tolist() == pytest.approx(
        expected, abs=1e-3
    )


@pytest.mark.parametrize("aggregation", ["mean", "min", "product", "last", "discounted"])
def test_training_and_serving_aggregate_alike(aggregation):
    rewards = torch.randn(7)
    trained = aggregate_rewards(rewards[None], torch.ones(1, 7, dtype=torch.bool), aggregation=aggregation, gamma=0.9)
    assert trained.item() == pytest.approx(aggregate(rewards.tolist(), aggregation, 0.9), abs=1e-5)


def test_a_suffix_sum_discounts_what_lies_ahead():
    # 1 + 0.5*2 + 0.25*3 = 2.75; 2 + 0.5*3 = 3.5; 3
    assert discounted_suffix_sums(REWARDS[:1], gamma=0.5).tolist()[0] == [2.75, 3.5, 3.0]


def test_a_suffix_sum_over_two_thousand_tokens_stays_finite():
    sums = discounted_suffix_sums(torch.ones(1, 2000), gamma=0.9)
    assert sums[0, 0].item() == pytest.approx(10.0, rel=1e-5)  # 1 / (1 - 0.9)
    assert torch.isfinite(sums).all()


def test_gamma_one_is_a_plain_suffix_sum():
    assert discounted_suffix_sums(REWARDS[:1], gamma=1.0).tolist()[0] == [6.0, 5.0, 3.0]


@pytest.mark.parametrize(
    ("advantage", "expected"),
    [
        ("grpo", [0.5**0.5, -(0.5**0.5)]),  # means 2 and 1: (2 - 1.5) / std 0.7071
        ("dr_grpo", [0.5, -0.5]),
        ("rloo", [1.0, -1.0]),  # each against the other one
    ],
)
def test_every_token_of_a_trace_carries_its_advantage(advantage, expected):
    result = _advantages(PolicyConfig(advantage=advantage))
    assert result[0].tolist() == pytest.approx([expected[0]] * 3)
    assert result[1].tolist() == pytest.approx([expected[1]] * 2 + [0.0])


def test_dense_advantages_differ_from_token_to_token():
    result = _advantages(PolicyConfig(advantage="discounted_dense"), gamma=0.0)
    # Last tokens 3 and -2: mean 0.5, std 3.5355; gamma 0 leaves each token its own standardised reward.
    assert result[0].tolist() == pytest.approx([0.5 / 3.5356, 1.5 / 3.5356, 2.5 / 3.5356], abs=1e-4)


def test_dense_advantages_join_a_traces_own_by_their_weight():
    result = _advantages(PolicyConfig(advantage="dr_grpo", dense_weight=0.5), gamma=0.0)
    # 0.5 and -0.5 a trace; half of (r - 0.5) / 3.5356 beside it
    assert result[0].tolist() == pytest.approx(
        [0.5 + 0.25 / 3.5356, 0.5 + 0.75 / 3.5356, 0.5 + 1.25 / 3.5356], abs=1e-4
    )
    assert result[1].tolist() == pytest.approx([-0.5 + 1.75 / 3.5356, -0.5 - 1.25 / 3.5356, 0.0], abs=1e-4)


def test_last_tokens_that_all_read_alike_are_not_divided_by_their_spread():
    rewards, mask = torch.tensor([[-2.0, 2.0], [1.0, 2.0]]), torch.ones(2, 2, dtype=torch.bool)  # both end at the clip
    settings = {"reward": RewardConfig(aggregation="min"), "used_G": EVERYBODY}
    published, beside = PolicyConfig(advantage="discounted_dense"), PolicyConfig(advantage="dr_grpo", dense_weight=0.5)
    assert group_advantages(rewards, mask, policy=published, **settings) is None
    result = group_advantages(rewards, mask, policy=beside, **settings)
    assert result is not None
    assert result.tolist() == [[-1.5, -1.5], [1.5, 1.5]]  # lowest -2 and 1: mean -0.5, and nothing dense beside it


def test_a_spread_below_the_least_one_is_none():
    rewards, mask = torch.tensor([[1.0], [1.02]]), torch.ones(2, 1, dtype=torch.bool)  # std 0.0141
    settings = {"reward": RewardConfig(aggregation="mean"), "used_G": EVERYBODY}
    assert group_advantages(rewards, mask, policy=PolicyConfig(min_group_std=0.02), **settings) is None
    assert group_advantages(rewards, mask, policy=PolicyConfig(min_group_std=0.01), **settings) is not None


def test_a_group_without_spread_teaches_nothing():
    rewards = torch.ones(3, 2)
    result = group_advantages(
        rewards,
        torch.ones(3, 2, dtype=torch.bool),
        policy=PolicyConfig(),
        reward=RewardConfig(aggregation="mean"),
        used_G=torch.tensor([True, True, True]),
    )
    assert result is None


def test_a_truncated_sample_neither_learns_nor_moves_the_baseline():
    rewards = torch.tensor([[1.0], [2.0], [300.0]])
    result = group_advantages(
        rewards,
        torch.ones(3, 1, dtype=torch.bool),
        policy=PolicyConfig(advantage="dr_grpo"),
        reward=RewardConfig(aggregation="mean"),
        used_G=torch.tensor([True, True, False]),
    )
    assert result is not None
    assert result.squeeze(1).tolist() == [-0.5, 0.5, 0.0]


def test_clipping_can_be_switched_off():
    assert clip_rewards(torch.tensor([-9.0, 9.0]), 5.0).tolist() == [-5.0, 5.0]
    assert clip_rewards(torch.tensor([-9.0, 9.0]), None).tolist() == [-9.0, 9.0]


def _advantages(policy, gamma=0.9):
    result = group_advantages(
        REWARDS, MASK, policy=policy, reward=RewardConfig(aggregation="mean", gamma=gamma), used_G=EVERYBODY
    )
    assert result is not None
    return result


def test_centred_dense_advantages_blame_the_token_itself_at_gamma_0():
    # token rewards 2, -2 and 2, 2: mean 1, so 1, -3 and 1, 1
    reward, mask = torch.tensor([[2.0, -2.0], [2.0, 2.0]]), torch.ones(2, 2, dtype=torch.bool)
    result = centred_dense_advantages(reward, mask, gamma=0.0, used_G=torch.tensor([True, True]))
    assert result.tolist() == [[1.0, -3.0], [1.0, 1.0]]


def test_centred_dense_advantages_leave_truncated_samples_out_of_the_mean():
    reward, mask = torch.tensor([[2.0, -2.0], [50.0, 50.0]]), torch.ones(2, 2, dtype=torch.bool)
    result = centred_dense_advantages(reward, mask, gamma=0.0, used_G=torch.tensor([True, False]))
    assert result[0].tolist() == [2.0, -2.0]  # the mean of 2 and -2 is 0
