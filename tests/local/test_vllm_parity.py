"""One critic checkpoint, two servers, the same numbers: KServe's with transformers, and stock vLLM's pooling runner."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from irlops_serving.critic.checkpoint import load_critic
from irlops_serving.critic.scoring import Rewards, Tokens, TokenScorer
from irlops_serving.vllm_server import is_installed
from support.servers import running_server
from support.tiny_models import CONTEXT_TOKENS, save_tiny_critic

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not is_installed(), reason="vLLM is not installed")]

# Float32 kernels of two libraries, two layers deep; rewards are of order 1.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def critic_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_critic(tmp_path_factory.mktemp("critic"), head_bias=0.75)


@pytest.fixture(scope="module")
def vllm(critic_dir: Path) -> Iterator[httpx.Client]:
    command = [sys.executable, "-m", "irlops_serving.critic", "--backend", "vllm", "--model-dir", str(critic_dir)]
    with (
        running_server([*command, "--threads", "1"], critic_dir / "vllm.log", ready_path="/health") as (url, _),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def items() -> list[Tokens]:
    """Four candidates of one prompt, two lone items, one as long as the context."""
    draw = np.random.default_rng(0)
    prompt = draw.integers(5, 261, 60)
    candidates = [np.concatenate([prompt, draw.integers(5, 261, count)]) for count in (40, 3, 25, 25)]
    return [*candidates, draw.integers(5, 261, 1), draw.integers(5, 261, 90), draw.integers(5, 261, CONTEXT_TOKENS)]


@pytest.fixture(scope="module")
def ours(critic_dir: Path, items: list[Tokens]) -> list[Rewards]:
    return TokenScorer(load_critic(critic_dir)).score(items)


def _pool(client: httpx.Client, items: list[Tokens], **fields: Any) -> list[np.ndarray]:
    body = {"model": "critic", "task": "token_classify", "input": [tokens.tolist() for tokens in items], **fields}
    answer = client.post("/pooling", json=body)
    assert answer.status_code == 200, answer.text
    return [np.array(entry["data"])[:, 0] for entry in answer.json()["data"]]


def test_every_reward_is_equal_with_its_heads_bias(vllm: httpx.Client, items: list[Tokens], ours: list[Rewards]):
    for theirs, rewards in zip(_pool(vllm, items, use_activation=False), ours, strict=True):
        np.testing.assert_allclose(theirs, rewards, atol=TOLERANCE)


def test_an_item_seen_before_gets_all_its_rewards_again(vllm: httpx.Client, items: list[Tokens], ours: list[Rewards]):
    # Two whole blocks of vLLM's prefix cache: cached tokens would come back without a reward.
    for _ in range(2):
        np.testing.assert_allclose(_pool(vllm, items[-1:])[0], ours[-1], atol=TOLERANCE)


def test_a_client_that_forgets_the_activation_still_gets_logits(
    vllm: httpx.Client, items: list[Tokens], ours: list[Rewards]
):
    np.testing.assert_allclose(_pool(vllm, items[:1])[0], ours[0], atol=TOLERANCE)


def test_asking_for_the_activation_gives_its_sigmoid(vllm: httpx.Client, items: list[Tokens], ours: list[Rewards]):
    (activated,) = _pool(vllm, items[:1], use_activation=True)
    np.testing.assert_allclose(activated, 1 / (1 + np.exp(-ours[0])), atol=TOLERANCE)


def test_vllm_refuses_an_item_longer_than_the_context(vllm: httpx.Client):
    body = {"model": "critic", "task": "token_classify", "input": [[5] * (CONTEXT_TOKENS + 1)]}
    answer = vllm.post("/pooling", json=body)
    assert answer.status_code == 400
    assert str(CONTEXT_TOKENS) in answer.json()["error"]["message"]
