"""The policy's side of a round, the same for critic rewards (airl) and outcome rewards (grpo)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, pstdev

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from irlops.contracts.jobs import ReinforcementJob, RewardConfig
from irlops_jobs.distributed.trainer import Trainer
from irlops_jobs.models.scorers import PolicyScorer
from irlops_jobs.rewards.advantages import aggregate_rewards, clip_rewards, group_advantages
from irlops_jobs.rollouts.carriers import Sample
from irlops_jobs.rollouts.rounds import SampledQuestion
from irlops_jobs.updates.microbatches import Group, Trace
from irlops_jobs.updates.own_states import JudgedBranches
from irlops_jobs.updates.policy import PolicyTarget, Scoring, token_weights, trace_logprobs, update_policy


class PolicyLearner:
    """Turns one round's samples and their token rewards into a policy step.

    Args:
        reference: the warm start, frozen; None when no KL is asked for.
    """

    def __init__(
        self, trainer: Trainer, job: ReinforcementJob, reward: RewardConfig, reference: Scoring | None
    ) -> None:
        self._trainer, self._job, self._reward, self._reference = trainer, job, reward, reference

    def with_experts(self, questions: Sequence[SampledQuestion]) -> Sequence[SampledQuestion]:
        """Each question's group with the expert's solution as one more member, where the job asks for it.

        The expert didn't come from the policy; its log-probabilities are the policy's own, so its importance ratio
        starts at 1 and the member pulls on the policy in proportion to its advantage in the group.
        """
        if not self._job.policy.expert_in_group:
            return questions
        solutions = [question.demonstration.solution_ids for question in questions]
        groups = [
            Group(question.demonstration.prompt_ids, [Trace(solution, key)])
            for key, (question, solution) in enumerate(zip(questions, solutions, strict=True))
        ]
        logprobs = trace_logprobs(self._trainer, groups, micro_batch_tokens=self._job.micro_batch_tokens)
        return [
            replace(
                question,
                samples=(*question.samples, Sample(solution, tuple(logprobs[key].tolist()), truncated=False)),
                texts=(*question.texts, question.demonstration.demonstration.solution),
                agrees=(*question.agrees, True),
            )
            for key, (question, solution) in enumerate(zip(questions, solutions, strict=True))
        ]

    def update(
        self,
        questions: Sequence[SampledQuestion],
        rewards: Sequence[Sequence[Tensor]],
        judged: Sequence[JudgedBranches] = (),
    ) -> dict[str, float]:
        """One round's optimizer steps.

        Args:
            rewards: per question and sample the token rewards, (length,) float32, unclipped.
            judged: branches off the samples with the critic's opinion of them.
        Returns:
            What ``update_policy`` reports, plus how many groups taught nothing and the spread of trace rewards.
        """
        advantages = [self._advantages(question, rows) for question, rows in zip(questions, rewards, strict=True)]
        used = [(q, a) for q, a in zip(questions, advantages, strict=True) if a is not None]
        num_used, num_samples = self._trainer.runtime.total(len(used), sum(len(q.samples) for q, _ in used))
        (num_questions,) = self._trainer.runtime.total(len(questions))
        metrics = self._reward_metrics(rewards) | {"policy/groups_without_spread": num_questions - num_used}
        if num_used == 0 and not judged:
            return metrics | {"policy/skipped": 1.0}
        # Passes are shared with the branches, which are off the samples of all questions; groups that teach nothing weigh 0.
        shared = bool(judged) and not self._job.policy.expert_in_group
        taught = list(zip(questions, advantages, strict=True)) if shared else used
        groups = self._with_reference([self._group(q, a, num_samples) for q, a in taught])
        return metrics | update_policy(
            self._trainer,
            groups,
            config=self._job.policy,
            micro_batch_tokens=self._job.micro_batch_tokens,
            judged=judged,
        )

    def _advantages(self, question: SampledQuestion, rewards: Sequence[Tensor]) -> Tensor | None:
        lengths = torch.tensor([len(row) for row in rewards])
        reward_GT = clip_rewards(pad_sequence(list(rewards), batch_first=True), self._reward.clip)
        mask_GT = torch.arange(reward_GT.shape[1]) < lengths[:, None]
        used_G = torch.tensor([not (s.truncated and self._job.policy.mask_truncated) for s in question.samples])
        return group_advantages(reward_GT, mask_GT, policy=self._job.policy, reward=self._reward, used_G=used_G)

    def _group(self, question: SampledQuestion, advantage_GT: Tensor | None, num_samples: float) -> Group[PolicyTarget]:
        traces: list[Trace[PolicyTarget]] = []
        for index, sample in enumerate(question.samples):
            length = len(sample.token_ids)
            advantage_T = torch.zeros(length) if advantage_GT is None else advantage_GT[index]
            weight = token_weights(
                length,
                num_samples=num_samples,
                config=self._job.policy,
                max_new_tokens=self._job.rollouts.max_new_tokens,
            )
            if advantage_GT is None or (sample.truncated and self._job.policy.mask_truncated):
                weight = torch.zeros_like(weight)
            target = PolicyTarget(advantage_T[:length], torch.tensor(sample.logprobs), None, None, weight)
            traces.append(Trace(sample.token_ids, target))
        return Group(question.demonstration.prompt_ids, traces)

    def _with_reference(self, groups: list[Group[PolicyTarget]]) -> list[Group[PolicyTarget]]:
        """The same groups, held to the warm start; it is asked only about samples that weigh something."""
        if self._reference is None:
            return groups
        numbers = iter(range(sum(len(group.traces) for group in groups)))
        numbered = [[(next(numbers), trace) for trace in group.traces] for group in groups]
        weighing = [
            Group(group.prompt_ids, [Trace(t.solution_ids, number) for number, t in traces if t.payload.weight.any()])
            for group, traces in zip(groups, numbered, strict=True)
        ]
        logprobs = trace_logprobs(
            self._reference,
            [group for group in weighing if group.traces],
            micro_batch_tokens=self._job.micro_batch_tokens,
        )
        return [
            Group(group.prompt_ids, [_held_to(logprobs.get(number), trace) for number, trace in traces])
            for group, traces in zip(groups, numbered, strict=True)
        ]

    def _reward_metrics(self, rewards: Sequence[Sequence[Tensor]]) -> dict[str, float]:
        traces = [[_trace_reward(row, self._reward) for row in rows] for rows in rewards]
        num, total, spread = self._trainer.runtime.total(
            len(traces), sum(fmean(one) for one in traces), sum(pstdev(one) for one in traces)
        )
        return {"reward/mean": total / max(num, 1.0), "reward/group_std": spread / max(num, 1.0)}


def _held_to(logprob_reference: Tensor | None, trace: Trace[PolicyTarget]) -> Trace[PolicyTarget]:
    """The trace with its reference; one that weighs nothing has its engine's numbers there, which are finite and near."""
    target = trace.payload
    return Trace(
        trace.solution_ids,
        target.with_reference(target.logprob_engine if logprob_reference is None else logprob_reference),
    )


class FrozenReference:
    """Log-probabilities under the warm start: a frozen copy, or the policy with its adapters switched off."""

    def __init__(self, scorer: PolicyScorer, trainer: Trainer, *, adapters_off: bool) -> None:
        self.runtime = trainer.runtime
        self._scorer = scorer.to(trainer.runtime.device)
        self._adapters_off = adapters_off
        if not adapters_off:  # the policy's own scorer is left as it is: which of its weights learn is settled
            self._scorer.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, *args: object) -> tuple[Tensor, Tensor]:
        if not self._adapters_off:
            return self._scorer(*args)
        model: nn.Module = self._scorer.model
        with model.disable_adapter():  # pyright: ignore[reportCallIssue] - peft's wrapper
            return self._scorer(*args)


def _trace_reward(row: Tensor, config: RewardConfig) -> float:
    clipped = clip_rewards(row, config.clip)[None]
    mask = torch.ones_like(clipped, dtype=torch.bool)
    return float(aggregate_rewards(clipped, mask, aggregation=config.aggregation, gamma=config.gamma))
