"""Supervised warm start: maximise the likelihood of expert solutions, each token weighing the same.

This is also the baseline that every other row of a results table is compared with.
"""

# Dimension key: S solutions, T solution tokens (right-padded).
from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from irlops.contracts.jobs import JobEnvironment, RolloutConfig, SftJob
from irlops.errors import DataError
from irlops_jobs.checkpoints.store import CheckpointStore
from irlops_jobs.distributed.trainer import Trainer
from irlops_jobs.launch import run_worker
from irlops_jobs.models.build import build_policy, export_policy, identity_of
from irlops_jobs.models.scorers import PolicyScorer
from irlops_jobs.rollouts.engines import build_engine
from irlops_jobs.rollouts.held_out import HeldOut
from irlops_jobs.rollouts.sampling import derive_seed
from irlops_jobs.session import EncodedDemonstration, Session, encode_all, open_session
from irlops_jobs.updates.microbatches import Group, MicroBatch, Trace, plan

POOL_BATCHES = 32
"""Batches are cut from length-sorted pools of this many, which takes out most of the padding and keeps the order random."""


def sft(job: SftJob, environment: JobEnvironment) -> None:
    """Run the job to its end, or to the next checkpoint after SIGTERM."""
    with open_session(job, environment) as session:
        model, tokenizer = build_policy(job, environment)
        session.log_data()
        demonstrations = encode_all(session, tokenizer, session.demonstrations.train)
        trainer = Trainer(
            PolicyScorer(model, autocast=job.autocast),
            job.optimizer,
            session.runtime,
            num_steps=job.num_steps,
            sharding=job.sharding,
        )
        store = CheckpointStore(
            session.run_dir, keep=job.checkpoints.keep, runtime=session.runtime, identity=identity_of(job)
        )
        resumed = store.load_latest({"policy": trainer})
        start = resumed[0] if resumed else 0
        session.forget_after(start)
        session.say(f"{job.run_name}: {len(demonstrations)} demonstrations, steps {start} to {job.num_steps}")
        held_out = _held_out(session, job, model, tokenizer) if job.evaluate_every else None
        batches = batches_from(demonstrations, job.batch_size, seed=job.seed)
        for step, batch in enumerate(
            islice(batches, job.num_steps)
        ):  # none is left when a job that had ended is run again
            if step < start:
                continue
            torch.manual_seed(derive_seed("step", job.seed, step, session.runtime.rank))  # dropout, also when resumed
            _train_step(session, trainer, batch, step + 1)
            if held_out and (step + 1) % job.evaluate_every == 0:
                session.record(step + 1, held_out.check(step + 1))
            is_last = step + 1 == job.num_steps
            stopping = session.runtime.agree_to_stop()
            if stopping or (step + 1) % job.checkpoints.every == 0 or is_last:
                store.save(step + 1, {"policy": trainer}, {})
            if stopping and not is_last:
                session.stop_if_asked()
        export_policy(session, trainer, tokenizer)


def _held_out(session: Session, job: SftJob, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> HeldOut:
    engine = build_engine(RolloutConfig(), model, tokenizer, max_length=job.model.max_length)
    rows = session.demonstrations.dev[: job.evaluate_prompts]
    return HeldOut(rows, engine, tokenizer, session.runtime, seed=job.seed, micro_batch_tokens=job.micro_batch_tokens)


def _train_step(session: Session, trainer: Trainer, batch: Sequence[EncodedDemonstration], step: int) -> None:
    mine = session.runtime.share(batch)
    num_tokens = sum(len(one.solution_ids) for one in batch)
    groups = [Group(one.prompt_ids, [Trace(one.solution_ids, 1.0 / num_tokens)]) for one in mine]
    micro_batches = plan(groups, max_tokens=session.job.micro_batch_tokens, runtime=session.runtime, idle=0.0)
    metrics = trainer.step(micro_batches, negative_log_likelihood)
    session.record(step, {f"sft/{name}": value for name, value in metrics.items()} | {"sft/tokens": num_tokens})
    if step % 20 == 0 or step == 1:
        session.say(f"step {step:5d}  loss {metrics['loss']:.3f} nats/token")


def negative_log_likelihood(module: nn.Module, micro: MicroBatch[float]) -> Tensor:
    """Weighted sum over solution tokens; a payload is the weight of each of its tokens.

    Returns:
        () float32, nats.
    """
    logprob_ST, _ = module(micro.batch)
    weight_S = logprob_ST.new_tensor(micro.payloads)
    return -(logprob_ST * weight_S[:, None]).sum()


def batches_from(
    demonstrations: Sequence[EncodedDemonstration], batch_size: int, *, seed: int
) -> Iterator[list[EncodedDemonstration]]:
    """Endless global batches of similar length, in an order that depends on the seed alone.

    Raises:
        DataError: fewer demonstrations than one batch.
    """
    if len(demonstrations) < batch_size:
        raise DataError(
            f"{len(demonstrations)} demonstrations are fewer than one batch of {batch_size}. Lower batch_size or raise data.num_train."
        )
    epoch = 0
    while True:
        rng = random.Random(derive_seed("sft", seed, epoch))  # noqa: S311 - not for secrets
        order = list(range(len(demonstrations)))
        rng.shuffle(order)
        for start in range(0, len(order) - batch_size + 1, batch_size * POOL_BATCHES):
            pool = sorted(order[start : start + batch_size * POOL_BATCHES], key=lambda i: _length(demonstrations[i]))
            cuts = list(range(0, len(pool) - batch_size + 1, batch_size))
            rng.shuffle(cuts)
            for cut in cuts:
                yield [demonstrations[i] for i in pool[cut : cut + batch_size]]
        epoch += 1


def _length(demonstration: EncodedDemonstration) -> int:
    return len(demonstration.prompt_ids) + len(demonstration.solution_ids)


if __name__ == "__main__":
    run_worker(sft)
