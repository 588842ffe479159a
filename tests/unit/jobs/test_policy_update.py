"""The policy's loss: which way it pushes, what it leaves alone, and when it stops pushing."""

import math

import pytest
import torch

from irlops.contracts.jobs import PolicyConfig
from irlops_jobs.models.shared_prefix import TraceBatch
from irlops_jobs.updates.microbatches import MicroBatch
from irlops_jobs.updates.policy import (
    PolicyTarget,
    Tally,
    importance_weights,
    kl_estimate,
    policy_loss,
    token_weights,
)

NO_KL = PolicyConfig(kl_coefficient=0.0)


def _micro(advantage, *, engine=None, old=None, reference=None, weight=1.0):
    length = len(advantage)
    target = PolicyTarget(
        torch.tensor(advantage),
        torch.full((length,), -1.0) if engine is None else torch.tensor(engine),
        None if old is None else torch.tensor(old),
        None if reference is None else torch.tensor(reference),
        torch.full((length,), weight),
    )
    return MicroBatch(TraceBatch.of([(1,)], [tuple(range(length))], [0]), [target], [0])


def _loss_and_gradient(logprob, micro, config=NO_KL):
    logprob_ST = torch.tensor([logprob], requires_grad=True)
    loss = policy_loss(logprob_ST, torch.zeros_like(logprob_ST), micro, config=config, tally=Tally())
    loss.backward()
    return loss.item(), logprob_ST.grad[0].tolist()


def test_a_good_sample_becomes_likelier_and_a_bad_one_less_likely():
    _, gradient = _loss_and_gradient([-1.0, -1.0], _micro([1.0, -1.0]))
    assert gradient == pytest.approx([-1.0, 1.0])  # ratio is 1, so d(-ratio * A)/d logprob = -A


def test_a_ratio_beyond_the_clip_stops_pushing_further():
    # exp(-0.5 + 1.0) = 1.65 > 1.28 with a positive advantage: no gradient. The same ratio still recovers from a mistake.
    _, gradient = _loss_and_gradient([-0.5, -0.5], _micro([1.0, -1.0], old=[-1.0, -1.0]))
    assert gradient[0] == 0.0
    assert gradient[1] == pytest.approx(math.exp(0.5))


def test_kl_pulls_back_towards_the_warm_start():
    micro = _micro([0.0], reference=[-2.0])
    loss, gradient = _loss_and_gradient([-1.0], micro, PolicyConfig(kl_coefficient=0.1))
    # d = -2 - -1 = -1: k3 = e^-1 + 1 - 1 = 0.3679; gradient 0.1 * (1 - e^-1)
    assert loss == pytest.approx(0.1 * math.exp(-1))
    assert gradient == pytest.approx([0.1 * (1 - math.exp(-1))])


def test_the_kl_estimate_is_zero_at_the_reference_and_never_negative():
    differences = torch.linspace(-3, 3, 13)
    estimate = kl_estimate(torch.zeros(13), differences)
    assert estimate[6] == 0
    assert torch.all(estimate >= 0)


@pytest.mark.parametrize(
    ("correction", "expected"),
    [("none", [1.0, 1.0, 1.0]), ("truncate", [2.0, 1.0, 0.25]), ("mask", [0.0, 1.0, 0.0])],
    ids=str,
)
def test_the_gap_between_engine_and_trainer_is_corrected_within_limits(correction, expected):
    old = torch.log(torch.tensor([[0.4, 0.2, 0.05]]))
    engine = torch.log(torch.tensor([[0.1, 0.2, 0.2]]))  # ratios 4, 1 and 0.25 with limit 2
    weights = importance_weights(old, engine, PolicyConfig(importance_correction=correction, importance_limit=2.0))
    assert weights[0].tolist() == pytest.approx(expected)


def test_grpo_weighs_samples_alike_and_the_others_weigh_tokens_alike():
    by_sample = token_weights(4, num_samples=2, config=PolicyConfig(advantage="grpo"), max_new_tokens=10)
    by_token = token_weights(4, num_samples=2, config=PolicyConfig(advantage="dr_grpo"), max_new_tokens=10)
    assert by_sample.tolist() == pytest.approx([1 / 8] * 4)
    assert by_token.tolist() == pytest.approx([1 / 20] * 4)


def test_a_token_of_no_weight_moves_nothing():
    _, gradient = _loss_and_gradient([-1.0], _micro([5.0], weight=0.0))
    assert gradient == [0.0]
