"""Evaluation of a pair: sample test questions, score every token, select, localise, and write it all down.

Everything that reads test problems happens here, after training; the critic is calibrated on dev problems.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from irlops.answers import AnswerRule, extract_answer
from irlops.contracts.jobs import EvaluateJob, JobEnvironment
from irlops.errors import ConfigError, PairError, PreemptedError
from irlops_jobs.demonstrations.carriers import Demonstration
from irlops_jobs.demonstrations.perturbations import PerturbationMix, Perturbed, perturb_positives, token_span
from irlops_jobs.evaluation.carriers import CorruptedTrace, ScoredProblem, ScoredSample
from irlops_jobs.launch import run_worker
from irlops_jobs.models.build import build_critic, build_policy
from irlops_jobs.models.prompts import decode_solution, encode_prompt
from irlops_jobs.models.scorers import CriticScorer, PolicyScorer
from irlops_jobs.rollouts.carriers import Sample
from irlops_jobs.rollouts.engines import build_engine
from irlops_jobs.rollouts.sampling import derive_seed
from irlops_jobs.session import Session, encode_solution, open_session
from irlops_jobs.updates.critic import score_traces
from irlops_jobs.updates.microbatches import Group, Trace
from irlops_jobs.updates.policy import trace_logprobs


def evaluate(job: EvaluateJob, environment: JobEnvironment) -> None:
    """Evaluate the pair and every row it is compared with; writes ``<run>/evaluation/``.

    Raises:
        ConfigError: the job names no critic.
    """
    from irlops_jobs.evaluation.publish import publish_evaluations  # matplotlib and scikit-learn take a second

    if job.model.critic_from is None:
        raise ConfigError(
            f"{job.run_name} names no critic. Set model.critic_from to a folder such as airl-tiny/critic."
        )
    with open_session(job, environment) as session:
        signal.signal(signal.SIGTERM, _stop_at_once)
        judge = Judge.of(session, job)
        session.log_data()
        data = session.demonstrations
        session.say(f"{job.run_name}: calibrating on {min(job.num_dev_problems, len(data.dev))} dev problems")
        dev = judge.solve(judge.policy, data.dev[: job.num_dev_problems], "dev")
        rows: dict[str, list[ScoredProblem]] = {}
        for row, policy_from in {**job.compare, job.row: job.model.policy_from}.items():
            session.say(
                f"{job.run_name}: {row} solves {len(data.test)} test problems, {job.samples_per_problem} times each"
            )
            policy = judge.policy if row == job.row else judge.load_policy(policy_from)
            rows[row] = judge.solve(policy, data.test, "test")
        session.say(f"{job.run_name}: looking for the known first error of {job.num_corrupted} corrupted solutions")
        # How token rewards become a guess is chosen on dev problems, and judged on test problems.
        corrupted_dev, corrupted = judge.corrupted_traces(data.dev), judge.corrupted_traces(data.test)
        if session.runtime.is_main:
            publish_evaluations(
                session,
                job,
                dev=dev,
                rows=rows,
                corrupted_dev=corrupted_dev,
                corrupted=corrupted,
                tokenizer=judge.tokenizer,
            )
        session.runtime.barrier()


def _stop_at_once(*_: object) -> NoReturn:
    """Unlike training: nothing is saved halfway, so there is nothing to finish first."""
    raise PreemptedError("The evaluation was asked to stop. Start it again; it begins anew.")


def saying_now_and_then(
    say: Callable[[str], None], *, now_s: Callable[[], float] = time.monotonic
) -> Callable[[int, int], None]:
    """A line once sampling has taken two seconds, then one every ten; no more than what a log bears."""
    due_s = now_s() + 2

    def tell(num_done: int, num_problems: int) -> None:
        nonlocal due_s
        if num_done < num_problems and now_s() >= due_s:
            due_s = now_s() + 10
            say(f"sampled {num_done} of {num_problems} problems")

    return tell


class Judge:
    """The critic under evaluation, with what it needs to score anybody's samples."""

    def __init__(
        self,
        session: Session,
        job: EvaluateJob,
        policy: nn.Module,
        critic: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self._session, self._job = session, job
        self.policy, self.tokenizer = policy, tokenizer
        self._critic = FrozenScorer(CriticScorer(critic, autocast=job.autocast), session)

    @classmethod
    def of(cls, session: Session, job: EvaluateJob) -> Judge:
        policy, tokenizer = build_policy(job, session.environment)
        return cls(session, job, policy, build_critic(job, session.environment, tokenizer), tokenizer)

    def load_policy(self, policy_from: str | None) -> nn.Module:
        """Another row's policy.

        Raises:
            PairError: its tokens aren't the critic's, so its rewards would belong to other ones.
        """
        model = self._job.model.model_copy(update={"policy_from": policy_from})
        policy, tokenizer = build_policy(self._job.model_copy(update={"model": model}), self._session.environment)
        if tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise PairError(
                f"compare names {policy_from or 'the untrained preset'}, which uses another tokenizer ({len(tokenizer)} tokens) "
                f"than the critic ({len(self.tokenizer)}). Compare policies of the same family, or evaluate it with its own critic."
            )
        return policy

    def solve(self, policy: nn.Module, rows: Sequence[Demonstration], split: str) -> list[ScoredProblem]:
        """Sample and score every problem; the same list on every process, in the order of ``rows``."""
        runtime, job = self._session.runtime, self._job
        mine = runtime.share(list(enumerate(rows)))
        engine = build_engine(job.rollouts, policy.to(runtime.device), self.tokenizer, max_length=job.model.max_length)
        prompts = [encode_prompt(self.tokenizer, row.question) for _, row in mine]
        seeds = [derive_seed("evaluate", job.seed, split, index) for index, _ in mine]
        samples = engine.sample(
            prompts,
            num_samples=job.samples_per_problem,
            seeds=seeds,
            on_progress=saying_now_and_then(self._session.say),
        )
        engine.close()
        rewards = self._score(prompts, [[sample.token_ids for sample in group] for group in samples])
        problems = [
            self._problem(row, group, scored) for (_, row), group, scored in zip(mine, samples, rewards, strict=True)
        ]
        return runtime.unshare(problems)

    def _problem(self, row: Demonstration, samples: Sequence[Sample], rewards: Sequence[Tensor]) -> ScoredProblem:
        scored = [self._sample(sample, reward) for sample, reward in zip(samples, rewards, strict=True)]
        known = self._session.demonstrations.has_one_solution_each
        only = encode_solution(self.tokenizer, row.solution) if known else ()
        return ScoredProblem(question=row.question, gold=row.answer, samples=tuple(scored), only_solution_ids=only)

    def _sample(self, sample: Sample, reward: Tensor) -> ScoredSample:
        text = decode_solution(self.tokenizer, sample.token_ids)
        return ScoredSample(
            text=text,
            answer=None if sample.truncated else extract_answer(text, AnswerRule.GSM8K),
            num_tokens=len(sample.token_ids),
            token_rewards=tuple(reward.tolist()),
            token_logprobs=sample.logprobs,
            truncated=sample.truncated,
            answer_span=answer_span(self.tokenizer, sample.token_ids),
            token_ids=sample.token_ids,
        )

    def _score(
        self, prompts: Sequence[tuple[int, ...]], solutions: Sequence[Sequence[tuple[int, ...]]]
    ) -> list[list[Tensor]]:
        keys = iter(range(sum(map(len, solutions))))
        groups = [
            Group(prompt, [Trace(solution, next(keys)) for solution in many])
            for prompt, many in zip(prompts, solutions, strict=True)
        ]
        scored = score_traces(self._critic, groups, micro_batch_tokens=self._job.micro_batch_tokens)
        return [[scored[trace.payload] for trace in group.traces] for group in groups]

    def corrupted_traces(self, rows: Sequence[Demonstration]) -> list[CorruptedTrace]:
        """Expert solutions with one known first error, scored by the critic and by the policy's log-probability."""
        runtime, job = self._session.runtime, self._job
        chosen = list(rows[: job.num_corrupted])
        drawn = perturb_positives(
            [(row.question, row.solution) for row in chosen],
            num_each=1,
            seed=derive_seed("corrupt", job.seed),
            round_index=0,
            mix=PerturbationMix.for_localisation(),
        )
        cases = runtime.share([self._encode_corrupted(many[0].question, many[0]) for many in drawn if many])
        if not cases:
            return runtime.unshare([])
        groups = [Group(prompt, [Trace(ids, key)]) for key, (prompt, ids, _) in enumerate(cases)]
        tokens = job.micro_batch_tokens
        rewards = score_traces(self._critic, groups, micro_batch_tokens=tokens)
        reader = FrozenScorer(PolicyScorer(self.policy, autocast=job.autocast), self._session)
        logprobs = trace_logprobs(reader, groups, micro_batch_tokens=tokens)
        return runtime.unshare(
            [
                CorruptedTrace(
                    token_rewards=tuple(rewards[key].tolist()),
                    token_logprobs=tuple(logprobs[key].tolist()),
                    first_error_start=span[0],
                    first_error_end=span[1],
                    num_tokens=len(ids),
                    token_ids=ids,
                )
                for key, (_, ids, span) in enumerate(cases)
            ]
        )

    def _encode_corrupted(
        self, question: str, perturbed: Perturbed
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, int]]:
        encoded = self.tokenizer(perturbed.solution, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = encoded["input_ids"]  # pyright: ignore[reportAssignmentType] - one text gives one list
        offsets: list[tuple[int, int]] = encoded["offset_mapping"]  # pyright: ignore[reportAssignmentType]
        span = token_span(offsets, perturbed.first_error_start, perturbed.first_error_end)
        end: int = self.tokenizer.eos_token_id  # pyright: ignore[reportAssignmentType]
        return encode_prompt(self.tokenizer, question), (*ids, end), span


class FrozenScorer:
    """A scorer that only reads; it stands where training code expects a trainer."""

    def __init__(self, scorer: nn.Module, session: Session) -> None:
        self.runtime = session.runtime
        self._scorer = scorer.to(session.runtime.device).eval()

    @torch.no_grad()
    def forward(self, *args: Any) -> Any:
        return self._scorer(*args)


def answer_span(tokenizer: PreTrainedTokenizerBase, solution_ids: Sequence[int]) -> tuple[int, int] | None:
    """Tokens of the final answer's line (``#### 17`` and what follows), or None when there is none."""
    texts = [decode_solution(tokenizer, [token]) for token in solution_ids]
    before = "".join(texts).rfind("####")
    if before < 0:
        return None
    position = 0
    for index, text in enumerate(texts):
        position += len(text)
        if position > before:
            return index, len(solution_ids)
    return None


if __name__ == "__main__":
    run_worker(evaluate)
