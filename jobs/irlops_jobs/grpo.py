"""Outcome-reward reinforcement learning on the same trainer: the upper reference for what demonstrations alone can teach.

A sample is worth 1 when it ends in the expert's answer and 0 otherwise (Shao et al. 2024, arXiv 2402.03300).
"""

from __future__ import annotations

import torch

from irlops.contracts.jobs import GrpoJob, JobEnvironment, RewardConfig
from irlops_jobs.airl import rollout_metrics
from irlops_jobs.launch import run_worker
from irlops_jobs.models.build import export_policy
from irlops_jobs.reinforcement import Loop, set_up_policy
from irlops_jobs.session import open_session
from irlops_jobs.updates.policy_learner import PolicyLearner

OUTCOME = RewardConfig(aggregation="last", clip=None)
"""The whole reward sits on the trace; every token carries it, so any aggregation reads the same number."""


def grpo(job: GrpoJob, environment: JobEnvironment) -> None:
    """Run the job to its end, or to the next checkpoint after SIGTERM."""
    with open_session(job, environment) as session:
        side = set_up_policy(session, job)
        learner = PolicyLearner(side.trainer, job, OUTCOME, side.reference)

        def do_round(index: int) -> dict[str, float]:
            rollouts = side.sample(index)
            members = learner.with_experts(rollouts)
            rewards = [
                [
                    torch.full((len(sample.token_ids),), float(agrees))
                    for sample, agrees in zip(question.samples, question.agrees, strict=True)
                ]
                for question in members
            ]
            metrics = rollout_metrics(side, rollouts) | learner.update(members, rewards)
            side.engine.load_weights(side.trainer.scorer.model)  # pyright: ignore[reportArgumentType]
            return metrics

        Loop(
            side=side,
            trainers={"policy": side.trainer},
            do_round=do_round,
            check=lambda done: side.held_out.check(done),
            progress=dict,
            restore=lambda _: None,
        ).run()
        export_policy(session, side.trainer, side.tokenizer)


if __name__ == "__main__":
    run_worker(grpo)
