"""``irlops``: the table of commands, global options, and what happens when one fails.

A command ``x`` lives in ``irlops/cli/x.py`` and offers either ``app`` (a ``typer.Typer`` with subcommands) or a function
``x`` with typer's annotations. Its module is imported when it runs, so ``irlops --help`` stays quick whatever it needs.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from irlops.cli.console import reporting_errors, start_logging, wants_debug

LEARN, PAIRS, SERVE, CHECK = "Learn", "Pairs", "Serve and ask", "Check"


@dataclass(frozen=True)
class Entry:
    """One line of ``irlops --help``."""

    summary: str
    """First line of the command's own help."""
    panel: str


COMMANDS: dict[str, Entry] = {
    "demo": Entry("Run the whole loop on this machine: learn, evaluate, register, serve, ask.", LEARN),
    "train": Entry("Run a PyTorchJob manifest, on this machine or on a cluster.", LEARN),
    "evaluate": Entry("Measure a pair: pass@k, selectors, and how well the critic tells right from wrong.", LEARN),
    "pairs": Entry("Registered pairs of a policy and its critic: list, show, promote, roll back.", PAIRS),
    "serve": Entry("Start critic, policy and gateway of a pair on this machine.", SERVE),
    "ask": Entry("Ask the gateway a question; shows the answer and why it was chosen.", SERVE),
    "score": Entry("Show the critic's reward for every token of a solution.", SERVE),
    "status": Entry("List a cluster's pipelines and training jobs, and where they stand.", CHECK),
    "logs": Entry("Show what all workers of a cluster's job or pipeline print.", CHECK),
    "doctor": Entry("Find what this machine or cluster lacks, and the command that fixes it.", CHECK),
}


class LazyGroup(TyperGroup):
    """Knows every command by name and summary, and imports one when it runs."""

    def __init__(self, **options: Any) -> None:
        options["commands"] = {
            name: TyperCommand(name, help=entry.summary)
            for name, entry in COMMANDS.items()
            if importlib.util.find_spec(f"irlops.cli.{name}") is not None
        }
        super().__init__(**options)
        self._shows_help = False

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - the base class's signature
        if self._shows_help or cmd_name not in self.commands:
            return self.commands.get(cmd_name)
        return load_command(cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._shows_help = True  # the summaries will do; importing every command takes seconds
        super().format_help(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - the base class's signature
        for panel in (LEARN, PAIRS, SERVE, CHECK):
            rows = [(name, COMMANDS[name].summary) for name in self.commands if COMMANDS[name].panel == panel]
            if rows:
                with formatter.section(panel):
                    formatter.write_dl(rows)

    def invoke(self, ctx: Any) -> Any:
        debug = wants_debug(ctx.params.get("debug", False))
        with reporting_errors(debug=debug):
            return super().invoke(ctx)


def load_command(name: str) -> Any:
    """The real command, from its module."""
    module = importlib.import_module(f"irlops.cli.{name}")
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(name)(getattr(module, name))
    command = typer.main.get_command(app)
    command.name = name
    return command


app = typer.Typer(
    cls=LazyGroup,
    name="irlops",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: rich alone takes 0.3 s to import
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Learn a reasoning policy and a token-level reward model from expert solutions, and serve them as one pair.\n\n"
        "Start with `irlops demo`: the whole loop on this machine, in minutes, without a GPU."
    ),
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"irlops {version('irlops')}")
        raise typer.Exit


@app.callback()
def global_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and every log line.")] = False,
    version: Annotated[  # noqa: ARG001 - handled by its callback before anything else
        bool, typer.Option("--version", "-v", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of every command."""
    start_logging(debug=wants_debug(debug))


def main() -> None:
    """Entry point of the console script."""
    typer.main.get_command(app)(prog_name="irlops")


if __name__ == "__main__":
    main()
