"""Checks on held-out questions: what is counted, and rewards on the policy's own scale."""

import math

import pytest
import torch

from irlops.contracts.jobs import RewardConfig
from irlops_jobs.collapse import CollapseConfig, CollapseGuard
from irlops_jobs.demonstrations.carriers import Demonstration
from irlops_jobs.distributed.runtime import Runtime
from irlops_jobs.models.tokenizers import build_tiny_tokenizer
from irlops_jobs.rollouts.carriers import Sample
from irlops_jobs.rollouts.held_out import HeldOut

ALONE = Runtime(rank=0, world_size=1, device=torch.device("cpu"))
TOKENIZER = build_tiny_tokenizer()
TEXTS = ("#### 5", "#### 5", "#### 6", "#### 7")


class _FourSamples:
    """An engine that gives each question the same four samples."""

    def sample(self, prompts, **_):
        return [[_sample(text) for text in TEXTS] for _ in prompts]


class _Critic:
    """Gives each trace's tokens one reward, in the order of the samples."""

    runtime = ALONE

    def __init__(self, *rewards):
        self._rewards = torch.tensor(rewards)

    def forward(self, batch):
        mask_ST = batch.solution_mask_ST
        return self._rewards.repeat(len(mask_ST) // 4)[:, None] * mask_ST, None


def _sample(text):
    ids = (*TOKENIZER(text, add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id)
    return Sample(ids, (-0.5,) * len(ids), truncated=False)


def _check(*rewards, clip=2.0, **others):
    rows = [Demonstration("What is 2 + 3?", "2 + 3 = 5\n#### 5", "5", "test:0")] * 2
    held_out = HeldOut(rows, _FourSamples(), TOKENIZER, ALONE, seed=0, micro_batch_tokens=4096)
    return held_out.check(0, _Critic(*rewards), RewardConfig(aggregation="min", clip=clip), **others)


def test_rewards_are_cut_as_the_policys_are_and_sorted_as_they_came():
    metrics = _check(9.0, 3.0, 2.5, -9.0)
    assert metrics["dev/accuracy"] == 0.5
    assert (metrics["dev/reward_right"], metrics["dev/reward_wrong"]) == (2.0, 0.0)  # 2 and 2; 2 and -2
    assert metrics["dev/group_std"] == pytest.approx(2.0)  # of 2, 2, 2 and -2: deviations 1, 1, 1, 3, over 3
    assert metrics["dev/auroc"] == 1.0  # 9 and 3 above 2.5, which the cut would make a tie


def test_the_spread_is_that_of_the_policys_rewards_and_the_order_the_critics():
    metrics = _check(
        9.0, 3.0, 2.5, -9.0, for_policy=lambda rewards, _: {key: 0.1 * row for key, row in rewards.items()}
    )
    assert metrics["dev/reward_right"] == pytest.approx(0.6)  # 0.9 and 0.3, which no limit cuts
    assert metrics["dev/auroc"] == 1.0


def test_a_critic_whose_rewards_are_no_numbers_is_unhealthy_and_stops_nothing():
    metrics = _check(9.0, math.nan, 2.5, -9.0)
    assert math.isnan(metrics["dev/auroc"])
    assert "critic AUROC nan" in CollapseGuard(CollapseConfig()).judge(metrics).warnings[0]
