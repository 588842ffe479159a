"""The warm start that the policy is held to: it answers as the policy did at first, and takes no part in learning."""

from pathlib import Path

import pytest
import torch

from irlops.contracts.jobs import LoraConfig, OptimizerConfig
from irlops_jobs.distributed.runtime import Runtime
from irlops_jobs.distributed.trainer import Trainer
from irlops_jobs.models.load import load_policy, with_lora
from irlops_jobs.models.presets import TINY
from irlops_jobs.models.scorers import PolicyScorer
from irlops_jobs.models.shared_prefix import TraceBatch
from irlops_jobs.updates.policy_learner import FrozenReference

ALONE = Runtime(rank=0, world_size=1, device=torch.device("cpu"))
BATCH = TraceBatch.of([(1, 7, 8)], [(11, 12, 2)], [0])


def _adapted(*, dropout: float = 0.0) -> Trainer:
    lora = LoraConfig(rank=2, alpha=4, dropout=dropout)
    model = with_lora(load_policy(TINY, cache_dir=Path("unused")), lora, seed=0)
    return Trainer(PolicyScorer(model), OptimizerConfig(learning_rate=0.01), ALONE, num_steps=4)


def _likelier(module, batch):
    return -module(batch)[0].sum()


def test_with_adapters_off_the_reference_stays_where_the_policy_began():
    trainer = _adapted()
    before, _ = trainer.forward(BATCH)
    reference = FrozenReference(trainer.scorer, trainer, adapters_off=True)
    trainer.step([BATCH], _likelier)
    assert torch.equal(reference.forward(BATCH)[0], before)
    assert not torch.equal(trainer.forward(BATCH)[0], before)


def test_a_reference_that_shares_the_policys_weights_makes_none_of_them_learn():
    trainer, alone = _adapted(), _adapted()
    learning = [name for name, parameter in trainer.scorer.named_parameters() if parameter.requires_grad]
    reference = FrozenReference(trainer.scorer, trainer, adapters_off=True)
    for _ in range(3):
        reference.forward(BATCH)
        norms = [one.step([BATCH], _likelier)["grad_norm"] for one in (trainer, alone)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-6)  # of the adapters alone, and of this step alone
    assert [name for name, parameter in trainer.scorer.named_parameters() if parameter.requires_grad] == learning
    assert all("lora_" in name for name in learning)


def test_dropout_is_on_in_steps_and_off_where_tokens_are_only_scored():
    trainer = _adapted(dropout=0.5)
    trainer.step([BATCH], _likelier)  # adapters start as no change, dropped out or not
    assert torch.equal(trainer.forward(BATCH)[0], trainer.forward(BATCH)[0])
    modes = []
    trainer.step([BATCH], lambda module, batch: modes.append(module.training) or _likelier(module, batch))
    assert modes == [True]
