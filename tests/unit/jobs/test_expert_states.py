"""The expert's token against another one behind the same prefix, in passes that hold many comparisons."""

from types import SimpleNamespace

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from irlops.contracts.jobs import CriticConfig, LoraConfig, OptimizerConfig
from irlops_jobs.distributed.runtime import Runtime
from irlops_jobs.distributed.trainer import Trainer
from irlops_jobs.models import expert_rows
from irlops_jobs.models.deepen import add_layers, freeze_below
from irlops_jobs.models.expert_rows import ExpertRows, ExpertState
from irlops_jobs.models.last_layer import as_whole_layer
from irlops_jobs.models.load import with_lora
from irlops_jobs.models.scorers import CriticScorer, PolicyScorer
from irlops_jobs.models.tiny import build_tiny_critic, build_tiny_policy
from irlops_jobs.session import EncodedDemonstration
from irlops_jobs.updates.expert_states import (
    ExpertDraw,
    against_corruption,
    branch_loss,
    prepare_states,
    propose_states,
    update_on_expert_states,
    with_trunk,
)

ALONE = Runtime(rank=0, world_size=1, device=torch.device("cpu"))
OPTIMIZER = OptimizerConfig(learning_rate=3e-3)
LONG = ExpertState((1, 7, 8), (11, 12, 13, 14, 2), torch.tensor([44, 45]), torch.tensor([1, 3]), torch.tensor([0.5, 1]))
SHORT = ExpertState((1, 9), (21, 2), torch.tensor([46]), torch.tensor([0]), torch.tensor([0.25]))


def _critic(*, num_top_layers):
    model = add_layers(build_tiny_critic(seed=1), 2, seed=2)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "score" in name or ("layers.5" in name and parameter.ndim == 2):  # a fresh layer on top is the identity
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    if num_top_layers:
        freeze_below(model, num_top_layers)
    return Trainer(CriticScorer(model.eval(), num_top_layers=num_top_layers), OPTIMIZER, ALONE, num_steps=40)


def _last_reward(critic, *ids):
    return critic.scorer.model(torch.tensor([ids])).logits[0, -1, 0].item()


def test_both_sides_of_a_comparison_are_rewards_of_whole_sequences():
    critic = _critic(num_top_layers=0)
    own_SA, branch_SA = critic.forward(ExpertRows.of([SHORT, LONG], ALONE.device))
    assert own_SA[1].tolist() == pytest.approx(
        [_last_reward(critic, 1, 7, 8, 11, 12), _last_reward(critic, 1, 7, 8, 11, 12, 13, 14)], abs=1e-4
    )
    assert branch_SA[1].tolist() == pytest.approx(
        [_last_reward(critic, 1, 7, 8, 11, 44), _last_reward(critic, 1, 7, 8, 11, 12, 13, 45)], abs=1e-4
    )
    assert branch_SA[0, 0].item() == pytest.approx(_last_reward(critic, 1, 9, 46), abs=1e-4)


@pytest.mark.parametrize("num_top_layers", [0, 2])
def test_the_last_layer_run_on_what_is_read_gives_what_the_whole_layer_gives(num_top_layers, monkeypatch):
    critic = _critic(num_top_layers=num_top_layers)
    rows = ExpertRows.of(with_trunk(critic, [LONG, SHORT], micro_batch_tokens=4096), ALONE.device)
    found = _gradients(critic, rows)
    monkeypatch.setattr(expert_rows, "as_whole_layer", lambda layer: None)
    assert torch.allclose(found, _gradients(critic, rows), atol=1e-5)


def _gradients(critic, rows):
    critic.scorer.zero_grad()
    own_SA, branch_SA = critic.scorer(rows)
    branch_loss(own_SA, branch_SA, rows.weight_SA).backward()
    found = [parameter.grad.flatten() for parameter in critic.scorer.parameters() if parameter.requires_grad]
    return torch.cat([own_SA.detach().flatten(), branch_SA.detach().flatten(), *found])


def test_layers_of_another_kind_and_those_that_are_sharded_run_whole():
    class FSDPLlamaDecoderLayer(LlamaDecoderLayer):  # what sharding makes of a layer's class
        pass

    layer = _critic(num_top_layers=0).scorer.model.model.layers[-1]
    assert as_whole_layer(layer) is layer
    layer.__class__ = FSDPLlamaDecoderLayer
    assert as_whole_layer(layer) is None


def test_frozen_layers_first_and_the_layers_on_top_later_give_what_one_pass_gives():
    whole, parts = _critic(num_top_layers=0), _critic(num_top_layers=2)
    states = with_trunk(parts, [LONG, SHORT], micro_batch_tokens=4096)
    assert states[0].trunk_LH.shape == (10, 128)  # 3 prompt + 5 solution + 2 branches
    expected = whole.forward(ExpertRows.of([LONG, SHORT], ALONE.device))
    found = parts.forward(ExpertRows.of(states, ALONE.device))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_critic_that_learns_as_a_whole_has_no_trunk():
    assert with_trunk(_critic(num_top_layers=0), [SHORT], micro_batch_tokens=64) == [SHORT]


def test_a_step_from_the_trunk_is_the_step_from_the_tokens():
    from_trunk, from_tokens = _critic(num_top_layers=2), _critic(num_top_layers=2)
    states = with_trunk(from_trunk, [LONG, SHORT], micro_batch_tokens=4096)
    metrics = [
        update_on_expert_states(from_trunk, states, micro_batch_tokens=4096),
        update_on_expert_states(from_tokens, [LONG, SHORT], micro_batch_tokens=4096),
    ]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-5)
    learned = zip(from_trunk.scorer.parameters(), from_tokens.scorer.parameters(), strict=True)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in learned)


def test_passes_of_few_tokens_teach_what_one_pass_teaches():
    at_once, in_turn = _critic(num_top_layers=2), _critic(num_top_layers=2)
    expected = update_on_expert_states(at_once, [LONG, SHORT], micro_batch_tokens=4096)
    assert update_on_expert_states(in_turn, [LONG, SHORT], micro_batch_tokens=8) == pytest.approx(expected, abs=1e-5)


def test_learning_prefers_the_experts_tokens():
    critic = _critic(num_top_layers=2)
    states = with_trunk(critic, [LONG, SHORT], micro_batch_tokens=4096)
    for _ in range(40):
        metrics = update_on_expert_states(critic, states, micro_batch_tokens=4096)
    assert metrics["critic/branch_accuracy"] == pytest.approx(1.0)


def test_the_policy_is_asked_for_another_token_at_each_state_it_doubts():
    policy = _policy()
    one = EncodedDemonstration(LONG.prompt_ids, LONG.solution_ids, SimpleNamespace())
    ask = {"config": CriticConfig(branches_per_expert=3), "micro_batch_tokens": 4096}
    (state,), (again,) = (propose_states(policy, [ExpertDraw(one, 5)], **ask) for _ in range(2))
    assert len(set(state.position_A.tolist())) == 3
    assert all(
        LONG.solution_ids[place] != other
        for place, other in zip(state.position_A.tolist(), state.branch_ids_A.tolist(), strict=True)
    )
    assert torch.equal(state.branch_ids_A, again.branch_ids_A)  # the seed fixes what is drawn


def _policy():
    return Trainer(PolicyScorer(build_tiny_policy(seed=0)), OPTIMIZER, ALONE, num_steps=1)


def _critic_on(policy, *, num_top_layers=2):
    model = build_tiny_critic(seed=1)
    model.model.load_state_dict(policy.scorer.model.model.state_dict())
    model = freeze_below(add_layers(model, 2, seed=2), 2)
    return Trainer(CriticScorer(model.eval(), num_top_layers=num_top_layers), OPTIMIZER, ALONE, num_steps=40)


def _prepared(policy, critic, *, micro_batch_tokens=4096):
    ones = [EncodedDemonstration(one.prompt_ids, one.solution_ids, SimpleNamespace()) for one in (LONG, SHORT)]
    ask = {"config": CriticConfig(branches_per_expert=3), "micro_batch_tokens": micro_batch_tokens}
    draws = [ExpertDraw(ones[0], 5, [(11, 12, 77, 78, 2)]), ExpertDraw(ones[1], 6)]
    return prepare_states(policy, critic, draws, **ask)


@pytest.mark.parametrize("micro_batch_tokens", [4096, 8], ids=["one pass", "a pass each"])
def test_a_critic_on_the_policys_layers_goes_on_from_the_policys_own_pass(micro_batch_tokens, monkeypatch):
    policy = _policy()
    critic = _critic_on(policy)
    assert critic.scorer.stands_on(policy.scorer)
    together = _prepared(policy, critic, micro_batch_tokens=micro_batch_tokens)
    monkeypatch.setattr(critic.scorer, "stands_on", lambda _: False)
    apart = _prepared(policy, critic, micro_batch_tokens=micro_batch_tokens)
    assert [len(state.branch_ids_A) for state in together] == [4, 2]  # the first one's corruption is one more
    for one, other in zip(together, apart, strict=True):
        assert one.branch_ids_A.tolist() == other.branch_ids_A.tolist()
        assert one.position_A.tolist() == other.position_A.tolist()
        assert torch.allclose(one.weight_A, other.weight_A, atol=1e-5)
        assert torch.allclose(one.trunk_LH, other.trunk_LH, atol=1e-4)


def test_a_critic_stands_on_the_policy_until_the_policy_moves():
    policy = _policy()
    critic = _critic_on(policy)
    with torch.no_grad():
        policy.scorer.model.model.layers[3].mlp.down_proj.weight[0, 0] += 1e-4
    assert not critic.scorer.stands_on(policy.scorer)


def test_a_critic_that_learns_as_a_whole_or_a_policy_with_adapters_share_nothing():
    policy = _policy()
    assert not _critic_on(policy, num_top_layers=0).scorer.stands_on(policy.scorer)
    assert not _critic(num_top_layers=2).scorer.stands_on(policy.scorer)  # a policy that it wasn't copied from
    adapted = PolicyScorer(with_lora(build_tiny_policy(seed=0), LoraConfig(rank=2, alpha=4), seed=0))
    assert not _critic_on(policy).scorer.stands_on(adapted)


def test_a_corruption_stands_against_the_expert_where_it_first_differs():
    state = against_corruption(LONG, (11, 12, 77, 78, 2), weight=0.5)
    assert (state.branch_ids_A[-1].item(), state.position_A[-1].item(), state.weight_A[-1].item()) == (77, 2, 0.5)
    assert against_corruption(LONG, LONG.solution_ids, weight=0.5) is LONG
