"""What airl and grpo share: the policy with its engine and reference, and the loop over rounds with checks and checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from irlops.contracts.jobs import ReinforcementJob
from irlops_jobs.checkpoints.store import CheckpointStore
from irlops_jobs.collapse import CollapseGuard
from irlops_jobs.distributed.heap import give_back_freed_memory
from irlops_jobs.distributed.trainer import Trainer
from irlops_jobs.models.build import build_policy, identity_of
from irlops_jobs.models.scorers import PolicyScorer
from irlops_jobs.rollouts.carriers import RolloutEngine
from irlops_jobs.rollouts.engines import build_engine
from irlops_jobs.rollouts.held_out import HeldOut
from irlops_jobs.rollouts.rounds import SampledQuestion, sample_round
from irlops_jobs.rollouts.sampling import derive_seed
from irlops_jobs.session import EncodedDemonstration, Session, encode_all
from irlops_jobs.updates.policy_learner import FrozenReference


@dataclass
class PolicySide:
    """The policy, what it samples with, and what it is held to."""

    session: Session
    job: ReinforcementJob
    tokenizer: PreTrainedTokenizerBase
    trainer: Trainer
    engine: RolloutEngine
    reference: FrozenReference | None
    demonstrations: list[EncodedDemonstration]
    held_out: HeldOut

    def sample(self, round_index: int) -> list[SampledQuestion]:
        return sample_round(
            self.engine,
            self.demonstrations,
            self.tokenizer,
            self.session.runtime,
            round_index=round_index,
            num_questions=self.job.prompts_per_round,
            num_samples=self.job.rollouts.samples_per_prompt,
            seed=self.job.seed,
        )


def set_up_policy(session: Session, job: ReinforcementJob) -> PolicySide:
    """Build the policy, keep its warm start as the reference, and encode the demonstrations."""
    model, tokenizer = build_policy(job, session.environment)
    session.log_data()
    scorer = PolicyScorer(model, autocast=job.autocast, temperature=job.rollouts.temperature)
    reference_scorer = None
    if job.policy.kl_coefficient > 0:
        reference_scorer = scorer if job.model.lora else copy.deepcopy(scorer)
    trainer = Trainer(
        scorer,
        job.policy.optimizer,
        session.runtime,
        num_steps=job.num_rounds * job.policy.updates_per_round,
        sharding=job.sharding,
    )
    reference = None
    if reference_scorer is not None:
        reference = FrozenReference(reference_scorer, trainer, adapters_off=job.model.lora is not None)
    engine = build_engine(
        job.rollouts,
        model,
        tokenizer,
        max_length=job.model.max_length,
        with_alternatives=job.policy.branches_per_sample > 0,
    )
    held_out = HeldOut(
        session.demonstrations.dev[: job.evaluate_prompts],
        engine,
        tokenizer,
        session.runtime,
        seed=job.seed,
        micro_batch_tokens=job.micro_batch_tokens,
    )
    demonstrations = encode_all(session, tokenizer, session.demonstrations.train)
    return PolicySide(session, job, tokenizer, trainer, engine, reference, demonstrations, held_out)


@dataclass(frozen=True)
class Loop:
    """The rounds of one job.

    Args:
        do_round: trains on round ``i`` and returns its metrics.
        check: samples held-out questions after round ``i`` and returns ``dev/...`` metrics.
        progress: JSON-able state besides weights and optimizers, to be saved; ``restore`` takes it back.
    """

    side: PolicySide
    trainers: Mapping[str, Trainer]
    do_round: Callable[[int], dict[str, float]]
    check: Callable[[int], dict[str, float]]
    progress: Callable[[], dict[str, Any]]
    restore: Callable[[Mapping[str, Any]], None]
    before_first_round: Callable[[], dict[str, float]] = dict

    def run(self) -> None:
        """All rounds from the latest checkpoint on; ends with the last healthy weights loaded."""
        session, job = self.side.session, self.side.job
        store = CheckpointStore(
            session.run_dir, keep=job.checkpoints.keep, runtime=session.runtime, identity=identity_of(job)
        )
        guard = CollapseGuard(job.collapse)
        start = self._resume(store, guard)
        if start == 0:
            session.record(0, self.before_first_round() | self.check(0))
        for index in range(start, job.num_rounds):
            torch.manual_seed(derive_seed("round", job.seed, index, session.runtime.rank))  # dropout, also when resumed
            metrics = self.do_round(index)
            give_back_freed_memory()
            done = index + 1
            if done % job.evaluate_every == 0 or done == job.num_rounds:
                metrics |= self.check(done)
                verdict = guard.judge(metrics, is_last=done == job.num_rounds)
                for warning in verdict.warnings:
                    session.say(f"warning: round {done}: {warning}")
                if verdict.is_healthy:
                    self._save(store, guard, done, pin=True)
                elif verdict.should_roll_back and self._rolled_back(store, guard, done, metrics):
                    return
            session.record(done, metrics)
            session.say(progress_line(done, job.num_rounds, metrics))
            stopping = session.runtime.agree_to_stop()
            if stopping or done % job.checkpoints.every == 0 or done == job.num_rounds:
                self._save(store, guard, done)
            if stopping and done < job.num_rounds:
                session.stop_if_asked()

    def _resume(self, store: CheckpointStore, guard: CollapseGuard) -> int:
        resumed = store.load_latest(self.trainers)
        session = self.side.session
        if resumed is None:
            session.forget_after(-1)
            return 0
        start, progress = resumed
        guard.restore(progress["guard"])
        self.restore(progress)
        self.side.engine.load_weights(self.side.trainer.scorer.model)  # pyright: ignore[reportArgumentType]
        session.forget_after(start)
        session.say(f"{session.job.run_name}: resumed after round {start}")
        return start

    def _save(self, store: CheckpointStore, guard: CollapseGuard, done: int, *, pin: bool = False) -> None:
        store.save(done, self.trainers, self.progress() | {"guard": guard.state()}, pin=pin)

    def _rolled_back(self, store: CheckpointStore, guard: CollapseGuard, done: int, metrics: dict[str, float]) -> bool:
        """Load the last healthy weights; False when no check has been healthy so far."""
        session, healthy = self.side.session, store.pinned_step()
        if healthy is None:
            session.say(f"warning: round {done}: no check was healthy so far, so there is no pair to go back to.")
            return False
        session.record(done, metrics | {"collapse/rolled_back": 1.0})
        store.load(healthy, self.trainers)
        session.say(
            f"warning: training collapsed ({guard.last_reasons}); rolled back to the pair of round {healthy} and stopped."
        )
        return True


def progress_line(done: int, total: int, metrics: Mapping[str, float]) -> str:
    """The few numbers that tell whether a run is alive and well."""
    shown = (
        ("accuracy", "rollout/accuracy"),
        ("critic", "critic/loss"),
        ("reward right", "reward/right"),
        ("wrong", "reward/wrong"),
        ("kl", "policy/kl"),
        ("dev accuracy", "dev/accuracy"),
        ("dev auroc", "dev/auroc"),
    )
    parts = [f"{label} {metrics[key]:.3f}" for label, key in shown if key in metrics]
    return f"round {done:4d}/{total}  " + "  ".join(parts)
