"""The critic's side of a round: label what the policy wrote, corrupt what is right, remember some of the past, learn."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from irlops.contracts.jobs import AirlJob
from irlops_jobs.demonstrations.perturbations import PerturbationMix, perturb_positives, token_span
from irlops_jobs.demonstrations.steps import step_ends
from irlops_jobs.distributed.trainer import Trainer
from irlops_jobs.models.expert_rows import ExpertState
from irlops_jobs.rewards.running import RunningScale
from irlops_jobs.rollouts.rounds import SampledQuestion
from irlops_jobs.rollouts.sampling import derive_seed
from irlops_jobs.session import EncodedDemonstration
from irlops_jobs.updates.critic import score_traces, update_critic
from irlops_jobs.updates.critic_labels import LabelledQuestion, LabelledTrace, weigh
from irlops_jobs.updates.expert_states import ExpertDraw, prepare_states, update_on_expert_states
from irlops_jobs.updates.microbatches import Group, Trace
from irlops_jobs.updates.own_states import JudgedBranches, judge_branches, token_rewards
from irlops_jobs.updates.policy import trace_logprobs

Rewards = Mapping[int, Tensor]
"""Of traces by payload, (length,) float32 each."""

UPDATES_PREPARED_AT_ONCE = 16
"""On expert states: enough to fill passes that one update's few demonstrations would not; all of them are held in memory."""


class CriticLearner:
    """Labels a round, updates the critic on it, and scores samples with it."""

    def __init__(self, critic: Trainer, policy: Trainer, job: AirlJob, tokenizer: PreTrainedTokenizerBase) -> None:
        self._critic, self._policy, self._job, self._tokenizer = critic, policy, job, tokenizer
        self._replay: list[LabelledQuestion] = []
        self._scale = RunningScale()

    def label(self, questions: Sequence[SampledQuestion], round_index: int, first_index: int) -> list[LabelledQuestion]:
        """Both sides of every question, corruptions included.

        Args:
            first_index: position of the first question within the whole round, so that a process draws the
                corruptions that one process would have drawn for the same question.
        """
        labelled: list[LabelledQuestion] = []
        world = self._critic.runtime.world_size
        for offset, question in enumerate(questions):
            traces = [LabelledTrace(question.demonstration.solution_ids, True, "expert")]
            for sample, agrees in zip(question.samples, question.agrees, strict=True):
                positive = agrees and self._job.critic.relabel_by_answer
                traces.append(
                    LabelledTrace(sample.token_ids, positive, "agreeing_sample" if positive else "other_sample")
                )
            traces += self._corruptions(question, round_index, first_index + offset * world)
            labelled.append(LabelledQuestion(question.demonstration.prompt_ids, tuple(traces)))
        return labelled

    def _corruptions(self, question: SampledQuestion, round_index: int, index: int) -> list[LabelledTrace]:
        config = self._job.critic
        if config.perturbations_per_positive == 0:
            return []
        expert = question.demonstration.demonstration
        positives = [(expert.question, expert.solution)]
        if config.perturb == "positives" and config.relabel_by_answer:
            positives += [
                (expert.question, text) for text, ok in zip(question.texts, question.agrees, strict=True) if ok
            ]
        drawn = perturb_positives(
            positives,
            num_each=config.perturbations_per_positive,
            seed=self._job.seed,
            round_index=round_index,
            first_index=index * (1 + self._job.rollouts.samples_per_prompt),
        )
        return [
            self._corrupted(one.solution, one.first_error_start, one.first_error_end) for many in drawn for one in many
        ]

    def _corrupted(self, solution: str, start: int, end: int) -> LabelledTrace:
        encoded = self._tokenizer(solution, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = encoded["input_ids"]  # pyright: ignore[reportAssignmentType] - one text gives one list
        offsets: list[tuple[int, int]] = encoded["offset_mapping"]  # pyright: ignore[reportAssignmentType]
        first, behind = token_span(offsets, start, end)
        end_token: int = self._tokenizer.eos_token_id  # pyright: ignore[reportAssignmentType]
        return LabelledTrace((*ids, end_token), False, "corrupted", first_error=first, error_end=behind)

    def update(self, labelled: Sequence[LabelledQuestion], round_index: int) -> dict[str, float]:
        """``updates_per_round`` optimizer steps on this round, with earlier rounds mixed in where configured."""
        config = self._job.critic
        metrics: dict[str, float] = {}
        for update in range(config.updates_per_round):
            fresh = self._part(labelled, update)
            mixed = [*fresh, *self._remembered(len(fresh), round_index, update)]
            groups, counts = weigh(mixed, config, self._critic.runtime, self._step_ends)
            metrics = counts | update_critic(
                self._critic,
                self._policy,
                groups,
                config=config,
                reward=self._job.reward,
                micro_batch_tokens=self._job.micro_batch_tokens,
            )
        self._remember(labelled)
        return metrics

    def _part(self, labelled: Sequence[LabelledQuestion], update: int) -> list[LabelledQuestion]:
        """This process's questions of one update: blocks of the whole round, the same for any number of processes."""
        runtime, num_updates = self._critic.runtime, self._job.critic.updates_per_round
        return [
            question
            for offset, question in enumerate(labelled)
            if (runtime.rank + offset * runtime.world_size) * num_updates // self._job.prompts_per_round == update
        ]

    def learn_expert_states(
        self, demonstrations: Sequence[EncodedDemonstration], num_updates: int, *, draw: str
    ) -> dict[str, float]:
        """``num_updates`` steps on branches of demonstrations drawn afresh.

        Args:
            draw: names this occasion (a round, the warm-up); with the run's seed it fixes what is drawn.
        """
        metrics: dict[str, float] = {}
        updates = range(num_updates if self._job.critic.branches_per_expert else 0)
        for start in updates[::UPDATES_PREPARED_AT_ONCE]:
            block = updates[start : start + UPDATES_PREPARED_AT_ONCE]
            for states in self._expert_states(demonstrations, block, draw):
                metrics = update_on_expert_states(self._critic, states, micro_batch_tokens=self._job.micro_batch_tokens)
        return metrics

    def _expert_states(
        self, demonstrations: Sequence[EncodedDemonstration], block: Sequence[int], draw: str
    ) -> list[list[ExpertState]]:
        """This process's states of several updates; the policy is asked for all of them at once."""
        config, tokens, seed = self._job.critic, self._job.micro_batch_tokens, self._job.seed
        chosen: list[tuple[int, int]] = []  # update, demonstration
        for update in block:
            rng = random.Random(derive_seed("branches", seed, draw, update))  # noqa: S311 - not for secrets
            drawn = rng.choices(range(len(demonstrations)), k=config.branch_batch_size)
            chosen += [(update, index) for index in self._critic.runtime.share(drawn)]
        draws = [
            ExpertDraw(
                demonstrations[index],
                derive_seed("branch", seed, draw, update, index),
                self._corruptions_of(demonstrations[index], f"{draw} {update} {index}"),
            )
            for update, index in chosen
        ]
        states = prepare_states(self._policy, self._critic, draws, config=config, micro_batch_tokens=tokens)
        return [[state for state, (of, _) in zip(states, chosen, strict=True) if of == update] for update in block]

    def _corruptions_of(self, one: EncodedDemonstration, draw: str) -> list[tuple[int, ...]]:
        """Corrupted copies of an expert's solution, encoded, for branches."""
        num = self._job.critic.corrupted_branches_per_expert
        if num == 0:
            return []
        expert = one.demonstration
        (drawn,) = perturb_positives(
            [(expert.question, expert.solution)],
            num_each=num,
            seed=derive_seed("corrupted branch", self._job.seed, draw),
            round_index=0,
            mix=PerturbationMix.for_localisation(),
        )
        return [self._encode(corrupted.solution) for corrupted in drawn]

    def _encode(self, solution: str) -> tuple[int, ...]:
        ids: list[int] = self._tokenizer(solution, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportAssignmentType] - one text gives one list
        return (*ids, self._tokenizer.eos_token_id)  # pyright: ignore[reportReturnType]

    def judge(
        self,
        members: Sequence[SampledQuestion],
        rollouts: Sequence[SampledQuestion],
        index: int,
        *,
        with_branches: bool,
    ) -> tuple[list[list[Tensor]], list[JudgedBranches]]:
        """Token rewards of every member, and what the critic makes of branches off the rollouts.

        One pass gives both, unless rewards take more than the critic's pass (AIRL's form, a running scale) or the members
        aren't the rollouts.
        """
        plain = self._job.reward.form == "gail_logit" and self._job.reward.normalise == "none"
        if with_branches and plain and members is rollouts and (judged := self.judge_branches(rollouts, index)):
            return token_rewards(judged, rollouts), judged
        rewards = self.score(members)
        return rewards, self.judge_branches(rollouts, index) if with_branches else []

    def score(self, questions: Sequence[SampledQuestion]) -> list[list[Tensor]]:
        """Token rewards of every sample, as the critic sees them now; AIRL's form takes the log-probability off."""
        keys = iter(range(sum(len(question.samples) for question in questions)))
        groups = [
            Group(q.demonstration.prompt_ids, [Trace(sample.token_ids, next(keys)) for sample in q.samples])
            for q in questions
        ]
        rewards = score_traces(self._critic, groups, micro_batch_tokens=self._job.micro_batch_tokens)
        rewards = self._less_logprobs(rewards, groups)
        if self._job.reward.normalise == "running":
            self._scale.add(rewards.values(), self._critic.runtime)
        rewards = self._on_scale(rewards)
        return [[rewards[trace.payload] for trace in group.traces] for group in groups]

    def as_the_policy_gets_them(self, rewards: Rewards, groups: Sequence[Group[int]]) -> Rewards:
        """The critic's rewards of other samples, by payload, in the form and on the scale of those that the policy learns from."""
        return self._on_scale(self._less_logprobs(rewards, groups))

    def _less_logprobs(self, rewards: Rewards, groups: Sequence[Group[int]]) -> Rewards:
        if self._job.reward.form != "airl":
            return rewards
        logprobs = trace_logprobs(self._policy, groups, micro_batch_tokens=self._job.micro_batch_tokens)
        return {key: reward - logprobs[key] for key, reward in rewards.items()}

    def _on_scale(self, rewards: Rewards) -> Rewards:
        if self._job.reward.normalise != "running":
            return rewards
        return {key: self._scale.apply(reward) for key, reward in rewards.items()}

    def judge_branches(self, questions: Sequence[SampledQuestion], round_index: int) -> list[JudgedBranches]:
        """What the critic makes of the alternatives to the policy's own tokens, where the job asks for it."""
        if self._job.policy.branches_per_sample == 0:
            return []
        return judge_branches(
            self._policy,
            self._critic,
            questions,
            num_branches=self._job.policy.branches_per_sample,
            reward_limit=self._job.reward.clip,
            scale=self._scale if self._job.reward.normalise == "running" else None,
            micro_batch_tokens=self._job.micro_batch_tokens,
            draw=round_index,
        )

    def _remembered(self, num_fresh: int, round_index: int, update: int) -> list[LabelledQuestion]:
        fraction = self._job.critic.replay_fraction
        num = round(num_fresh * fraction / (1 - fraction)) if self._replay else 0
        if num == 0:
            return []
        rng = random.Random(derive_seed("replay", self._job.seed, round_index, update))  # noqa: S311 - not for secrets
        runtime = self._critic.runtime
        drawn = rng.choices(self._replay, k=num * runtime.world_size)
        return runtime.share(drawn)

    def _remember(self, labelled: Sequence[LabelledQuestion]) -> None:
        capacity = self._job.critic.replay_capacity
        if capacity == 0:
            return
        self._replay += self._critic.runtime.unshare(labelled)
        self._replay = self._replay[-max(1, capacity // (1 + self._job.rollouts.samples_per_prompt)) :]

    def _step_ends(self, solution_ids: tuple[int, ...]) -> list[int]:
        return step_ends(self._tokenizer, solution_ids)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides weights; the same on every process."""
        return {
            "replay": [
                [
                    q.prompt_ids,
                    [[t.solution_ids, t.is_expert_like, t.origin, t.first_error, t.error_end] for t in q.traces],
                ]
                for q in self._replay
            ],
            "scale": self._scale.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._scale.restore(state["scale"])
        self._replay = [
            LabelledQuestion(tuple(prompt), tuple(LabelledTrace(tuple(ids), *rest) for ids, *rest in traces))
            for prompt, traces in state["replay"]
        ]
