"""Adversarial inverse reinforcement learning: policy and critic in turn, from demonstrations alone.

A round: sample solutions from the policy, update the critic to tell expert tokens from the policy's and from corrupted
ones, score the same samples with the updated critic, update the policy. In the first rounds only the critic learns.
Method: Fanconi et al., arXiv 2510.01857; docs/method.md says what is taken over and what is changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from irlops.contracts.jobs import AirlJob, JobEnvironment
from irlops.errors import PreemptedError
from irlops_jobs.distributed.heap import give_back_freed_memory
from irlops_jobs.distributed.trainer import Trainer
from irlops_jobs.launch import run_worker
from irlops_jobs.models.build import build_critic, export_critic, export_policy
from irlops_jobs.models.scorers import CriticScorer
from irlops_jobs.reinforcement import Loop, PolicySide, set_up_policy
from irlops_jobs.rewards.advantages import clip_rewards
from irlops_jobs.rollouts.held_out import aggregate_all
from irlops_jobs.rollouts.rounds import SampledQuestion
from irlops_jobs.session import METRICS_FILE, Session, open_session
from irlops_jobs.updates.critic_learner import CriticLearner
from irlops_jobs.updates.policy_learner import PolicyLearner

WARM_UP_CHUNK = 100
"""Updates between two lines of progress, and between two looks at whether to stop."""


def airl(job: AirlJob, environment: JobEnvironment) -> None:
    """Run the job to its end, to the next checkpoint after SIGTERM, or back to the last healthy pair."""
    with open_session(job, environment) as session:
        side = set_up_policy(session, job)
        critic = Trainer(
            CriticScorer(
                build_critic(job, environment, side.tokenizer),
                autocast=job.autocast,
                shaping=job.reward.shaping,
                num_top_layers=job.model.num_layers_that_learn_alone,
            ),
            job.critic.optimizer,
            session.runtime,
            num_steps=job.num_rounds * (job.critic.updates_per_round + job.critic.branch_updates_per_round)
            + job.critic.branch_warmup_updates,
            sharding=job.sharding,
        )
        rounds = AirlRounds(side, critic, job)
        Loop(
            side=side,
            trainers={"policy": side.trainer, "critic": critic},
            do_round=rounds.do_round,
            check=lambda done: side.held_out.check(done, critic, job.reward, rounds.as_the_policy_gets_them),
            progress=rounds.state,
            restore=rounds.restore,
            before_first_round=rounds.warm_up,
        ).run()
        export_policy(session, side.trainer, side.tokenizer)
        export_critic(session, critic, side.tokenizer)
        if session.runtime.is_main:
            _draw_training(session)


def _draw_training(session: Session) -> None:
    """Rewards and correctness over the rounds, beside the run's record."""
    from irlops_jobs.evaluation.pictures import draw_training  # matplotlib takes a second

    folder = session.run_dir / "pictures"
    draw_training(session.run_dir / METRICS_FILE, folder)
    session.tracking.log_artifact(folder, "training")


class AirlRounds:
    """The round of the algorithm; everything it draws depends on the seed and the round alone."""

    def __init__(self, side: PolicySide, critic: Trainer, job: AirlJob) -> None:
        self._side, self._job = side, job
        self._critic = CriticLearner(critic, side.trainer, job, side.tokenizer)
        self._policy = PolicyLearner(side.trainer, job, job.reward, side.reference)
        self.as_the_policy_gets_them = self._critic.as_the_policy_gets_them

    def do_round(self, index: int) -> dict[str, float]:
        """One round; returns its metrics."""
        timed, times = self._side.session.timed, dict[str, float]()
        with timed("rollouts", times):
            rollouts = self._side.sample(index)
        with timed("labels", times):
            labelled = self._critic.label(rollouts, index, self._side.session.runtime.rank)
        with timed("critic", times):
            metrics = self._critic.update(labelled, index)
        with timed("branches", times):
            metrics |= self._critic.learn_expert_states(
                self._side.demonstrations, self._job.critic.branch_updates_per_round, draw=f"round {index}"
            )
        moves = index >= self._job.critic.warmup_rounds
        with timed("scores", times):
            members = self._policy.with_experts(rollouts)
            rewards, judged = self._critic.judge(members, rollouts, index, with_branches=moves)
        metrics |= rollout_metrics(self._side, rollouts) | self._reward_of_sides(rollouts, rewards)
        if moves:
            with timed("policy", times):
                metrics |= self._policy.update(members, rewards, judged)
            with timed("weights", times):
                self._side.engine.load_weights(self._side.trainer.scorer.model)  # pyright: ignore[reportArgumentType]
        return metrics | times

    def warm_up(self) -> dict[str, float]:
        """Teach the critic from experts alone, before it meets the first sample.

        Raises:
            PreemptedError: asked to stop; nothing is saved yet, so the next start begins here again.
        """
        session, total = self._side.session, self._job.critic.branch_warmup_updates
        metrics: dict[str, float] = {}
        for start in range(0, total, WARM_UP_CHUNK):
            num = min(WARM_UP_CHUNK, total - start)
            metrics = self._critic.learn_expert_states(self._side.demonstrations, num, draw=f"warm-up {start}")
            give_back_freed_memory()
            if metrics:
                right = metrics["critic/branch_accuracy"]
                session.say(f"critic warm-up {start + num:4d}/{total}  expert token preferred {right:.3f}")
            if session.runtime.agree_to_stop():
                raise PreemptedError(
                    f"{self._job.run_name} was asked to stop during the critic's warm-up, before anything was saved. "
                    "Start the same job again; it begins with the warm-up."
                )
        return metrics

    def _reward_of_sides(
        self, rollouts: Sequence[SampledQuestion], rewards: Sequence[Sequence[Tensor]]
    ) -> dict[str, float]:
        samples_only = [rows[: len(question.samples)] for question, rows in zip(rollouts, rewards, strict=True)]
        flat = [clip_rewards(row, self._job.reward.clip) for rows in samples_only for row in rows]
        agrees = [flag for question in rollouts for flag in question.agrees]
        values = aggregate_all(flat, self._job.reward).tolist()
        right = [value for value, flag in zip(values, agrees, strict=True) if flag]
        wrong = [value for value, flag in zip(values, agrees, strict=True) if not flag]
        sums = self._side.session.runtime.total(sum(right), len(right), sum(wrong), len(wrong))
        metrics = {}
        if sums[1]:
            metrics["reward/right"] = sums[0] / sums[1]
        if sums[3]:
            metrics["reward/wrong"] = sums[2] / sums[3]
        return metrics

    def state(self) -> dict[str, Any]:
        return {"critic": self._critic.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._critic.restore(state["critic"])


def rollout_metrics(side: PolicySide, rollouts: Sequence[SampledQuestion]) -> dict[str, float]:
    """Agreement with expert answers, length and truncation of a round's samples, over all processes."""
    samples = [sample for question in rollouts for sample in question.samples]
    local = {
        "rollout/accuracy": sum(flag for question in rollouts for flag in question.agrees),
        "rollout/num_tokens": sum(len(sample.token_ids) for sample in samples),
        "rollout/truncated": sum(sample.truncated for sample in samples),
    }
    count, *totals = side.session.runtime.total(len(samples), *local.values())  # a process may have no question at all
    return {name: total / count for name, total in zip(local, totals, strict=True)} | {"rollout/num_samples": count}


if __name__ == "__main__":
    run_worker(airl)
