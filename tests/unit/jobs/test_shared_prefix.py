"""Encoding a prompt once for all its solutions gives what encoding it with every solution gives."""

import pytest
import torch

from irlops_jobs.models.scorers import CriticScorer, PolicyScorer
from irlops_jobs.models.shared_prefix import TraceBatch, chosen_logprobs
from irlops_jobs.models.tiny import build_tiny_critic, build_tiny_policy

PROMPTS = [(1, 3, 40, 41, 4), (1, 3, 50, 4)]
SOLUTIONS = [(60, 61, 62, 2), (63, 2), (64, 65, 2)]
PARENTS = [0, 1, 0]


def _plain_logprobs(model, prompt, solution):
    ids = torch.tensor([[*prompt, *solution]])
    logprobs = torch.log_softmax(model(input_ids=ids).logits[0], dim=-1)
    return torch.stack([logprobs[len(prompt) + t - 1, token] for t, token in enumerate(solution)])


def test_policy_logprobs_equal_those_of_whole_sequences():
    model = build_tiny_policy(0).eval()
    logprob_ST, _ = PolicyScorer(model)(TraceBatch.of(PROMPTS, SOLUTIONS, PARENTS))
    for row, (parent, solution) in enumerate(zip(PARENTS, SOLUTIONS, strict=True)):
        plain = _plain_logprobs(model, PROMPTS[parent], solution)
        torch.testing.assert_close(logprob_ST[row, : len(solution)], plain, atol=1e-5, rtol=1e-5)
        assert torch.all(logprob_ST[row, len(solution) :] == 0)


def test_critic_rewards_equal_the_token_classifiers_own_logits():
    model = build_tiny_critic(0).eval()
    reward_ST, _ = CriticScorer(model)(TraceBatch.of(PROMPTS, SOLUTIONS, PARENTS))
    for row, (parent, solution) in enumerate(zip(PARENTS, SOLUTIONS, strict=True)):
        prompt = PROMPTS[parent]
        plain = model(input_ids=torch.tensor([[*prompt, *solution]])).logits[0, len(prompt) :, 0]
        torch.testing.assert_close(reward_ST[row, : len(solution)], plain, atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_prompt_as_if_it_had_been_encoded_with_every_solution():
    shared, plain = build_tiny_policy(0).eval(), build_tiny_policy(0).eval()
    PolicyScorer(shared)(TraceBatch.of(PROMPTS, SOLUTIONS, PARENTS))[0].sum().backward()
    sum(_plain_logprobs(plain, PROMPTS[p], s).sum() for p, s in zip(PARENTS, SOLUTIONS, strict=True)).backward()
    for (name, one), (_, other) in zip(shared.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-3, msg=name)


def test_a_tokens_reward_does_not_see_the_tokens_after_it():
    model = build_tiny_critic(0).eval()
    batch = TraceBatch.of([PROMPTS[0]], [(60, 61, 62, 2), (60, 61, 99, 98)], [0, 0])
    reward_ST, _ = CriticScorer(model)(batch)
    torch.testing.assert_close(reward_ST[0, :2], reward_ST[1, :2])
    assert not torch.allclose(reward_ST[0, 2:], reward_ST[1, 2:])


def test_logprobs_in_chunks_equal_logprobs_at_once(monkeypatch):
    head = torch.nn.Linear(8, 30, bias=False)
    hidden, tokens = torch.randn(20, 8, requires_grad=True), torch.randint(0, 30, (20,))
    whole, _ = chosen_logprobs(hidden, tokens, head, 30)
    (whole_grad,) = torch.autograd.grad(whole.sum(), hidden)
    monkeypatch.setattr("irlops_jobs.models.shared_prefix.LOGITS_PER_CHUNK", 90)  # three tokens at a time
    chunked, _ = chosen_logprobs(hidden, tokens, head, 30)
    (chunked_grad,) = torch.autograd.grad(chunked.sum(), hidden)
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(chunked_grad, whole_grad)


def test_shaping_adds_up_to_minus_the_potential_of_the_prompt():
    # The potential is 0 after the end, so h(1)-h(0) + h(2)-h(1) + ... + 0-h(T-1) = -h(0), whatever the solution says.
    scorer = CriticScorer(build_tiny_critic(0).eval(), shaping=True)
    _, shaping_ST = scorer(TraceBatch.of([PROMPTS[0]], [SOLUTIONS[0], SOLUTIONS[1]], [0, 0]))
    totals = shaping_ST.sum(1)
    assert totals[0].item() == pytest.approx(totals[1].item(), abs=1e-5)
    assert totals[0].abs().item() > 1e-4
