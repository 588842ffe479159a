"""Scored samples as arrays, problems by samples: everything the numbers are computed from.

Dimension key: P problems, N samples of each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from irlops.answers import answers_agree, is_strictly_right
from irlops.contracts.evaluation import AGGREGATIONS, Aggregation, Calibration
from irlops.selection import Candidate, aggregate
from irlops_jobs.evaluation.carriers import ScoredProblem, ScoredSample, ScoredSamples

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]
Integers = NDArray[np.int64]

_WELL_FORMATTED = re.compile(r"\S.*\n#### -?[0-9][0-9.,]*\s*\Z", re.DOTALL)
_WELL_TAGGED = re.compile(r"\s*<think>.*</think>\s*<answer>[^<]*</answer>\s*\Z", re.DOTALL)


@dataclass(frozen=True)
class SampleTable:
    """One row a problem, one column a sample, in the policy's order.

    Example:
        Two samples of one problem, "#### 5" (right, rewards 1 and 3) and nothing: ``right_PN = [[True, False]]``,
        ``answer_class_PN = [[0, -1]]``, ``reward_by("mean") = [[2.0, nan]]``.
    """

    right_PN: Booleans
    """The answer agrees with gold."""
    strictly_right_PN: Booleans
    answer_class_PN: Integers
    """Within a problem, samples with the same number agree with each other; -1 where there is no answer."""
    rewards_by_aggregation: dict[Aggregation, Floats]
    span_reward_PN: Floats
    """Mean reward over the final answer's tokens; NaN where there are none."""
    logprob_PN: Floats
    """Sum over the tokens, nats."""
    num_tokens_PN: Integers
    truncated_PN: Booleans
    well_formatted_PN: Booleans

    @classmethod
    def of(cls, samples: ScoredSamples, gamma: float = 0.9) -> SampleTable:
        """Judge answers and aggregate rewards, once for all numbers.

        Args:
            gamma: of the aggregation ``discounted``.
        """
        classes_right = [_judge_answers(problem) for problem in samples.problems]
        rows = [problem.samples for problem in samples.problems]
        return cls(
            right_PN=np.array([right for _, right in classes_right], bool),
            strictly_right_PN=np.array(
                [[is_strictly_right(s.text, p.gold) and not s.truncated for s in p.samples] for p in samples.problems],
                bool,
            ),
            answer_class_PN=np.array([classes for classes, _ in classes_right], np.int64),
            rewards_by_aggregation={
                name: np.array([[_reward(s.token_rewards, name, gamma) for s in row] for row in rows])
                for name in AGGREGATIONS
            },
            span_reward_PN=np.array([[_span_reward(s) for s in row] for row in rows]),
            logprob_PN=np.array([[float(sum(s.token_logprobs)) for s in row] for row in rows]),
            num_tokens_PN=np.array([[s.num_tokens for s in row] for row in rows], np.int64),
            truncated_PN=np.array([[s.truncated for s in row] for row in rows], bool),
            well_formatted_PN=np.array([[is_well_formatted(s) for s in row] for row in rows], bool),
        )

    @property
    def num_problems(self) -> int:
        return self.right_PN.shape[0]

    @property
    def samples_per_problem(self) -> int:
        return self.right_PN.shape[1]

    def reward_by(self, aggregation: Aggregation) -> Floats:
        """(P, N) rewards by one aggregation; NaN for empty completions."""
        return self.rewards_by_aggregation[aggregation]

    def candidates(self, problem: int, aggregation: Aggregation) -> list[Candidate]:
        """A problem's samples as selection sees them: answers by class, and the aggregated reward as the only token's.

        Every aggregation of one token is that token, so selection chooses as it would from all tokens.
        """
        reward_N = self.reward_by(aggregation)[problem]
        return [
            Candidate(
                answer=None if answer < 0 else str(answer),
                num_tokens=int(num_tokens),
                token_rewards=None if np.isnan(reward) else (float(reward),),
                logprob=float(logprob),
            )
            for answer, num_tokens, reward, logprob in zip(
                self.answer_class_PN[problem],
                self.num_tokens_PN[problem],
                reward_N,
                self.logprob_PN[problem],
                strict=True,
            )
        ]

    def chance_of_being_right(self, calibration: Calibration) -> Floats:
        """(P, N) calibrated chances; NaN for empty completions."""
        return sigmoid((self.reward_by(calibration.aggregation) - calibration.bias) / calibration.temperature)


def sigmoid(values: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * values))


def is_well_formatted(sample: ScoredSample) -> bool:
    """Whether a solution has the demonstrations' shape: reasoning, then ``#### number`` once and at the end; or the tags."""
    if sample.truncated:
        return False
    if _WELL_TAGGED.fullmatch(sample.text):
        return True
    return sample.text.count("####") == 1 and _WELL_FORMATTED.search(sample.text) is not None


def _judge_answers(problem: ScoredProblem) -> tuple[list[int], list[bool]]:
    """The class of each sample's answer, and whether it is gold's."""
    firsts: list[str] = []
    is_gold: list[bool] = []
    classes: list[int] = []
    for sample in problem.samples:
        answer = None if sample.truncated else sample.answer
        if answer is None:
            classes.append(-1)
            continue
        known = next((place for place, first in enumerate(firsts) if answers_agree(first, answer)), None)
        if known is None:
            known = len(firsts)
            firsts.append(answer)
            is_gold.append(answers_agree(answer, problem.gold))
        classes.append(known)
    return classes, [place >= 0 and is_gold[place] for place in classes]


def _reward(token_rewards: Sequence[float], aggregation: Aggregation, gamma: float) -> float:
    return aggregate(token_rewards, aggregation, gamma) if len(token_rewards) else float("nan")


def _span_reward(sample: ScoredSample) -> float:
    if sample.answer_span is None:
        return float("nan")
    start, end = sample.answer_span
    values = sample.token_rewards[start:end]
    return float(sum(values) / len(values)) if len(values) else float("nan")
