"""One optimizer step is one optimizer step, however its batch was cut up."""

import pytest
import torch

from irlops.contracts.jobs import OptimizerConfig
from irlops_jobs.distributed.optimizers import learning_rate_factor
from irlops_jobs.distributed.runtime import Runtime
from irlops_jobs.distributed.trainer import Trainer
from irlops_jobs.updates.microbatches import Group, Trace, plan

ALONE = Runtime(rank=0, world_size=1, device=torch.device("cpu"))
ADAMW = OptimizerConfig(learning_rate=0.1)


class _Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))

    def forward(self, x):
        return x @ self.weight


def _trainer(config=ADAMW, num_steps=10):
    return Trainer(_Line(), config, ALONE, num_steps=num_steps)


def _loss(module, batch):
    x, weight = batch
    return weight * (module(x) ** 2).sum()


def test_two_accumulation_steps_equal_one_big_batch():
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]])
    whole, parts = _trainer(), _trainer()
    whole.step([(x, 1 / 3)], _loss)
    parts.step([(x[:1], 1 / 3), (x[1:], 1 / 3)], _loss)
    torch.testing.assert_close(whole.scorer.weight, parts.scorer.weight)


def test_a_gradient_that_is_not_finite_is_left_out_and_reported():
    trainer = _trainer()
    metrics = trainer.step([(torch.tensor([[float("nan"), 1.0]]), 1.0)], _loss)
    assert metrics["skipped"] == 1.0
    assert trainer.scorer.weight.tolist() == [1.0, -2.0]
    assert trainer.step([(torch.ones(1, 2), 1.0)], _loss)["skipped"] == 0.0


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [("constant", [0.5, 1.0, 1.0, 1.0]), ("linear", [0.5, 1.0, 0.55, 0.1]), ("cosine", [0.5, 1.0, 0.55, 0.1])],
    ids=str,
)
def test_the_learning_rate_warms_up_and_decays_to_a_tenth(schedule, factors):
    config = OptimizerConfig(learning_rate=1.0, schedule=schedule, warmup_steps=2)
    # Steps 0 and 1 warm up; 2 is the start, 6 the middle and 10 the end of the decay.
    assert [learning_rate_factor(step, config, 10) for step in (0, 2, 6, 10)] == pytest.approx(factors)


def test_muon_trains_hidden_matrices_and_leaves_the_rest_to_adamw():
    model = torch.nn.ModuleDict({"embed": torch.nn.Linear(4, 4), "inner": torch.nn.Linear(4, 4)})
    trainer = Trainer(model, OptimizerConfig(name="muon", learning_rate=0.01), ALONE, num_steps=1)
    muon, adamw = trainer.optimizers
    assert [p is model["inner"].weight for group in muon.param_groups for p in group["params"]] == [True]
    assert sum(len(group["params"]) for group in adamw.param_groups) == 3


def test_muon_alone_trains_what_is_nothing_but_hidden_matrices():
    model = torch.nn.Linear(4, 4, bias=False)
    [muon] = Trainer(model, OptimizerConfig(name="muon", learning_rate=0.01), ALONE, num_steps=1).optimizers
    assert isinstance(muon, torch.optim.Muon)


def test_passes_hold_at_most_the_tokens_asked_for_and_every_trace_once():
    groups = [Group((1,) * 5, [Trace((2,) * n, (n, i)) for i in range(3)]) for n in (3, 10, 4, 9)]
    batches = plan(groups, max_tokens=80, runtime=ALONE, idle=None)
    for micro in batches:
        padded = micro.batch.prompt_ids_QP.numel() + micro.batch.solution_ids_ST.numel()
        assert padded <= 80
    assert sorted(p for micro in batches for p in micro.payloads) == sorted(t.payload for g in groups for t in g.traces)


def test_tokens_that_ride_along_with_each_trace_count_as_well():
    groups = [Group((1,) * 5, [Trace((2,) * 10, index)]) for index in range(8)]
    passes = [plan(groups, max_tokens=60, runtime=ALONE, idle=None, num_branches=num) for num in (0, 5)]
    assert [[len(micro.payloads) for micro in one] for one in passes] == [[4, 4], [3, 3, 2]]


def test_a_group_larger_than_a_pass_is_kept_whole():
    (micro,) = plan([Group((1,), [Trace((2,) * 50, i) for i in range(4)])], max_tokens=64, runtime=ALONE, idle=None)
    assert micro.payloads == [0, 1, 2, 3]
