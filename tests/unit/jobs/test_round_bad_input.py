"""Odd samples and odd numbers in a round: each is left out, counted or refused, and none becomes a silent wrong number."""

from dataclasses import replace

import pytest
import torch

from irlops.contracts.jobs import AirlJob, OptimizerConfig, PolicyConfig, RewardConfig, parse_job
from irlops.errors import DivergenceError
from irlops_jobs.demonstrations.carriers import Demonstration
from irlops_jobs.distributed.runtime import Runtime
from irlops_jobs.distributed.trainer import MAX_SKIPPED_IN_A_ROW, Trainer
from irlops_jobs.models.build import require_same_everywhere
from irlops_jobs.models.scorers import CriticScorer, PolicyScorer
from irlops_jobs.models.tiny import build_tiny_critic, build_tiny_policy
from irlops_jobs.models.tokenizers import build_tiny_tokenizer
from irlops_jobs.rewards.advantages import group_advantages
from irlops_jobs.rollouts.carriers import Sample
from irlops_jobs.rollouts.rounds import judge_samples
from irlops_jobs.session import encode_demonstration
from irlops_jobs.updates.critic_learner import CriticLearner
from irlops_jobs.updates.policy_learner import PolicyLearner
from support.miniature_jobs import miniature

ALONE = Runtime(rank=0, world_size=1, device=torch.device("cpu"))
TOKENIZER = build_tiny_tokenizer()
END = TOKENIZER.eos_token_id
SGD_LIKE = OptimizerConfig(learning_rate=0.01)
EXPERT = "2 + 3 = 5\n#### 5"


def _job(**changes) -> AirlJob:
    return parse_job(miniature("airl", **changes), origin="test")


def _question(*texts: str):
    demonstration = Demonstration("What is 2 + 3?", EXPERT, "5", "test:0")
    encoded = encode_demonstration(TOKENIZER, demonstration, max_length=128)
    samples = []
    for text in texts:
        ids = (*TOKENIZER(text, add_special_tokens=False)["input_ids"], END)
        samples.append(Sample(ids, (-0.5,) * len(ids), truncated=False))
    return judge_samples(encoded, samples, TOKENIZER)


def _policy_trainer() -> Trainer:
    return Trainer(PolicyScorer(build_tiny_policy(0)), SGD_LIKE, ALONE, num_steps=10)


def _weights(trainer: Trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.scorer.parameters()]


def _unchanged(trainer: Trainer, before: list[torch.Tensor]) -> bool:
    return all(torch.equal(now, then) for now, then in zip(trainer.scorer.parameters(), before, strict=True))


@pytest.mark.parametrize(
    "text", ["I don't know.", "", "####", "#### five"], ids=["words", "empty", "no number", "spelled"]
)
def test_a_sample_without_a_readable_answer_never_agrees(text):
    assert _question(text).agrees == (False,)


def test_a_sample_with_the_right_answer_that_ran_out_of_tokens_does_not_agree():
    question = _question(EXPERT)
    cut = [replace(question.samples[0], truncated=True)]
    assert judge_samples(question.demonstration, cut, TOKENIZER).agrees == (False,)


def test_samples_that_are_all_the_same_teach_the_policy_nothing_and_are_counted():
    trainer, question = _policy_trainer(), _question("#### 6", "#### 6", "#### 6")
    before = _weights(trainer)
    rewards = [[torch.full((len(sample.token_ids),), 0.5) for sample in question.samples]]
    metrics = PolicyLearner(trainer, _job(), RewardConfig(), None).update([question], rewards)
    assert (metrics["policy/skipped"], metrics["policy/groups_without_spread"]) == (1.0, 1.0)
    assert _unchanged(trainer, before)


def test_one_group_without_spread_is_left_out_of_the_others_update():
    trainer = _policy_trainer()
    same, different = _question("#### 6", "#### 6"), _question(EXPERT, "#### 6")
    rewards = [[torch.full((len(s.token_ids),), value) for s, value in zip(q.samples, values, strict=True)]
               for q, values in ((same, (0.5, 0.5)), (different, (1.0, -1.0)))]  # fmt: skip
    metrics = PolicyLearner(trainer, _job(), RewardConfig(), None).update([same, different], rewards)
    assert (metrics["policy/skipped"], metrics["policy/groups_without_spread"]) == (0.0, 1.0)


def test_a_reward_that_is_not_a_number_gives_no_advantage():
    reward_GT, mask_GT = torch.tensor([[float("nan")], [1.0]]), torch.ones(2, 1, dtype=torch.bool)
    used_G = torch.ones(2, dtype=torch.bool)
    assert group_advantages(reward_GT, mask_GT, policy=PolicyConfig(), reward=RewardConfig(), used_G=used_G) is None


def test_an_empty_completion_is_one_wrong_token_to_the_critic():
    critic = Trainer(CriticScorer(build_tiny_critic(0)), SGD_LIKE, ALONE, num_steps=10)
    learner = CriticLearner(critic, _policy_trainer(), _job(), TOKENIZER)
    question = _question("", EXPERT)
    [labelled] = learner.label([question], 0, 0)
    assert [(len(t.solution_ids), t.is_expert_like) for t in labelled.traces if t.origin == "other_sample"] == [
        (1, False)
    ]
    metrics = learner.update([labelled], 0)
    assert metrics["critic/skipped"] == 0.0
    [[empty, _]] = learner.score([question])
    assert empty.shape == (1,)
    assert empty.isfinite().all()


def test_a_step_whose_loss_is_not_a_number_is_left_out_with_a_warning(capsys):
    trainer = _policy_trainer()
    before = _weights(trainer)
    metrics = trainer.step([0], lambda module, _: _of(module) * float("nan"))
    assert metrics["skipped"] == 1.0
    assert _unchanged(trainer, before)
    assert "warning: left out step 1 of the PolicyScorer: loss nan" in capsys.readouterr().out


def test_several_such_steps_in_a_row_stop_the_job_with_what_to_do():
    trainer = _policy_trainer()
    for _ in range(MAX_SKIPPED_IN_A_ROW - 1):
        trainer.step([0], lambda module, _: _of(module) * float("inf"))
    with pytest.raises(DivergenceError, match=r"5 steps of the PolicyScorer in a row.*Lower optimizer.learning_rate"):
        trainer.step([0], lambda module, _: _of(module) * float("inf"))


def test_one_good_step_forgives_the_bad_ones_before_it():
    trainer = _policy_trainer()
    for factor in [float("nan")] * (MAX_SKIPPED_IN_A_ROW - 1) + [1.0] + [float("nan")] * (MAX_SKIPPED_IN_A_ROW - 1):
        trainer.step([0], lambda module, _, factor=factor: _of(module) * factor)
    assert trainer.num_steps_done == 2 * MAX_SKIPPED_IN_A_ROW - 1


def _of(module: torch.nn.Module) -> torch.Tensor:
    return sum(parameter.square().sum() for parameter in module.parameters())


class TwoProcesses(Runtime):
    """What the other process says of itself is made up."""

    def gather(self, item):
        other = {key: value + (key == "b") for key, value in item.items()}
        return [item, other]


def test_weights_that_differ_between_processes_are_not_exported():
    runtime = TwoProcesses(0, 2, torch.device("cpu"))
    with pytest.raises(DivergenceError, match=r"1 of 2 weights of the policy differ between processes \(b\)"):
        require_same_everywhere({"a": torch.ones(2), "b": torch.ones(3)}, runtime, "policy")


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_each_critic_update_sees_the_same_questions_however_many_processes_share_them(num_processes):
    job = _job(prompts_per_round=6, critic={"updates_per_round": 2})
    seen = {0: [], 1: []}
    for rank in range(num_processes):
        trainer = Trainer(CriticScorer(build_tiny_critic(0)), SGD_LIKE, ALONE, num_steps=1)
        trainer.runtime = Runtime(rank, num_processes, torch.device("cpu"))
        learner = CriticLearner(trainer, _policy_trainer(), job, TOKENIZER)
        for update, indices in seen.items():
            indices += learner._part(trainer.runtime.share(range(6)), update)
    assert {update: sorted(indices) for update, indices in seen.items()} == {0: [0, 1, 2], 1: [3, 4, 5]}
