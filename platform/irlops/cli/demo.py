"""``irlops demo``: the whole loop on this machine, from one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from irlops.cli.console import print_error, stdout
from irlops.errors import ConfigError

_TUNABLE = ("sft", "airl", "evaluate")


def demo(
    output_dir: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Gets summary.json, report.html and pictures; an earlier demo there is cleared."
        ),
    ] = Path("out/demo"),
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of training, sampling and the question asked.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the servers running until Ctrl-C.")] = False,
    manifests_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Training manifests; by default those that came with irlops.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="STAGE.KEY=VALUE", hidden=True, help="For example sft.num_steps=20."),
    ] = None,
) -> None:
    """Run the whole loop on this machine: learn, evaluate, register, serve, ask.

    Takes some minutes on two cores, without a GPU. Nothing of it stays alive afterwards; MLflow's records and the
    registered pair stay in .irlops (or IRLOPS_HOME), where the other commands find them.
    """
    from irlops.demo.jobs import JobFailedError
    from irlops.demo.loop import DemoSettings, run_demo
    from irlops.demo.screen import Screen
    from irlops.demo.surroundings import demo_home

    wanted = DemoSettings(
        output_dir=output_dir,
        home=demo_home(),
        seed=seed,
        keep=keep,
        manifests_dir=manifests_dir,
        overrides=stage_overrides(settings),
    )
    try:
        run_demo(wanted, Screen(stdout()))
    except JobFailedError as failure:
        print_error(str(failure))
        raise typer.Exit(failure.exit_code) from failure


def stage_overrides(settings: list[str] | None) -> dict[str, dict[str, Any]]:
    """``["sft.num_steps=20"]`` -> ``{"sft": {"num_steps": 20}}``.

    Raises:
        ConfigError: one is not STAGE.KEY=VALUE.
    """
    from irlops.cli.train import parse_settings

    overrides: dict[str, dict[str, Any]] = {}
    for key, value in parse_settings(settings).items():
        stage, _, rest = key.partition(".")
        if stage not in _TUNABLE or not rest:
            raise ConfigError(
                f"--set {key} names no stage of the demo. Write {', '.join(_TUNABLE)} before a key of its job."
            )
        overrides.setdefault(stage, {})[rest] = value
    return overrides
