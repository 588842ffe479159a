"""The critic judges what the policy might have written instead: pairs, gains, and which way they push."""

from dataclasses import replace

import pytest
import torch

from irlops.contracts.jobs import OptimizerConfig, PolicyConfig
from irlops_jobs.distributed.runtime import Runtime
from irlops_jobs.distributed.trainer import Trainer
from irlops_jobs.models.scorers import CriticScorer, PolicyScorer
from irlops_jobs.models.tiny import build_tiny_critic, build_tiny_policy
from irlops_jobs.rollouts.carriers import Sample
from irlops_jobs.rollouts.rounds import SampledQuestion
from irlops_jobs.session import EncodedDemonstration
from irlops_jobs.updates.critic import score_traces
from irlops_jobs.updates.microbatches import Group, Trace, plan
from irlops_jobs.updates.own_states import JudgedBranches, judge_branches, token_rewards, two_action_loss
from irlops_jobs.updates.policy import PolicyTarget, Tally, loss_of_pass, pair_passes, trace_logprobs

ALONE = Runtime(rank=0, world_size=1, device=torch.device("cpu"))
OPTIMIZER = OptimizerConfig(learning_rate=1e-3)
SOLUTION = (11, 12, 13, 14, 2)


def _trainers():
    policy = Trainer(PolicyScorer(build_tiny_policy(seed=0)), OPTIMIZER, ALONE, num_steps=1)
    critic_model = build_tiny_critic(seed=1)
    torch.nn.init.normal_(critic_model.score.weight, std=0.5, generator=torch.Generator().manual_seed(0))
    return policy, Trainer(CriticScorer(critic_model), OPTIMIZER, ALONE, num_steps=1)


def _question(*, truncated=False):
    sample = Sample(SOLUTION, (-1.0,) * len(SOLUTION), truncated)
    demonstration = EncodedDemonstration(demonstration=None, prompt_ids=(1, 7, 8), solution_ids=SOLUTION)
    return SampledQuestion(demonstration, (sample,), ("",), (False,))


def _judge(question, **changes):
    policy, critic = _trainers()
    settings = {"num_branches": 3, "reward_limit": None, "micro_batch_tokens": 4096, "draw": 0} | changes
    (judged,) = judge_branches(policy, critic, [question], **settings)
    return policy, critic, judged


def test_an_alternative_is_never_the_token_itself():
    _, _, judged = _judge(_question())
    own_SA = judged.batch.solution_ids_ST.gather(1, judged.batch.branch_position_SA)
    assert (judged.batch.branch_ids_SA != own_SA).all()


def test_the_gain_is_the_difference_of_rewards_of_two_whole_sequences():
    _, critic, judged = _judge(_question())
    position, other = int(judged.batch.branch_position_SA[0, 0]), int(judged.batch.branch_ids_SA[0, 0])
    model = critic.scorer.model.eval()  # transformers drops out before the head while training
    own = model(torch.tensor([(1, 7, 8, *SOLUTION[: position + 1])])).logits[0, -1, 0]
    alternative = model(torch.tensor([(1, 7, 8, *SOLUTION[:position], other)])).logits[0, -1, 0]
    assert judged.gain_SA[0, 0].item() == pytest.approx((own - alternative).item(), abs=1e-4)


def test_log_probabilities_of_both_tokens_are_those_of_a_plain_pass():
    policy, _, judged = _judge(_question())
    own_ST, _, other_SA = policy.forward(judged.batch)
    own_SA = own_ST.gather(1, judged.batch.branch_position_SA)
    plain = trace_logprobs(policy, [Group((1, 7, 8), [Trace(SOLUTION, 0)])], micro_batch_tokens=4096)[0]
    assert own_SA[0].tolist() == pytest.approx(plain[judged.batch.branch_position_SA[0]].tolist(), abs=1e-5)
    position, other = int(judged.batch.branch_position_SA[0, 0]), int(judged.batch.branch_ids_SA[0, 0])
    swapped = (*SOLUTION[:position], other)
    expected = trace_logprobs(policy, [Group((1, 7, 8), [Trace(swapped, 0)])], micro_batch_tokens=4096)[0][-1]
    assert other_SA[0, 0].item() == pytest.approx(expected.item(), abs=1e-5)


def test_samples_and_branches_in_one_pass_teach_what_they_teach_in_two():
    policy, _, judged = _judge(_question())
    target = PolicyTarget(torch.linspace(-1, 1, 5), torch.full((5,), -1.0), None, None, torch.full((5,), 0.2))
    (micro,) = plan(
        [Group((1, 7, 8), [Trace(SOLUTION, target)])], max_tokens=4096, runtime=ALONE, idle=PolicyTarget.idle()
    )
    gradients = []
    for expert_in_group in (False, True):  # with the expert in the group the samples are others, so passes stay apart
        config = PolicyConfig(expert_in_group=expert_in_group, branch_weight=0.7)
        policy.scorer.zero_grad()
        passes = pair_passes([micro], [judged], config)
        for one in passes:
            loss_of_pass(policy.scorer, one, config, Tally()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.scorer.parameters()]))
        assert len(passes) == 1 + expert_in_group
    assert torch.allclose(*gradients, atol=1e-6)


def test_the_pass_that_judges_branches_gives_the_rewards_that_scoring_gives():
    short = Sample((21, 2), (-1.0, -1.0), truncated=True)
    question = replace(_question(), samples=(*_question().samples, short), texts=("", ""), agrees=(False, False))
    _, critic, judged = _judge(question)
    groups = [Group((1, 7, 8), [Trace(SOLUTION, 0), Trace(short.token_ids, 1)])]
    scored = score_traces(critic, groups, micro_batch_tokens=4096)
    ((first, second),) = token_rewards([judged], [question])
    assert torch.allclose(first, scored[0], atol=1e-5)
    assert torch.allclose(second, scored[1], atol=1e-5)


def test_an_engine_that_tells_alternatives_saves_the_pass_that_asks_for_them():
    policy, critic = _trainers()
    logprobs = trace_logprobs(policy, [Group((1, 7, 8), [Trace(SOLUTION, 0)])], micro_batch_tokens=4096)[0]
    told = Sample(SOLUTION, tuple(logprobs.tolist()), truncated=False, alternatives=(41, 42, 43, 44, 45))
    question = replace(_question(), samples=(told,))
    policy.scorer.propose = None  # asking again would fail
    settings = {"num_branches": 3, "reward_limit": None, "micro_batch_tokens": 4096, "draw": 0}
    (judged,) = judge_branches(policy, critic, [question], **settings)
    assert judged.batch.branch_position_SA[0].tolist() == logprobs.topk(3, largest=False).indices.tolist()
    assert (judged.batch.branch_ids_SA - judged.batch.branch_position_SA).unique().tolist() == [41]


def test_a_truncated_sample_gains_nothing():
    _, _, judged = _judge(_question(truncated=True))
    assert judged.gain_SA.abs().sum() == 0


def test_the_limit_bounds_what_one_pair_can_say():
    _, _, judged = _judge(_question(), reward_limit=0.01)
    assert judged.gain_SA.abs().max() <= 0.02 + 1e-6


def test_the_policy_moves_towards_the_token_that_the_critic_prefers():
    _, _, judged = _judge(_question())
    judged = JudgedBranches(judged.batch, torch.tensor([[2.0, -2.0, 0.0]]), num_samples=1.0, rewards={})
    own_SA = torch.zeros(1, 3, requires_grad=True)
    other_SA = torch.zeros(1, 3, requires_grad=True)
    two_action_loss(own_SA, other_SA, judged).backward()
    assert own_SA.grad.tolist() == [[-0.5, 0.5, 0.0]]  # -p (1 - p) * gain with p = 1/2
    assert other_SA.grad.tolist() == [[0.5, -0.5, 0.0]]
