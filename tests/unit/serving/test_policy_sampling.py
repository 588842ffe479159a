"""Which token is drawn, and how likely it was said to be."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from irlops_serving.policy.requests import Sampling
from irlops_serving.policy.sampling import draw_tokens, generators_of, read_logprobs

# Four tokens with probabilities 1/2, 1/4, 1/8 and 1/8.
LOGITS = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()


def _draw_many(count: int = 2000, **settings: Any) -> Counter[int]:
    sampling = Sampling(num_samples=count, max_tokens=1, seed=0, **settings)
    return Counter(draw_tokens(LOGITS.expand(count, -1), sampling, generators_of(sampling)))


def test_tokens_are_drawn_as_often_as_they_are_likely():
    drawn = _draw_many()
    for token, probability in enumerate([0.5, 0.25, 0.125, 0.125]):
        # Three standard deviations of a share over 2,000 draws are at most 3 * sqrt(0.25 / 2000) = 0.034.
        assert drawn[token] / 2000 == pytest.approx(probability, abs=0.034)


def test_a_low_temperature_sharpens():
    # At temperature 1/2 the probabilities are squared: 16, 4, 1 and 1 of 22 parts.
    assert _draw_many(temperature=0.5)[0] / 2000 == pytest.approx(16 / 22, abs=0.034)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.5}, {0}),
        ({"top_p": 0.51}, {0, 1}),
        ({"min_p": 0.5}, {0, 1}),
        ({"top_k": 3, "top_p": 0.99}, {0, 1, 2, 3}),
    ],
    ids=[
        "top-k keeps the two likeliest",
        "top-p 0.5 is reached by the likeliest alone",
        "top-p 0.51 needs a second",
        "min-p keeps what is half as likely as the likeliest",
        "equally likely tokens at the edge of top-k all stay",
    ],
)
def test_truncation_never_draws_what_it_cut(settings: dict[str, Any], allowed: set[int]):
    assert set(_draw_many(**settings)) == allowed


def test_sample_i_draws_like_a_lone_sample_with_seed_plus_i():
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(1))
    together = Sampling(num_samples=4, max_tokens=1, seed=7)
    drawn = draw_tokens(logits.expand(4, -1), together, generators_of(together))
    for index in range(4):
        alone = Sampling(num_samples=1, max_tokens=1, seed=7 + index)
        assert draw_tokens(logits, alone, generators_of(alone)) == [drawn[index]]


def test_without_a_seed_two_requests_differ():
    sampling = Sampling(num_samples=20, max_tokens=1)
    logits = torch.zeros(20, 1000)
    assert draw_tokens(logits, sampling, generators_of(sampling)) != draw_tokens(
        logits, sampling, generators_of(sampling)
    )


def test_the_largest_seed_does_not_overflow():
    assert len(generators_of(Sampling(num_samples=2, max_tokens=1, seed=2**63 - 1))) == 2


def test_temperature_zero_takes_the_likeliest():
    sampling = Sampling(num_samples=1, max_tokens=1, temperature=0.0)
    assert draw_tokens(LOGITS, sampling, generators_of(sampling)) == [0]


def test_logprobs_name_the_drawn_token_first_and_never_twice():
    (of_rare,) = read_logprobs(LOGITS, [2], num_top=2)
    assert [token for token, _ in of_rare.entries] == [2, 0, 1]
    assert [logprob for _, logprob in of_rare.entries] == pytest.approx([math.log(p) for p in (0.125, 0.5, 0.25)])
    (of_likeliest,) = read_logprobs(LOGITS, [0], num_top=2)
    assert [token for token, _ in of_likeliest.entries] == [0, 1]


def test_logprobs_are_those_before_temperature():
    (entry,) = read_logprobs(LOGITS, [1], num_top=0)
    assert entry.entries == ((1, pytest.approx(math.log(0.25))),)
