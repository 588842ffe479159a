"""Best of 16 from end to end, compared with the same 16 samples of the policy alone.

    python -m benchmarks.gateway_best_of_n [--pair DIR | --smollm2] [--backend vllm] [--questions 6] [--rounds 15] [--at-once 1]

``DIR`` holds ``policy/`` and ``critic/`` (a finished run's folder); without one a tiny pair is trained for two minutes, once.
``--smollm2`` takes the base weights of the preset smollm2-135m and a critic of the same size whose head nobody has trained:
as slow as a trained pair, and good for nothing else.
The policy writes the very same candidates on both sides: a request's seed fixes them. The two sides take turns on the
same cores, with questions that are new in each round; the ratio counts.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import statistics
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gateway_support import print_table
from benchmarks.training_support import STATE_DIR, short_pair

NUM_CANDIDATES = 16
WANTED_RATIO = 1.2
NAMES = ("Tom", "Ana", "Mia", "Sam", "Leo", "Eva", "Ben", "Ida")


def _question(place: int) -> str:
    name = NAMES[place % len(NAMES)]
    first, second = 3 + place % 50, 4 + place % 37  # another question for each of thousands of places
    return f"{name} has {first} apples on Monday and buys {second} more on Tuesday. How many apples does {name} have?"


def _post(url: str, body: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode())  # noqa: S310 - our own
    request.add_header("content-type", "application/json")
    started_s = time.perf_counter()
    with urllib.request.urlopen(request, timeout=600) as answer:  # noqa: S310 - our own
        return time.perf_counter() - started_s, json.load(answer)


def _body(place: int, max_tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": _question(place)}]
    return {"messages": messages, "seed": 100 * place, "temperature": 1.0, "max_tokens": max_tokens}


def _generate(policy: str, place: int, max_tokens: int) -> tuple[float, int]:
    body = {**_body(place, max_tokens), "model": "policy", "n": NUM_CANDIDATES}
    took_s, answer = _post(policy, body)
    return took_s, answer["usage"]["completion_tokens"]


def _rerank(gateway: str, place: int, max_tokens: int) -> tuple[float, int]:
    rerank = {"candidates": NUM_CANDIDATES, "selector": "weighted_majority"}
    took_s, answer = _post(gateway, {**_body(place, max_tokens), "model": "reranked", "rerank": rerank})
    if answer["rerank"]["candidates_scored"] != NUM_CANDIDATES:
        raise RuntimeError(f"not every candidate was scored: {answer['rerank']}")
    return took_s, answer["usage"]["completion_tokens"]


@contextlib.contextmanager
def _served(pair: Path, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    from irlops.local.serve import serve_pair

    with serve_pair(
        pair / "policy",
        pair / "critic",
        backend=options.backend,
        critic_backend=options.critic_backend,
        critic_dtype=options.critic_dtype,
    ) as servers:
        servers.wait_until_ready()
        yield servers.urls.policy, servers.urls.gateway


def _untrained_smollm2() -> Path:
    """A pair of the preset's sizes, made once."""
    from irlops_jobs.models.load import load_policy, load_tokenizer, new_critic
    from irlops_jobs.models.presets import SMOLLM2_135M
    from irlops_jobs.models.save import save_model

    folder, cache = STATE_DIR / "smollm2-untrained", STATE_DIR / "cache"
    if not (folder / "critic").exists():
        tokenizer = load_tokenizer(SMOLLM2_135M, cache_dir=cache)
        save_model(load_policy(SMOLLM2_135M, cache_dir=cache), tokenizer, folder / "policy")
        save_model(new_critic(SMOLLM2_135M, cache_dir=cache, seed=0), tokenizer, folder / "critic")
    return folder


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--pair", type=Path, help="folder with policy/ and critic/")
    where.add_argument("--smollm2", action="store_true", help="an untrained pair of smollm2-135m's size")
    where.add_argument("--urls", nargs=2, metavar=("POLICY", "GATEWAY"), help="servers of a pair that runs already")
    parser.add_argument("--backend", choices=["vllm", "transformers"], default="vllm")
    parser.add_argument("--critic-backend", choices=["kserve", "vllm"], default="kserve")
    parser.add_argument("--critic-dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--questions", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--at-once", type=int, default=1, help="requests at the same time")
    parser.add_argument("--max-tokens", type=int, default=96)
    options = parser.parse_args()
    served = contextlib.nullcontext(options.urls) if options.urls else None
    pair = _untrained_smollm2 if options.smollm2 else lambda: options.pair or short_pair()
    with served or _served(pair(), options) as (policy, gateway):
        _report(_measure(policy, gateway, options), options)


def _measure(policy: str, gateway: str, options: argparse.Namespace) -> list[tuple[float, float, int, int]]:
    """For each round: seconds alone, seconds reranked, tokens of each."""
    sides = ((_generate, policy), (_rerank, gateway))
    rounds = []
    with concurrent.futures.ThreadPoolExecutor(options.at_once) as pool:

        def run(side: Any, url: str, number: int) -> tuple[float, int]:
            started_s = time.perf_counter()
            # Questions that no round before has asked: a server that remembers prompts has nothing to remember.
            places = range(1 + number * options.questions, 1 + (number + 1) * options.questions)
            answers = list(pool.map(lambda place: side(url, place, options.max_tokens), places))
            wall_s = time.perf_counter() - started_s
            return wall_s / options.questions, sum(tokens for _, tokens in answers)

        for side, url in sides:
            side(url, 0, options.max_tokens)
        for number in range(options.rounds):
            # Whoever comes second could find a warmer cache.
            order = sides if number % 2 == 0 else sides[::-1]
            took = {side: run(side, url, number) for side, url in order}
            (alone_s, alone_tokens), (reranked_s, reranked_tokens) = took[_generate], took[_rerank]
            rounds.append((alone_s, reranked_s, alone_tokens, reranked_tokens))
    return rounds


def _report(rounds: list[tuple[float, float, int, int]], options: argparse.Namespace) -> None:
    rows = [
        (place + 1, alone_s, reranked_s, reranked_s / alone_s, alone_tokens, reranked_tokens)
        for place, (alone_s, reranked_s, alone_tokens, reranked_tokens) in enumerate(rounds)
    ]
    columns = ("round", "n=16 alone s", "best of 16 s", "ratio", "tokens alone", "tokens reranked")
    print_table(f"Seconds a question, {options.at_once} at once", columns, rows)
    ratio = statistics.median(row[3] for row in rows)
    print(f"Median ratio {ratio:.2f} (wanted: at most {WANTED_RATIO})")


if __name__ == "__main__":
    main()
