"""The critic's rewards do not depend on how sequences are put into batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from irlops.errors import PairError
from irlops_serving.critic.beginnings import Beginning, RecentBeginnings, Tokens
from irlops_serving.critic.checkpoint import load_critic
from irlops_serving.critic.scoring import Group, TokenScorer, group_by_beginning
from support.tiny_models import CONTEXT_TOKENS, save_tiny_critic


@pytest.fixture(scope="module")
def critic_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_critic(tmp_path_factory.mktemp("critic"))


@pytest.fixture(scope="module")
def scorer(critic_dir: Path) -> TokenScorer:
    return TokenScorer(load_critic(critic_dir), max_batch_tokens=200)


def _tokens(*ids: int) -> Tokens:
    return np.array(ids, dtype=np.int64)


def _random_tokens(count: int, seed: int) -> Tokens:
    return np.random.default_rng(seed).integers(5, 261, count)


def _alone(scorer: TokenScorer, tokens: Tokens) -> np.ndarray:
    """Stock transformers, one sequence, nothing shared."""
    with torch.inference_mode():
        return scorer.critic.model(input_ids=torch.from_numpy(tokens).unsqueeze(0)).logits[0, :, 0].numpy()


def test_sequences_of_any_length_score_as_each_alone(scorer: TokenScorer):
    sequences = [_random_tokens(count, seed=count) for count in (1, 90, 3, 40, 41, CONTEXT_TOKENS, 7)]
    for tokens, rewards in zip(sequences, scorer.score(sequences), strict=True):
        np.testing.assert_allclose(rewards, _alone(scorer, tokens), atol=2e-5)


def test_candidates_of_one_prompt_score_as_each_alone(scorer: TokenScorer):
    prompt = _random_tokens(60, seed=0)
    sequences = [np.concatenate([prompt, _random_tokens(count, seed=count)]) for count in (30, 1, 12, 80, 12)]
    assert [group.num_shared for group in group_by_beginning(sequences)] == [60]
    for tokens, rewards in zip(sequences, scorer.score(sequences), strict=True):
        np.testing.assert_allclose(rewards, _alone(scorer, tokens), atol=2e-5)


def _counted(scorer: TokenScorer, sequences: list[Tokens], monkeypatch: pytest.MonkeyPatch) -> tuple[list, list[int]]:
    """Rewards, and the tokens of each pass that they took."""
    passes: list[int] = []
    plain = scorer._logits

    def counting(**inputs):
        passes.append(inputs["input_ids"].numel())
        return plain(**inputs)

    with monkeypatch.context() as patched:
        patched.setattr(scorer, "_logits", counting)
        return scorer.score(sequences), passes


def test_candidates_that_come_later_go_on_from_the_prompt_that_was_read(critic_dir: Path, monkeypatch):
    scorer = TokenScorer(load_critic(critic_dir))
    prompt = _random_tokens(60, seed=0)
    early, late, last = (
        [np.concatenate([prompt, _random_tokens(30, seed=seed)]) for seed in some] for some in ((1, 2), (3, 4), (5,))
    )
    passes = []
    for sequences in (early, late, last):
        found, taken = _counted(scorer, sequences, monkeypatch)
        passes.append(taken)
        for tokens, rewards in zip(sequences, found, strict=True):
            np.testing.assert_allclose(rewards, _alone(scorer, tokens), atol=2e-5)
    assert passes == [[60, 60], [60], [30]]


def test_a_longer_beginning_goes_on_from_a_shorter_one_that_is_known(critic_dir: Path, monkeypatch):
    scorer = TokenScorer(load_critic(critic_dir))
    template, question = _random_tokens(20, seed=0), _random_tokens(40, seed=1)
    scorer.score([np.concatenate([template, _random_tokens(5, seed=seed)]) for seed in (2, 3)])
    sequences = [np.concatenate([template, question, _random_tokens(10, seed=seed)]) for seed in (4, 5)]
    found, passes = _counted(scorer, sequences, monkeypatch)
    assert passes == [40, 20]
    for tokens, rewards in zip(sequences, found, strict=True):
        np.testing.assert_allclose(rewards, _alone(scorer, tokens), atol=2e-5)


def _beginning(*ids: int, num_bytes: int = 8) -> Beginning:
    part = torch.zeros(1, 1, len(ids), num_bytes // 8)
    return Beginning(_tokens(*ids), np.zeros(len(ids), np.float32), ((part, part),))


def test_beginnings_that_were_not_used_for_longest_are_forgotten_first():
    recent = RecentBeginnings(max_bytes=3 * 2 * 8)
    for ids in ((1, 2), (3, 4), (5, 6)):
        recent.keep(_beginning(*ids))
    assert recent.find(_tokens(1, 2, 9), min_tokens=2) is not None
    recent.keep(_beginning(7, 8))
    assert recent.find(_tokens(3, 4), min_tokens=2) is None
    assert recent.find(_tokens(1, 2), min_tokens=2) is not None
    recent.keep(_beginning(1, 1, 1, 1, 1, 1, 1))  # larger than all that may be kept
    assert recent.find(_tokens(1, 1, 1), min_tokens=2) is None
    assert recent.find(_tokens(7, 8), min_tokens=2) is not None


def test_the_longest_known_beginning_is_taken_and_no_longer_than_asked():
    recent = RecentBeginnings()
    recent.keep(_beginning(1, 2, 3))
    recent.keep(_beginning(1, 2, 3, 4, 5))
    recent.keep(_beginning(1, 2))
    assert recent.find(_tokens(1, 2, 3, 4, 9), min_tokens=2).tokens.tolist() == [1, 2, 3, 4]
    assert recent.find(_tokens(1, 9), min_tokens=2) is None


def test_a_head_bias_moves_every_reward_by_as_much(tmp_path: Path, scorer: TokenScorer):
    tokens = [_random_tokens(20, seed=1)]
    shifted = TokenScorer(load_critic(save_tiny_critic(tmp_path, head_bias=1.25)))
    # The scorer's critic is the same with a bias of 0.25.
    np.testing.assert_allclose(shifted.score(tokens)[0], scorer.score(tokens)[0] + 1.0, atol=2e-5)


def test_half_precision_weights_move_rewards_a_little_and_makes_no_ties(critic_dir: Path, scorer: TokenScorer):
    sequences = [_random_tokens(60, seed=seed) for seed in range(4)]
    halved = TokenScorer(load_critic(critic_dir, precision="bfloat16")).score(sequences)
    exact = scorer.score(sequences)
    for one, other in zip(halved, exact, strict=True):
        np.testing.assert_allclose(one, other, atol=0.15)
        assert not np.array_equal(one, other)
    # A bfloat16 has 8 bits for digits, so rewards rounded to it would often be the same ones.
    assert len(np.unique(np.concatenate(halved))) == len(np.unique(np.concatenate(exact)))


def test_identical_candidates_share_all_but_their_last_token():
    same = _random_tokens(50, seed=2)
    assert group_by_beginning([same, same.copy(), same.copy()]) == [Group((0, 1, 2), num_shared=49)]


def test_two_questions_make_two_groups_whatever_the_order():
    first, second = _random_tokens(40, seed=3), _random_tokens(40, seed=4)
    sequences = [np.append(prompt, [index]) for index, prompt in enumerate([first, second, first, second])]
    groups = group_by_beginning(sequences)
    assert {frozenset(group.members) for group in groups} == {frozenset({0, 2}), frozenset({1, 3})}
    assert [group.num_shared for group in groups] == [40, 40]


def test_a_short_common_beginning_is_not_worth_a_pass_of_its_own():
    sequences = [_tokens(1, 3, 50, 60), _tokens(1, 3, 51, 61, 62)]
    assert [group.num_shared for group in group_by_beginning(sequences)] == [0, 0]


def test_no_sequences_make_no_groups():
    assert group_by_beginning([]) == []


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda model: model.score.weight.data.fill_(float("nan")), "not finite"),
        (lambda model: delattr(model.model, "norm"), "lacks weights"),
    ],
    ids=["a diverged critic", "a critic without its last norm"],
)
def test_a_broken_critic_is_refused_before_it_serves(tmp_path: Path, critic_dir: Path, damage, complaint: str):
    model = load_critic(critic_dir).model
    damage(model)
    for file in critic_dir.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model.save_pretrained(tmp_path)
    with pytest.raises(PairError, match=complaint):
        load_critic(tmp_path)


def test_a_pickled_checkpoint_is_refused(tmp_path: Path):
    folder = save_tiny_critic(tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(PairError, match="can run code"):
        load_critic(folder)


def test_a_model_that_reads_ahead_is_no_critic(tmp_path: Path, critic_dir: Path):
    from transformers import BertConfig, BertForTokenClassification

    sizes = {"vocab_size": 261, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    # With the usual small weights attention hardly matters, and what lies ahead hardly shows.
    config = BertConfig(**sizes, intermediate_size=32, num_labels=1, initializer_range=0.5)
    torch.manual_seed(0)
    model = BertForTokenClassification(config)
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(tmp_path)
    for file in critic_dir.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(PairError, match="reads ahead"):
        load_critic(tmp_path)
