"""Checks on held-out questions while training runs: fresh samples, their accuracy, and how well the critic sorts them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from irlops.answers import AnswerRule, answers_agree, extract_answer
from irlops.contracts.jobs import RewardConfig
from irlops_jobs.demonstrations.carriers import Demonstration
from irlops_jobs.distributed.runtime import Runtime
from irlops_jobs.distributed.trainer import Trainer
from irlops_jobs.models.prompts import decode_solution, encode_prompt
from irlops_jobs.rewards.advantages import aggregate_rewards, clip_rewards
from irlops_jobs.rollouts.carriers import RolloutEngine, Sample
from irlops_jobs.rollouts.sampling import derive_seed
from irlops_jobs.updates.critic import score_traces
from irlops_jobs.updates.microbatches import Group, Trace

ForPolicy = Callable[[Mapping[int, Tensor], Sequence[Group[int]]], Mapping[int, Tensor]]

SAMPLES_PER_QUESTION = 4
AGGREGATIONS = ("mean", "min", "product", "last", "discounted")


class HeldOut:
    """Held-out questions that no update has seen, sampled afresh at every check.

    Args:
        rows: dev demonstrations; their answers are only compared with.
    """

    def __init__(
        self,
        rows: Sequence[Demonstration],
        engine: RolloutEngine,
        tokenizer: PreTrainedTokenizerBase,
        runtime: Runtime,
        *,
        seed: int,
        micro_batch_tokens: int,
    ) -> None:
        self._mine = runtime.share([(row, encode_prompt(tokenizer, row.question)) for row in rows])
        self._indices = runtime.share(range(len(rows)))
        self._engine, self._tokenizer, self._runtime = engine, tokenizer, runtime
        self._seed, self._micro_batch_tokens = seed, micro_batch_tokens

    def check(
        self,
        step: int,
        critic: Trainer | None = None,
        reward: RewardConfig | None = None,
        for_policy: ForPolicy = lambda rewards, _: rewards,
    ) -> dict[str, float]:
        """Sample and judge.

        Args:
            for_policy: makes of the critic's rewards those that the policy learns from (another form, another scale).
        Returns:
            ``dev/accuracy`` (agreement with the expert's answer, an estimate of pass@1), ``dev/truncated``,
            ``dev/num_tokens``, ``dev/answered`` (samples with a final answer) and, with a critic, ``dev/auroc`` (left
            out while all samples are right or all wrong; also by every aggregation; of rewards as they are) and
            ``dev/reward_right``, ``dev/reward_wrong`` and ``dev/group_std`` (mean spread of trace rewards within a
            question) of rewards as the policy gets them, cut likewise.
        """
        prompts = [prompt for _, prompt in self._mine]
        seeds = [derive_seed("dev", self._seed, step, index) for index in self._indices]
        samples = self._engine.sample(prompts, num_samples=SAMPLES_PER_QUESTION, seeds=seeds)
        right = [
            [self._is_right(sample, row) for sample in group]
            for (row, _), group in zip(self._mine, samples, strict=True)
        ]
        part = {
            "right": [int(flag) for group in right for flag in group],
            "truncated": [int(sample.truncated) for group in samples for sample in group],
            "num_tokens": [len(sample.token_ids) for group in samples for sample in group],
            "answered": [int(self._answer(sample) is not None) for group in samples for sample in group],
        }
        if critic and reward:
            part |= self._rewards(prompts, samples, critic, reward, for_policy)
        everyone = self._runtime.gather(part)
        values = {name: [value for one in everyone for value in one[name]] for name in part}
        return _summary(values, reward.aggregation if reward else "")

    def _answer(self, sample: Sample) -> str | None:
        return extract_answer(decode_solution(self._tokenizer, sample.token_ids), AnswerRule.GSM8K)

    def _is_right(self, sample: Sample, row: Demonstration) -> bool:
        return not sample.truncated and answers_agree(self._answer(sample), row.answer)

    def _rewards(
        self,
        prompts: list[tuple[int, ...]],
        samples: list[list[Sample]],
        critic: Trainer,
        reward: RewardConfig,
        for_policy: ForPolicy,
    ) -> dict[str, list[float]]:
        keys = iter(range(sum(map(len, samples))))
        groups = [
            Group(prompt, [Trace(sample.token_ids, next(keys)) for sample in group])
            for prompt, group in zip(prompts, samples, strict=True)
        ]
        scored = score_traces(critic, groups, micro_batch_tokens=self._micro_batch_tokens)
        rows = [scored[key] for key in sorted(scored)]
        by_aggregation = {
            f"reward_{name}": aggregate_all(rows, reward.model_copy(update={"aggregation": name})).tolist()
            for name in AGGREGATIONS
        }
        shaped = for_policy(scored, groups)
        clipped = [clip_rewards(shaped[key], reward.clip) for key in sorted(shaped)]
        return by_aggregation | {"reward": aggregate_all(clipped, reward).tolist()}


def aggregate_all(rewards: list[Tensor], config: RewardConfig) -> Tensor:
    """(len(rewards),) float32: each trace's token rewards as one number."""
    if not rewards:
        return torch.zeros(0)
    lengths = torch.tensor([len(row) for row in rewards])
    padded = pad_sequence(rewards, batch_first=True)
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    return aggregate_rewards(padded, mask, aggregation=config.aggregation, gamma=config.gamma)


def _summary(values: dict[str, list[float]], aggregation: str) -> dict[str, float]:
    right, reward = values["right"], values.get("reward", [])
    result = {
        "dev/accuracy": fmean(right),
        "dev/truncated": fmean(values["truncated"]),
        "dev/num_tokens": fmean(values["num_tokens"]),
        "dev/answered": fmean(values["answered"]),
    }
    if not reward:
        return result
    groups = torch.tensor(reward).reshape(-1, SAMPLES_PER_QUESTION)
    result["dev/group_std"] = float(groups.std(1).mean())
    for name, side in (("dev/reward_right", 1), ("dev/reward_wrong", 0)):
        picked = [value for value, flag in zip(reward, right, strict=True) if flag == side]
        if picked:
            result[name] = fmean(picked)
    if 0 < sum(right) < len(right):
        for name in AGGREGATIONS:
            result[f"dev/auroc_{name}"] = _auroc(right, values[f"reward_{name}"])
        result["dev/auroc"] = result[f"dev/auroc_{aggregation}"]
    return result


def _auroc(right: list[float], reward: list[float]) -> float:
    """NaN where a reward isn't a number: a critic that gives such rewards sorts nothing."""
    return float(roc_auc_score(right, reward)) if all(map(math.isfinite, reward)) else math.nan
