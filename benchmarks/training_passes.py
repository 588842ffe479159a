"""Tokens per second of each model pass of a training round, beside a plain transformers loop doing the same work.

    python -m benchmarks.training_passes [--repetitions 5] [--sft-steps 560]

The `airl` job's own objects do our side: its engine, critic and policy learners, on one round of its own samples. The plain
side repeats each prompt for every sample and pads everything to one width: `generate` for rollouts, a batch forward and
backward over full logits for updates. Tokens are solution tokens, the same ones on both sides.
"""

# Dimension key: B sequences (prompt and solution), L their padded length, V vocabulary.
from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.training_support import (
    KL_COEFFICIENT,
    MAX_NEW_TOKENS,
    PROMPTS,
    SAMPLES,
    START,
    STATE_DIR,
    markdown,
    reinforcement_document,
    spread,
    warm_start,
)
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from irlops.contracts.jobs import AirlJob, JobEnvironment
from irlops_jobs.distributed.trainer import Trainer
from irlops_jobs.models.build import build_critic
from irlops_jobs.models.scorers import CriticScorer
from irlops_jobs.reinforcement import PolicySide, set_up_policy
from irlops_jobs.rollouts.rounds import SampledQuestion
from irlops_jobs.session import open_session
from irlops_jobs.updates.critic_labels import LabelledQuestion
from irlops_jobs.updates.critic_learner import CriticLearner
from irlops_jobs.updates.policy_learner import PolicyLearner

ADAMW = {"name": "adamw", "learning_rate": 1e-6}
"""Of both players on both sides, so that passes are compared, not optimizers."""


@dataclass(frozen=True)
class Padded:
    """Prompts and solutions side by side, as a plain loop has them.

    Example:
        ``Padded(ids_BL, attention_BL, solution_BL)``: token ids, which are not padding, which belong to a solution.
    """

    ids_BL: Tensor
    attention_BL: Tensor
    solution_BL: Tensor

    @classmethod
    def of(cls, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> Padded:
        """Pad (prompt, solution) pairs on the right."""
        width = max(len(prompt) + len(solution) for prompt, solution in pairs)
        ids_BL = torch.zeros(len(pairs), width, dtype=torch.long)
        attention_BL, solution_BL = torch.zeros_like(ids_BL), torch.zeros(ids_BL.shape, dtype=torch.bool)
        for row, (prompt, solution) in enumerate(pairs):
            end = len(prompt) + len(solution)
            ids_BL[row, :end] = torch.tensor(prompt + solution)
            attention_BL[row, :end] = 1
            solution_BL[row, len(prompt) : end] = True
        return cls(ids_BL, attention_BL, solution_BL)


class PlainLoop:
    """The passes as one writes them first.

    Args:
        attention: of the models; ``sdpa`` is what transformers chooses.
    """

    def __init__(self, critic: nn.Module, tokenizer: PreTrainedTokenizerBase, attention: str) -> None:
        folder = STATE_DIR / START / "policy"
        self._policy, self._reference = (
            AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention) for _ in range(2)
        )
        critic.set_attn_implementation(attention)  # pyright: ignore[reportCallIssue] - any transformers model has it
        self._critic, self._tokenizer = critic, tokenizer
        self._policy_optimizer = torch.optim.AdamW(self._policy.parameters(), lr=1e-6)
        trained = [parameter for parameter in critic.parameters() if parameter.requires_grad]
        self._critic_optimizer = torch.optim.AdamW(trained, lr=1e-6)

    @torch.no_grad()
    def rollouts(self, prompts: Sequence[tuple[int, ...]]) -> int:
        """Sample with ``generate``; returns the number of tokens written."""
        width, end = max(map(len, prompts)), self._tokenizer.eos_token_id
        rows = [[end] * (width - len(prompt)) + list(prompt) for prompt in prompts for _ in range(SAMPLES)]
        masks = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts for _ in range(SAMPLES)]
        out = self._policy.generate(  # pyright: ignore[reportAttributeAccessIssue] - every causal LM has it
            input_ids=torch.tensor(rows),
            attention_mask=torch.tensor(masks),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            max_new_tokens=MAX_NEW_TOKENS,
            pad_token_id=end,
        )
        written = out[:, width:] != end
        return int(written.sum()) + int((~written).any(1).sum())

    def policy_update(self, batch: Padded, advantage_B: Tensor) -> None:
        """Clipped policy gradient with KL to the start, over all logits at once."""
        with torch.no_grad():
            reference_BL = self._logprobs(self._reference, batch)
        logprob_BL = self._logprobs(self._policy, batch)
        ratio_BL = torch.exp(logprob_BL - logprob_BL.detach())
        gain_BL = torch.minimum(ratio_BL * advantage_B[:, None], ratio_BL.clamp(0.8, 1.28) * advantage_B[:, None])
        difference_BL = reference_BL - logprob_BL
        kl_BL = torch.exp(difference_BL) - difference_BL - 1
        mask_BL = batch.solution_BL[:, 1:]
        loss = ((KL_COEFFICIENT * kl_BL - gain_BL) * mask_BL).sum() / (len(mask_BL) * MAX_NEW_TOKENS)
        self._step(loss, self._policy, self._policy_optimizer)

    def critic_update(self, batch: Padded, expert_like_B: Tensor) -> None:
        """Binary cross-entropy on every solution token."""
        reward_BL = self._rewards(batch)
        target_BL = expert_like_B[:, None].expand_as(reward_BL)
        mask_BL = batch.solution_BL
        loss = nn.functional.binary_cross_entropy_with_logits(reward_BL[mask_BL], target_BL[mask_BL])
        self._step(loss, self._critic, self._critic_optimizer)

    @torch.no_grad()
    def scoring(self, batch: Padded) -> Tensor:
        """Token rewards (B, L)."""
        return self._rewards(batch)

    def _logprobs(self, model: nn.Module, batch: Padded) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits_BLV = model(input_ids=batch.ids_BL, attention_mask=batch.attention_BL).logits
        logprob_BLV = logits_BLV[:, :-1].float().log_softmax(-1)
        return logprob_BLV.gather(-1, batch.ids_BL[:, 1:, None]).squeeze(-1)

    def _rewards(self, batch: Padded) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = self._critic(input_ids=batch.ids_BL, attention_mask=batch.attention_BL)
        return out.logits.squeeze(-1).float()

    def _step(self, loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@dataclass
class OurSide:
    """The objects of a running airl job."""

    side: PolicySide
    critic: CriticLearner
    policy: PolicyLearner


def our_side(session: Any, job: AirlJob) -> OurSide:
    """Set up as ``irlops_jobs.airl`` does."""
    side = set_up_policy(session, job)
    scorer = CriticScorer(build_critic(job, session.environment, side.tokenizer), autocast=job.autocast)
    critic = Trainer(scorer, job.critic.optimizer, session.runtime, num_steps=job.num_rounds)
    learner = CriticLearner(critic, side.trainer, job, side.tokenizer)
    return OurSide(side, learner, PolicyLearner(side.trainer, job, job.reward, side.reference))


def compare(ours: OurSide, plains: dict[str, PlainLoop], repetitions: int) -> list[tuple[Any, ...]]:
    """Rows of the table: each pass on every side in turn; one pass of each warms up."""
    questions = ours.side.sample(0)
    labelled = ours.critic.label(questions, 0, 0)
    rows: list[tuple[Any, ...]] = []
    for name, (mine, plain_of) in passes(ours, questions, labelled).items():
        sides: dict[str, Callable[[], int]] = {"ours": mine}
        sides |= {title: plain_of(plain) for title, plain in plains.items()}
        rates: dict[str, list[float]] = {title: [] for title in sides}
        for repetition in range(repetitions + 1):
            for title, work in sides.items():
                start = time.perf_counter()
                num_tokens = work()
                if repetition:
                    rates[title].append(num_tokens / (time.perf_counter() - start))
        fastest = max(plains, key=lambda title: statistics.median(rates[title]))
        ratios = [mine / other for mine, other in zip(rates["ours"], rates[fastest], strict=True)]
        rows.append((name, *(spread(values) for values in rates.values()), spread(ratios, ".2f")))
    return rows


Pass = tuple[Callable[[], int], Callable[[PlainLoop], Callable[[], int]]]


def passes(
    ours: OurSide, questions: Sequence[SampledQuestion], labelled: Sequence[LabelledQuestion]
) -> dict[str, Pass]:
    """Our work and the plain loop's, by name; each returns how many solution tokens it went over."""
    prompts = [one.demonstration.prompt_ids for one in questions]
    samples = Padded.of([(one.demonstration.prompt_ids, s.token_ids) for one in questions for s in one.samples])
    traces = Padded.of([(one.prompt_ids, trace.solution_ids) for one in labelled for trace in one.traces])
    expert_like_B = torch.tensor([float(trace.is_expert_like) for one in labelled for trace in one.traces])
    advantage_B = torch.tensor([0.5 - place % 2 for _ in questions for place in range(SAMPLES)])
    # Every other sample is right, so that each group has a spread and is learnt from.
    rewards = [
        [torch.full((len(s.token_ids),), float(place % 2 == 0)) for place, s in enumerate(one.samples)]
        for one in questions
    ]

    def our_rollouts() -> int:
        return sum(len(s.token_ids) for group in _sample(ours, prompts) for s in group)

    return {
        "rollouts": (our_rollouts, lambda plain: lambda: plain.rollouts(prompts)),
        "critic update": (
            lambda: _tokens(traces, ours.critic.update(labelled, 0)),
            lambda plain: lambda: _tokens(traces, plain.critic_update(traces, expert_like_B)),
        ),
        "scoring": (
            lambda: _tokens(samples, ours.critic.score(questions)),
            lambda plain: lambda: _tokens(samples, plain.scoring(samples)),
        ),
        "policy update": (
            lambda: _tokens(samples, ours.policy.update(questions, rewards)),
            lambda plain: lambda: _tokens(samples, plain.policy_update(samples, advantage_B)),
        ),
    }


def _sample(ours: OurSide, prompts: Sequence[tuple[int, ...]]) -> Any:
    return ours.side.engine.sample(prompts, num_samples=SAMPLES, seeds=range(len(prompts)))


def _tokens(batch: Padded, _done: object) -> int:
    return int(batch.solution_BL.sum())


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--sft-steps", type=int, default=560, help="of the warm start, made once")
    options = parser.parse_args()
    warm_start(options.sft_steps)
    document: dict[str, Any] = reinforcement_document("airl", 1000) | {"run_name": "bench-passes"}
    for player in ("policy", "critic"):
        document[player]["optimizer"] = ADAMW
    document["policy"]["mask_truncated"] = False  # a group of nothing but cut samples would be left out
    job = AirlJob.model_validate(document)
    with open_session(job, JobEnvironment(state_dir=STATE_DIR)) as session:
        ours = our_side(session, job)
        # Their own, as like the job's as two copies of one start.
        critics = {
            attention: build_critic(job, session.environment, ours.side.tokenizer) for attention in ("sdpa", "eager")
        }
        plains = {f"plain, {name}": PlainLoop(critic, ours.side.tokenizer, name) for name, critic in critics.items()}
        rows = compare(ours, plains, options.repetitions)
    print(f"\n{PROMPTS} prompts x {SAMPLES} samples, {torch.get_num_threads()} threads; tokens/s, median (range)\n")
    print(markdown(["pass", "irlops", *plains, "times the faster plain loop"], rows))


if __name__ == "__main__":
    main()
