"""A wrong solution has some wrong token, not only wrong ones: the noisy-AND loss, against sums worked out by hand."""

import math

import pytest
import torch

from irlops_jobs.updates.critic import some_token_loss
from irlops_jobs.updates.critic_labels import CriticTarget


def _loss_and_gradient(logits, *, is_expert_like, positions=None, weight=1.0, smoothing=0.0):
    logits_ST = torch.tensor([logits], requires_grad=True)
    where = tuple(range(len(logits))) if positions is None else positions
    target = CriticTarget(is_expert_like, "expert", where, weight)
    loss = some_token_loss(logits_ST, [target], label_smoothing=smoothing)
    loss.backward()
    return loss.item(), logits_ST.grad[0].tolist()


def test_an_expert_needs_every_token_right():
    loss, gradient = _loss_and_gradient([0.0, 0.0], is_expert_like=True)
    assert loss == pytest.approx(2 * math.log(2))  # P = 0.5 * 0.5
    assert gradient == pytest.approx([-0.5, -0.5])


def test_a_wrong_solution_needs_one_wrong_token_only():
    loss, _ = _loss_and_gradient([0.0, 0.0], is_expert_like=False)
    assert loss == pytest.approx(-math.log(1 - 0.25))


def test_blame_falls_on_the_token_already_doubted_and_spares_the_right_steps():
    _, gradient = _loss_and_gradient([4.0, -1.0, 4.0], is_expert_like=False)
    assert gradient[1] > 10 * gradient[0] > 0


def test_tokens_outside_the_positions_get_no_gradient():
    _, gradient = _loss_and_gradient([0.0, 0.0, 0.0], is_expert_like=False, positions=(2,))
    assert gradient[:2] == [0.0, 0.0]


def test_a_wrong_solution_that_looks_perfect_gives_a_finite_push():
    loss, gradient = _loss_and_gradient([40.0, 40.0], is_expert_like=False)
    assert math.isfinite(loss)
    assert all(map(math.isfinite, gradient))


def test_smoothing_gives_the_other_side_its_part():
    loss, _ = _loss_and_gradient([0.0], is_expert_like=True, smoothing=0.1)
    assert loss == pytest.approx(math.log(2))  # 0.9 ln 2 + 0.1 ln 2


def test_a_trace_without_weight_or_positions_adds_nothing():
    assert _loss_and_gradient([1.0], is_expert_like=False, weight=0.0)[0] == 0.0
    assert _loss_and_gradient([1.0], is_expert_like=True, positions=())[0] == 0.0
