"""``irlops ask``: one question to the gateway, and why it answered what it did."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from irlops.cli.console import print_json, stderr, stdout
from irlops.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from irlops.cli.gateway_client import Answer
    from irlops.contracts.rerank import RerankCandidate, RerankResult

MAX_ROWS = 16


def ask(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="The question, in quotes.")],
    candidates: Annotated[
        int | None,
        typer.Option(min=1, max=64, metavar="N", help="Solutions to sample. The gateway's own number when left out."),
    ] = None,
    selector: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="reward, majority, weighted_majority or first: how the answer is chosen."),
    ] = None,
    aggregation: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="mean, min, product, last or discounted: how token rewards make a candidate's."
        ),
    ] = None,
    adaptive: Annotated[
        bool | None, typer.Option("--adaptive/--no-adaptive", help="Stop sampling once the answer is settled.")
    ] = None,
    deadline_ms: Annotated[
        int | None, typer.Option(min=1, metavar="MS", help="Give the best answer so far after this long.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, metavar="T", help="Of sampling.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, metavar="N", help="Longest solution, in tokens.")] = None,
    policy_only: Annotated[bool, typer.Option("--policy-only", help="One plain answer of the policy.")] = False,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The gateway. Without it IRLOPS_GATEWAY_URL, then http://127.0.0.1:8080."),
    ] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=1, metavar="SECONDS", help="Seconds without any sign of life.")
    ] = 300.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Ask the gateway a question; shows the answer and why it was chosen.

    The policy writes several solutions, the critic rewards every token of them, and the selector chooses.
    A key goes into IRLOPS_API_KEY.

    Example: irlops ask "Kira has 21 cards. Monday she doubles them. How many are left?" --candidates 16
    """
    from irlops.cli.gateway_client import gateway_url

    if not question.strip():
        raise ConfigError('The question is empty. Write it in quotes: irlops ask "How many …?"')
    rerank = {"candidates": candidates, "selector": selector, "aggregation": aggregation, "adaptive": adaptive}
    answer = _ask_with_progress(
        gateway_url(url),
        question,
        _given(**rerank, deadline_ms=deadline_ms, return_candidates=True, return_token_rewards=True),
        "policy" if policy_only else "reranked",
        timeout_s,
        _given(temperature=temperature, max_tokens=max_tokens),
    )
    if as_json:
        print_json({"text": answer.text, "rerank": answer.rerank.model_dump() if answer.rerank else None})
    else:
        print_answer(answer, stdout())


def _given(**fields: Any) -> dict[str, Any]:
    """Those that were given; the gateway has its own values for the others."""
    return {name: value for name, value in fields.items() if value is not None}


def print_answer(answer: Answer, console: Console) -> None:
    """The answer, how the candidates voted, and the chosen one with its token rewards."""
    from irlops.cli.token_colours import legend, render_tokens

    result = answer.rerank
    chosen = next((c for c in result.candidates if c.index == result.chosen_index), None) if result else None
    if result is None or chosen is None or not chosen.token_rewards:
        console.print(answer.text.strip(), markup=False)
    else:
        console.print(render_tokens(chosen.token_rewards, console))
        console.print(legend(chosen.token_rewards, console))
    if result is None:
        return
    console.print()
    console.print(_headline(result, chosen), markup=False)
    if result.degraded:
        console.print(f"Degraded ({result.degraded}): {result.explanation}", style="yellow", markup=False)
    if len(result.answers) > 1:
        console.print("\nanswers", style="bold")
        console.print(_votes(result))
    if len(result.candidates) > 1:
        console.print("\ncandidates", style="bold")
        console.print(_candidates(result))


def _ask_with_progress(
    url: str, question: str, rerank: dict[str, Any], model: str, timeout_s: float, extra: dict[str, Any]
) -> Answer:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from irlops.cli.gateway_client import ask_gateway

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr(), transient=True, disable=not stderr().is_terminal) as progress:
        task = progress.add_task("Asking", total=None)

        def show(sampled: int, scored: int, requested: int) -> None:
            # Sampling and scoring overlap: a candidate is half done once it is written and done once it is scored.
            progress.update(
                task,
                description=f"Sampled {sampled}, scored {scored} of {requested}",
                completed=sampled + scored,
                total=2 * requested,
            )

        return ask_gateway(url, question, rerank, model=model, timeout_s=timeout_s, on_progress=show, **extra)


def _headline(result: RerankResult, chosen: RerankCandidate | None) -> str:
    final = f"Answer: {chosen.answer}" if chosen and chosen.answer is not None else "No final answer was found in it"
    early = ", stopped early" if result.stopped_early else ""
    return (
        f"{final}  ·  {result.selector} of {result.candidates_sampled} candidates ({result.candidates_scored} "
        f"scored{early})  ·  pair {_version(result.pair.policy_version)}/{_version(result.pair.critic_version)}  ·  "
        f"{result.timings_ms.total / 1000:.1f} s"
    )


def _version(version: str) -> str:
    """``v3`` for the registry's 3; words such as "unversioned" as they are."""
    return f"v{version}" if version.isdecimal() else version


def _votes(result: RerankResult) -> Table:
    from rich.table import Table

    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    table.add_column("answer")
    table.add_column("votes", justify="right")
    table.add_column("weight", justify="right")
    for vote in result.answers[:MAX_ROWS]:
        table.add_row("(none)" if vote.answer is None else vote.answer, str(vote.votes), f"{vote.weight:.2f}")
    return table


def _candidates(result: RerankResult) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        expand=True,  # the solution takes what the numbers leave
    )
    for heading, justify in (
        ("", "left"),
        ("#", "right"),
        ("reward", "right"),
        ("answer", "left"),
        ("tokens", "right"),
        ("times", "right"),
    ):
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("solution", no_wrap=True, overflow="ellipsis", ratio=1)
    for candidate, times in _ranked(result)[:MAX_ROWS]:
        is_chosen = candidate.index == result.chosen_index
        table.add_row(
            "→" if is_chosen else "",
            str(candidate.index),
            "" if candidate.reward is None else f"{candidate.reward:+.2f}",
            Text("—" if candidate.answer is None else candidate.answer),
            str(candidate.num_tokens),
            str(times),
            Text(" ".join(candidate.text.split()), style="dim"),
            style="bold" if is_chosen else None,
        )
    return table


def _ranked(result: RerankResult) -> list[tuple[RerankCandidate, int]]:
    """Different solutions by reward, each with how often it was written; the chosen one stands for its like."""
    chosen_first = sorted(result.candidates, key=lambda c: (c.index != result.chosen_index, c.index))
    different = {candidate.text: candidate for candidate in reversed(chosen_first)}
    times = Counter(candidate.text for candidate in result.candidates)
    by_reward = sorted(
        different.values(), key=lambda c: (-(c.reward if c.reward is not None else float("-inf")), c.index)
    )
    return [(candidate, times[candidate.text]) for candidate in by_reward]
