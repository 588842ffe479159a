"""``irlops ask`` and ``irlops score`` before a real gateway with stub servers behind it."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from aiohttp import web
from typer.testing import CliRunner

from irlops.cli.main import app
from irlops.contracts.rerank import MAX_CANDIDATES
from support.gateway_rig import RIGHT, WRONG, Rig, rig
from support.stub_upstreams import served


async def irlops(rig: Rig | None, *arguments: str, stdin: str | None = None) -> Any:
    """The command in a thread: the gateway needs this one's event loop."""
    address = [] if rig is None else ["--url", rig.url]
    return await asyncio.to_thread(CliRunner().invoke, app, [*arguments, *address], input=stdin)


def printed_json(result: Any) -> Any:
    """The gateway runs in this process and logs to the same stdout, before the command prints."""
    return json.loads(result.stdout[result.stdout.index("{\n") :])


async def test_ask_shows_the_chosen_solution_the_votes_and_every_candidate() -> None:
    async with rig(policy={"solutions": (WRONG, RIGHT)}) as running:
        result = await irlops(running, "ask", "What is 2 + 2?", "--candidates", "4", "--selector", "reward")
    assert result.exit_code == 0, result.output
    assert "Answer: 4" in result.output
    assert "reward of 4 candidates (4 scored)  ·  pair v3/v3" in result.output
    assert result.output.count("→") == 1
    assert [heading in result.output for heading in ("candidates", "reward", "solution")] == [True] * 3


async def test_a_solution_that_was_written_often_takes_one_line_with_its_number() -> None:
    async with rig(policy={"solutions": (WRONG, RIGHT, RIGHT)}) as running:
        result = await irlops(running, "ask", "What is 2 + 2?", "--candidates", "6", "--selector", "majority")
    heading, *lines = result.output.partition("candidates\n")[2].splitlines()
    assert heading.split() == ["#", "reward", "answer", "tokens", "times", "solution"]
    # Six samples, three solutions in turn: the right one four times (first as candidate 1), the wrong one twice.
    cells = {line.replace("→", " ").split()[0]: line.replace("→", " ").split() for line in lines}
    assert {index: row[4] for index, row in cells.items()} == {"0": "2", "1": "4"}
    assert [line.split()[1] for line in lines if "→" in line] == ["1"]


async def test_a_pair_without_versions_is_called_unversioned() -> None:
    versions = {"policy_version": "unversioned", "critic_version": "v12"}
    async with rig(pair=versions) as running:
        result = await irlops(running, "ask", "What is 2 + 2?", "--candidates", "2")
    assert "pair unversioned/v12" in " ".join(result.output.split())


@pytest.mark.parametrize("status", [400, 401, 404, 503])
async def test_the_gateways_words_end_in_one_full_stop(status: int) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "The server said so."}}, status=status)

    stub = web.Application()
    stub.router.add_post("/v1/chat/completions", refuse)
    async with served(stub) as url:
        result = await irlops(None, "ask", "What is 2 + 2?", "--url", url)
    assert "The server said so" in result.output
    assert not re.search(r"\.\s*[.)]", result.output), result.output


async def test_ask_prints_json_for_programs() -> None:
    async with rig() as running:
        result = await irlops(running, "ask", "What is 2 + 2?", "--candidates", "4", "--json")
    body = printed_json(result)
    chosen = body["rerank"]["candidates"][body["rerank"]["chosen_index"]]
    assert body["text"] == chosen["text"]
    assert body["rerank"]["candidates_sampled"] == 4


async def test_the_plain_policy_can_be_asked_too() -> None:
    async with rig() as running:
        result = await irlops(running, "ask", "What is 2 + 2?", "--policy-only")
    assert (result.exit_code, "####" in result.output) == (0, True)


async def test_a_degraded_answer_says_so() -> None:
    async with rig(critic={"fail": lambda: web.Response(status=503)}) as running:
        result = await irlops(running, "ask", "What is 2 + 2?", "--candidates", "4", "--selector", "reward")
    assert (result.exit_code, "Degraded (critic_unavailable)" in result.output) == (0, True), result.output


async def test_what_the_gateway_refuses_is_its_own_words_and_exit_code_2() -> None:
    async with rig() as running:
        result = await irlops(running, "ask", "What is 2 + 2?", "--selector", "best")
    assert (result.exit_code, "The gateway refused the request" in result.output) == (2, True), result.output


async def test_no_gateway_is_one_line_and_a_retryable_code() -> None:
    result = await irlops(None, "ask", "What is 2 + 2?", "--url", "http://127.0.0.1:9")
    assert (result.exit_code, result.output.count("\n")) == (200, 1)
    assert "Start one with `irlops serve`" in result.output


@pytest.mark.parametrize("candidates", ["0", str(MAX_CANDIDATES + 1), "many"])
async def test_an_impossible_number_of_candidates_is_refused_at_once(candidates: str) -> None:
    result = await irlops(None, "ask", "What is 2 + 2?", "--candidates", candidates)
    assert (result.exit_code, "--candidates" in result.output) == (2, True)


async def test_an_empty_question_is_refused_before_anybody_is_asked() -> None:
    result = await irlops(None, "ask", "  ", "--url", "http://127.0.0.1:9")
    assert (result.exit_code, "The question is empty" in result.output) == (2, True)


async def test_as_many_candidates_as_the_gateway_allows_may_be_asked_for() -> None:
    arguments = ("ask", "What is 2 + 2?", "--url", "http://127.0.0.1:9", "--candidates", str(MAX_CANDIDATES))
    assert (await irlops(None, *arguments)).exit_code == 200  # nobody is there, but the number was taken


async def test_score_shows_every_token_and_every_step() -> None:
    async with rig() as running:
        result = await irlops(running, "score", "-q", "What is 2 + 2?", "-s", WRONG)
    assert result.exit_code == 0, result.output
    assert f"mean of {len(WRONG.split())} tokens" in result.output
    assert "step  reward" in result.output


async def test_a_solution_can_come_from_standard_input() -> None:
    async with rig() as running:
        result = await irlops(running, "score", "-q", "What is 2 + 2?", "-s", "-", "--json", stdin=RIGHT)
    assert printed_json(result)["items"][0]["answer"] == "4"


@pytest.mark.parametrize("arguments", [(), ("-s", "x", "--solution-file", "y"), ("-s", "  ")])
async def test_a_solution_has_to_be_given_once(arguments: tuple[str, ...]) -> None:
    result = await irlops(None, "score", "-q", "What is 2 + 2?", *arguments)
    assert (result.exit_code, "solution" in result.output) == (2, True)
