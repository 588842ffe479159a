"""The critic's labels and losses: sides, weights, masks and signs, against sums worked out by hand."""

import math

import pytest
import torch

from irlops.contracts.jobs import CriticConfig
from irlops_jobs.distributed.runtime import Runtime
from irlops_jobs.models.shared_prefix import TraceBatch
from irlops_jobs.updates.critic import airl_logits, pairwise_loss, token_loss
from irlops_jobs.updates.critic_labels import (
    CriticTarget,
    LabelledQuestion,
    LabelledTrace,
    loss_positions,
    weigh,
)
from irlops_jobs.updates.microbatches import MicroBatch

ALONE = Runtime(rank=0, world_size=1, device=torch.device("cpu"))
EXPERT = LabelledTrace((5, 6, 7, 2), True, "expert")
AGREEING = LabelledTrace((5, 8, 2), True, "agreeing_sample")
OTHER = LabelledTrace((9, 2), False, "other_sample")
CORRUPTED = LabelledTrace((5, 6, 9, 2), False, "corrupted", first_error=2)


def _no_steps(_):
    return []


def test_both_sides_hold_half_of_the_loss_however_many_traces_they_have():
    question = LabelledQuestion((1,), (EXPERT, AGREEING, OTHER, CORRUPTED, OTHER))
    (group,), counts = weigh([question], CriticConfig(mass_balance="global"), ALONE, _no_steps)
    weights = [trace.payload.weight for trace in group.traces]
    assert weights == pytest.approx([0.25, 0.25, 1 / 6, 1 / 6, 1 / 6])
    assert counts["critic/num_corrupted"] == 1


def test_without_mass_balance_every_trace_weighs_the_same():
    question = LabelledQuestion((1,), (EXPERT, OTHER, OTHER))
    (group,), _ = weigh([question], CriticConfig(mass_balance="none"), ALONE, _no_steps)
    assert [trace.payload.weight for trace in group.traces] == pytest.approx([1 / 3] * 3)


def test_within_a_question_both_sides_weigh_the_same_so_its_difficulty_says_nothing_of_the_label():
    easy = LabelledQuestion((1,), (EXPERT, AGREEING, AGREEING, CORRUPTED))
    hard = LabelledQuestion((1,), (EXPERT, OTHER, OTHER, OTHER))
    groups, _ = weigh([easy, hard], CriticConfig(mass_balance="question"), ALONE, _no_steps)
    assert [t.payload.weight for t in groups[0].traces] == pytest.approx([1 / 12] * 3 + [1 / 4])
    assert [t.payload.weight for t in groups[1].traces] == pytest.approx([1 / 4] + [1 / 12] * 3)


def test_a_corruption_is_not_blamed_for_the_tokens_before_its_error():
    assert loss_positions(CORRUPTED, CriticConfig(), _no_steps) == (2, 3)
    assert loss_positions(CORRUPTED, CriticConfig(perturbed_target="whole"), _no_steps) == (0, 1, 2, 3)


def test_blame_can_be_kept_to_the_wrong_tokens_themselves():
    corrupted = LabelledTrace((5, 6, 9, 8, 2), False, "corrupted", first_error=2, error_end=3)
    assert loss_positions(corrupted, CriticConfig(perturbed_target="error"), _no_steps) == (2,)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CriticConfig(granularity="token"), (0, 1, 2, 3)),
        (CriticConfig(granularity="interval", interval_tokens=2), (1, 3)),
        (CriticConfig(granularity="step"), (1, 3)),
        (CriticConfig(granularity="sequence"), (3,)),
    ],
    ids=lambda value: getattr(value, "granularity", ""),
)
def test_granularity_says_where_the_loss_reads_the_critic(config, expected):
    assert loss_positions(EXPERT, config, lambda ids: [1, len(ids) - 1]) == expected


def test_the_token_loss_is_the_weighted_cross_entropy_of_each_sides_tokens():
    logits = torch.tensor([[1.0, -1.0], [2.0, 0.0]])
    targets = [CriticTarget(True, "expert", (0, 1), 0.5), CriticTarget(False, "other_sample", (0,), 0.5)]
    # expert: (softplus(-1) + softplus(1)) / 2 * 0.5; other: softplus(2) * 0.5
    expected = 0.25 * (_softplus(-1) + _softplus(1)) + 0.5 * _softplus(2)
    assert token_loss(logits, targets, label_smoothing=0.0).item() == pytest.approx(expected, rel=1e-6)


def test_label_smoothing_moves_targets_away_from_certainty():
    logits = torch.zeros(1, 1)
    loss = token_loss(logits.requires_grad_(), [CriticTarget(True, "expert", (0,), 1.0)], label_smoothing=0.1)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.item() == pytest.approx(0.5 - 0.9)  # sigmoid(0) - target


def test_masked_tokens_never_move_the_critic():
    logits = torch.randn(2, 3, requires_grad=True)
    targets = [CriticTarget(True, "expert", (0, 2), 0.5), CriticTarget(False, "corrupted", (1,), 0.5)]
    token_loss(logits, targets, label_smoothing=0.1).backward()
    assert logits.grad[0, 1] == 0
    assert logits.grad[1, 0] == logits.grad[1, 2] == 0
    assert logits.grad[0, 0] < 0 < logits.grad[1, 1]  # descending raises the expert's reward, lowers the other's


def test_pairs_are_compared_within_their_question_only():
    targets = [
        CriticTarget(True, "expert", (0,), 0.5),
        CriticTarget(False, "other_sample", (0,), 0.5),
        CriticTarget(True, "expert", (0,), 0.5),
        CriticTarget(False, "other_sample", (0,), 0.5),
    ]
    micro = MicroBatch(TraceBatch.of([(1,)], [(1,)] * 4, [0] * 4), targets, groups=[0, 0, 1, 1])
    scores = torch.tensor([[2.0], [1.0], [-5.0], [-6.0]])
    # Both questions have margin 1, though the second's expert scores far below the first's other trace.
    assert pairwise_loss(scores, micro).item() == pytest.approx(_softplus(-1), rel=1e-6)


def test_a_question_with_one_side_only_weighs_nothing_in_pairs():
    lonely = LabelledQuestion((1,), (EXPERT, AGREEING))
    both = LabelledQuestion((1,), (EXPERT, OTHER))
    groups, counts = weigh([lonely, both], CriticConfig(loss="pairwise"), ALONE, _no_steps)
    assert [group.traces[0].payload.weight for group in groups] == [0.0, 1.0]
    assert counts["critic/num_contrasted_questions"] == 1


def test_airls_logit_takes_the_policys_log_probability_off_the_reward():
    mask = torch.tensor([[True, False]])
    logprob = torch.tensor([[-2.0, -2.0]], requires_grad=True)
    logits = airl_logits(torch.tensor([[0.5, 9.0]]), torch.tensor([[0.25, 9.0]]), logprob, mask)
    assert logits.tolist() == [[2.75, 0.0]]  # 0.5 + 0.25 + 2
    assert not logits.requires_grad  # the policy stands still while the critic learns


def _softplus(x):
    return math.log1p(math.exp(x))
