"""``irlops score``: what the critic thinks of every token of a solution that somebody wrote."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from irlops.cli.console import print_json, stdout, waiting
from irlops.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from irlops.contracts.rerank import ItemRewards


def score(
    question: Annotated[str, typer.Option("--question", "-q", metavar="TEXT", help="The question.")],
    solution: Annotated[
        str | None,
        typer.Option("--solution", "-s", metavar="TEXT", help="The solution to score; - reads it from standard input."),
    ] = None,
    solution_file: Annotated[Path | None, typer.Option(metavar="FILE", help="A file that holds the solution.")] = None,
    aggregation: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="mean, min, product, last or discounted: how token rewards make the solution's."
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The gateway. Without it IRLOPS_GATEWAY_URL, then http://127.0.0.1:8080."),
    ] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=1, metavar="SECONDS", help="Seconds to wait.")] = 120.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Show the critic's reward for every token of a solution.

    Blue tokens read like an expert's, red ones do not. The first step that looks wrong is named.

    Example: irlops score -q "What is 2 + 3 * 4?" -s "2 + 3 * 4 = 20"
    """
    from irlops.cli.gateway_client import gateway_url, score_solution

    text = _solution_text(solution, solution_file)
    with waiting("Scoring"):
        response = score_solution(gateway_url(url), question, text, aggregation=aggregation, timeout_s=timeout_s)
    if as_json:
        print_json(response.model_dump())
    else:
        print_rewards(response.items[0], response.aggregation, stdout())


def print_rewards(item: ItemRewards, aggregation: str, console: Console) -> None:
    """The solution with its token rewards, and its steps."""
    from rich.table import Table
    from rich.text import Text

    from irlops.cli.token_colours import legend, render_tokens

    tokens = item.tokens or []
    console.print(render_tokens(tokens, console))
    console.print(legend(tokens, console))
    console.print(f"\nReward {item.reward:+.3f} ({aggregation} of {item.num_tokens} tokens)")
    suspected = item.suspected_first_error
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("step", justify="right")
    table.add_column("reward", justify="right")
    table.add_column("")
    for step in item.steps:
        is_suspected = suspected is not None and step.index == suspected.step
        note = "   ← the first that reads unlike an expert's" if is_suspected else ""
        text = Text.assemble(step.text.strip(), (note, "bold red"))
        table.add_row(str(step.index + 1), f"{step.reward:+.2f}", text)
    console.print(table)


def _solution_text(solution: str | None, file: Path | None) -> str:
    if (solution is None) == (file is None):
        raise ConfigError(
            "Give the solution once: --solution TEXT, --solution - for standard input, or --solution-file FILE."
        )
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"The solution in {file} can't be read ({error}).") from error
    else:
        text = sys.stdin.read() if solution == "-" else solution or ""
    if not text.strip():
        raise ConfigError("The solution is empty, so there is no token to score.")
    return text
