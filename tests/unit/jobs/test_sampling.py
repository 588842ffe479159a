"""A sample depends on its own seed, not on its batch, its process or its neighbours."""

import pytest
import torch

from irlops.contracts.jobs import LoraConfig, RolloutConfig
from irlops_jobs.models.load import with_lora
from irlops_jobs.models.save import merged_state_dict
from irlops_jobs.models.tiny import build_tiny_policy
from irlops_jobs.rollouts.sampling import choose_tokens, derive_seed
from irlops_jobs.rollouts.transformers_engine import TransformersEngine

LOGITS = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 0), (0.49, 0), (0.51, 1), (0.79, 1), (0.81, 2), (0.999999, 2)], ids=str
)
def test_a_uniform_draw_picks_the_token_whose_cumulative_range_holds_it(uniform, token):
    chosen, logprob = choose_tokens(LOGITS, torch.tensor([uniform]), temperature=1.0, top_p=1.0)
    assert chosen.item() == token
    assert logprob.item() == pytest.approx(LOGITS[0, token].item(), abs=1e-6)


def test_top_p_leaves_out_the_unlikely_tail():
    draws = torch.linspace(0, 0.999, 50)
    chosen, _ = choose_tokens(LOGITS.expand(50, 3), draws, temperature=1.0, top_p=0.7)  # 0.5 + 0.3 >= 0.7
    assert set(chosen.tolist()) == {0, 1}


def test_temperature_sharpens_what_is_sampled_and_what_is_reported():
    _, logprob = choose_tokens(LOGITS, torch.tensor([0.0]), temperature=0.5, top_p=1.0)
    assert logprob.exp().item() == pytest.approx(0.25 / 0.38)  # 0.5^2 / (0.5^2 + 0.3^2 + 0.2^2)


def test_temperature_zero_takes_the_likeliest_token():
    chosen, _ = choose_tokens(LOGITS, torch.tensor([0.99]), temperature=1e-3, top_p=1.0)
    assert chosen.item() == 0


def test_seeds_differ_by_every_part_that_identifies_a_draw():
    seeds = {derive_seed("rollout", 0, r, q) for r in range(20) for q in range(20)}
    assert len(seeds) == 400
    assert derive_seed("rollout", 0, 1) == derive_seed("rollout", 0, 1)


def _engine(batch_size):
    config = RolloutConfig(max_new_tokens=12, batch_size=batch_size)
    return TransformersEngine(build_tiny_policy(3), config, eos_token_id=2)


def test_progress_is_told_after_every_batch():
    told = []
    # Four samples each and room for four rows: one question at a time.
    _engine(4).sample(
        [(1, 3, 4), (1, 4), (1, 5, 4)], num_samples=4, seeds=[7, 8, 9], on_progress=lambda *n: told.append(n)
    )
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_samples_are_the_same_however_they_are_batched():
    prompts = [(1, 3, 40, 41, 42, 43, 4), (1, 3, 50, 4), (1, 3, 51, 52, 4)]
    together = _engine(64).sample(prompts, num_samples=4, seeds=[7, 8, 9])
    apart = _engine(4).sample(prompts, num_samples=4, seeds=[7, 8, 9])
    alone = _engine(64).sample(prompts[1:2], num_samples=4, seeds=[8])
    assert [[s.token_ids for s in group] for group in together] == [[s.token_ids for s in group] for group in apart]
    assert [s.token_ids for s in alone[0]] == [s.token_ids for s in together[1]]


def test_reported_logprobs_are_the_models_own():
    engine, prompt = _engine(8), (1, 3, 40, 41, 4)
    (samples,) = engine.sample([prompt], num_samples=3, seeds=[5])
    model = build_tiny_policy(3).eval()
    for sample in samples:
        logits = model(input_ids=torch.tensor([[*prompt, *sample.token_ids]])).logits[0]
        logprobs = torch.log_softmax(logits, -1)
        expected = [logprobs[len(prompt) + t - 1, token].item() for t, token in enumerate(sample.token_ids)]
        assert sample.logprobs == pytest.approx(expected, abs=1e-4)


def _drawn(policy, prompt, **settings):
    config = RolloutConfig(max_new_tokens=6, **settings)
    engine = TransformersEngine(policy, config, eos_token_id=-1)
    return engine, engine.sample([prompt], num_samples=3, seeds=[5])


def test_adapters_are_merged_before_samples_are_drawn_and_again_after_an_update():
    policy = with_lora(build_tiny_policy(3), LoraConfig(rank=2), seed=0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    engine, before = _drawn(policy, (1, 3, 4))
    merged = build_tiny_policy(4)
    merged.load_state_dict(merged_state_dict(policy))
    assert before == _drawn(merged, (1, 3, 4))[1]
    with torch.no_grad():
        merged.get_parameter("model.norm.weight").mul_(2)
        policy.get_base_model().get_parameter("model.norm.weight").mul_(2)
    engine.load_weights(policy)
    assert engine.sample([(1, 3, 4)], num_samples=3, seeds=[5]) == _drawn(merged, (1, 3, 4))[1] != before


def test_weights_that_sample_in_half_precision_leave_the_trainers_alone():
    policy = build_tiny_policy(3)
    _, samples = _drawn(policy, (1, 3, 4), dtype="bfloat16")
    assert policy.dtype == torch.float32
    assert samples == _drawn(build_tiny_policy(3).to(torch.bfloat16), (1, 3, 4))[1]


def test_alternatives_are_other_tokens_and_change_nothing_of_what_is_written():
    config, policy = RolloutConfig(max_new_tokens=6), build_tiny_policy(3)
    engine = TransformersEngine(policy, config, eos_token_id=-1, with_alternatives=True)
    (samples,) = engine.sample([(1, 3, 4)], num_samples=3, seeds=[5])
    (plain,) = TransformersEngine(policy, config, eos_token_id=-1).sample([(1, 3, 4)], num_samples=3, seeds=[5])
    for sample, same in zip(samples, plain, strict=True):
        assert (sample.token_ids, sample.logprobs, same.alternatives) == (same.token_ids, same.logprobs, ())
        assert all(own != other for own, other in zip(sample.token_ids, sample.alternatives, strict=True))


def test_a_sample_that_never_ends_is_marked_truncated():
    engine = TransformersEngine(build_tiny_policy(3), RolloutConfig(max_new_tokens=5), eos_token_id=-1)
    (samples,) = engine.sample([(1, 3, 4)], num_samples=2, seeds=[0])
    assert all(sample.truncated and len(sample.token_ids) == 5 for sample in samples)
