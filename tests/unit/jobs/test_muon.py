"""Matrices orthogonalised together take the very steps that torch's Muon takes one by one."""

import copy

import pytest
import torch
from torch import nn

from irlops_jobs.distributed import muon
from irlops_jobs.distributed.muon import MuonByShape, orthogonalise

SHAPES = [(16, 16), (16, 16), (48, 16), (16, 48), (16, 48), (2, 40)]


def _parameters(seed):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def _step(optimizer, parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize("at_once", [2**22, 16 * 48, 1], ids=["all of a shape", "some of a shape", "one by one"])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust_lr_fn", ["match_rms_adamw", "original", None])
def test_every_step_is_torchs(adjust_lr_fn, nesterov, at_once, monkeypatch):
    monkeypatch.setattr(muon, "ELEMENTS_AT_ONCE", at_once)
    ours, torchs = _parameters(0), _parameters(0)
    settings = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": adjust_lr_fn, "nesterov": nesterov}
    optimizers = MuonByShape(ours, **settings), torch.optim.Muon(torchs, **settings)
    for step in range(3):
        for optimizer, parameters in zip(optimizers, (ours, torchs), strict=True):
            _step(optimizer, parameters, step)
    for one, other, start in zip(ours, torchs, _parameters(0), strict=True):
        assert (one - start).norm() > 0.01
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * 0.02)


def test_what_torchs_muon_saved_goes_on_here():
    ours, torchs = _parameters(0), _parameters(0)
    before, after = torch.optim.Muon(torchs, lr=0.02), MuonByShape(ours, lr=0.02)
    _step(before, torchs, 0)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    for one, other in zip(ours, torchs, strict=True):
        one.data.copy_(other.data)
    _step(before, torchs, 1)
    _step(after, ours, 1)
    for one, other in zip(ours, torchs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_parameter_without_a_gradient_stays_as_it_is():
    first, second = _parameters(0)[:2]
    start = second.detach().clone()
    first.grad = torch.ones_like(first)
    MuonByShape([first, second], lr=0.1).step()
    assert torch.equal(second, start)


def test_a_gradient_of_zero_moves_nothing_to_nan():
    [parameter] = _parameters(0)[:1]
    parameter.grad = torch.zeros_like(parameter)
    MuonByShape([parameter], lr=0.1, weight_decay=0.0).step()
    assert torch.equal(parameter, _parameters(0)[0])


def test_singular_values_come_near_one():
    wide_BMN = torch.randn(3, 16, 48, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalise(wide_BMN, (3.4445, -4.7750, 2.0315), 5, 1e-7).float())
    assert values.min() > 0.5
    assert values.max() < 1.5
