"""The critic's side of a round: who is on which side, what is corrupted, and what comes back from earlier rounds."""

import math

import pytest
import torch

from irlops.answers import AnswerRule, extract_answer
from irlops.contracts.jobs import OptimizerConfig, parse_job
from irlops_jobs.demonstrations.carriers import Demonstration
from irlops_jobs.distributed.runtime import Runtime
from irlops_jobs.distributed.trainer import Trainer
from irlops_jobs.models.prompts import decode_solution
from irlops_jobs.models.scorers import CriticScorer, PolicyScorer
from irlops_jobs.models.tiny import build_tiny_critic, build_tiny_policy
from irlops_jobs.models.tokenizers import build_tiny_tokenizer
from irlops_jobs.rollouts.carriers import Sample
from irlops_jobs.rollouts.rounds import judge_samples
from irlops_jobs.session import encode_demonstration
from irlops_jobs.updates.critic import score_traces
from irlops_jobs.updates.critic_learner import CriticLearner
from irlops_jobs.updates.microbatches import Group, Trace
from irlops_jobs.updates.policy_learner import PolicyLearner
from support.miniature_jobs import miniature

ALONE = Runtime(rank=0, world_size=1, device=torch.device("cpu"))
TOKENIZER = build_tiny_tokenizer()
ADAMW = OptimizerConfig(learning_rate=0.01)
EXPERT, AGREEING, OTHER = "20+13=33\n#### 33", "13+20=33\n#### 33", "20-13=7\n#### 7"


def _job(**changes):
    return parse_job(miniature("airl", **changes), origin="test")


def _policy():
    return Trainer(PolicyScorer(build_tiny_policy(0)), ADAMW, ALONE, num_steps=4)


def _learner(**critic):
    trainer = Trainer(CriticScorer(build_tiny_critic(0)), ADAMW, ALONE, num_steps=4)
    return CriticLearner(trainer, _policy(), _job(critic=critic), TOKENIZER)


def _question(number=20):
    demonstration = Demonstration(f"What is {number} and 13?", EXPERT, "33", f"test:{number}")
    samples = []
    for text in (AGREEING, OTHER):
        ids = (*TOKENIZER(text, add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id)
        samples.append(Sample(ids, (-0.5,) * len(ids), truncated=False))
    return judge_samples(encode_demonstration(TOKENIZER, demonstration, max_length=128), samples, TOKENIZER)


def _origins(labelled):
    return [(trace.origin, trace.is_expert_like) for trace in labelled.traces if trace.origin != "corrupted"]


def test_held_out_rewards_take_the_form_and_the_scale_of_the_policys_and_leave_the_scale_as_it_is():
    trainer = Trainer(CriticScorer(build_tiny_critic(0)), ADAMW, ALONE, num_steps=4)
    job = _job(reward={"form": "airl", "normalise": "running"})
    learner, question = CriticLearner(trainer, _policy(), job, TOKENIZER), _question()
    seen = learner.score([question])[0]
    group = Group(
        question.demonstration.prompt_ids, [Trace(s.token_ids, key) for key, s in enumerate(question.samples)]
    )
    before = learner.state()["scale"]
    raw = score_traces(trainer, [group], micro_batch_tokens=4096)
    found = learner.as_the_policy_gets_them(raw, [group])
    assert all(torch.allclose(found[key], row, atol=1e-5) for key, row in enumerate(seen))
    assert not torch.allclose(found[0], raw[0], atol=0.1)
    assert learner.state()["scale"] == before


def test_a_sample_that_reaches_the_experts_answer_changes_sides_only_where_the_job_says_so():
    [switched] = _learner(relabel_by_answer=True).label([_question()], 0, 0)
    [kept] = _learner(relabel_by_answer=False).label([_question()], 0, 0)
    assert _origins(switched) == [("expert", True), ("agreeing_sample", True), ("other_sample", False)]
    assert _origins(kept) == [("expert", True), ("other_sample", False), ("other_sample", False)]


def test_each_positive_is_corrupted_as_often_as_asked_and_stays_with_its_own_question():
    both = [_question(20), _question(21)]
    for perturb, num_positives in (("experts", 1), ("positives", 2)):  # the expert; and the sample that agrees
        labelled = _learner(perturb=perturb, perturbations_per_positive=2).label(both, 0, 0)
        for question, traces in zip(both, labelled, strict=True):
            corrupted = [trace for trace in traces.traces if trace.origin == "corrupted"]
            assert traces.prompt_ids == question.demonstration.prompt_ids
            assert len(corrupted) == 2 * num_positives
            assert not any(trace.is_expert_like for trace in corrupted)


def test_a_corruption_keeps_the_format_and_knows_its_wrong_tokens():
    [labelled] = _learner(perturbations_per_positive=8, perturb="experts").label([_question()], 0, 0)
    expert = labelled.traces[0].solution_ids
    for trace in (one for one in labelled.traces if one.origin == "corrupted"):
        assert extract_answer(decode_solution(TOKENIZER, trace.solution_ids), AnswerRule.GSM8K) is not None
        assert trace.solution_ids[: trace.first_error] == expert[: trace.first_error]
        assert trace.solution_ids[trace.first_error] != expert[trace.first_error]


def test_replay_adds_its_part_of_the_batch_from_earlier_rounds_and_forgets_beyond_its_capacity():
    # Of 4 traces a question (an expert and 3 samples) a capacity of 8 holds 2 questions; a fraction of 0.5 adds as many as are fresh.
    learner = _learner(replay_capacity=8, replay_fraction=0.5, perturbations_per_positive=0)
    first, second, third = (learner.label([_question(number)], 0, 0) for number in (20, 21, 22))
    assert learner.update(first, 0)["critic/num_expert"] == 1  # nothing to remember yet
    assert learner.update(second, 1)["critic/num_expert"] == 2
    learner.update(third, 2)
    assert [question.prompt_ids for question in learner._replay] == [second[0].prompt_ids, third[0].prompt_ids]


def test_the_expert_joins_the_group_as_one_more_right_member_with_the_policys_own_log_probabilities():
    policy, question = _policy(), _question()
    alone = PolicyLearner(policy, _job(policy={"expert_in_group": False}), _job().reward, None)
    joined = PolicyLearner(policy, _job(policy={"expert_in_group": True}), _job().reward, None)
    assert alone.with_experts([question]) == [question]
    [members] = joined.with_experts([question])
    assert members.agrees == (True, False, True)
    assert members.samples[-1].token_ids == question.demonstration.solution_ids
    assert len(members.samples[-1].logprobs) == len(question.demonstration.solution_ids)


class _Warm:
    """The policy as it is now for a reference, and what it was asked about."""

    def __init__(self, policy):
        self.runtime, self._policy = policy.runtime, policy
        self.asked = []

    def forward(self, batch):
        self.asked += [
            tuple(row[mask].tolist()) for row, mask in zip(batch.solution_ids_ST, batch.solution_mask_ST, strict=True)
        ]
        return self._policy.forward(batch)


def test_the_warm_start_is_asked_only_about_samples_that_weigh_something():
    learner, policy, questions = _learner(), _policy(), [_question(20), _question(21)]
    warm = _Warm(policy)
    job = _job(policy={"kl_coefficient": 0.5, "branches_per_sample": 2})
    learning = PolicyLearner(policy, job, job.reward, warm)
    length = [[len(sample.token_ids) for sample in question.samples] for question in questions]
    rewards = [[torch.full((n,), value) for n, value in zip(length[0], (1.0, -1.0), strict=True)]]
    rewards += [[torch.zeros(n) for n in length[1]]]  # no spread: it teaches nothing but by its branches
    judged = learner.judge_branches(questions, 0)
    metrics = learning.update(questions, rewards, judged)
    assert sorted(warm.asked) == sorted(sample.token_ids for sample in questions[0].samples)
    assert metrics["policy/kl"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["policy/groups_without_spread"] == 1
    assert math.isfinite(metrics["policy/loss"])
