"""``irlops pairs``: what is registered, what is served, and what was before."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from irlops.cli.console import print_json, stderr, stdout, waiting
from irlops.errors import ConfigError, PairError

if TYPE_CHECKING:
    from irlops.contracts.pair import Alias, EvaluationSummary, Gate, Pair
    from irlops.registry.pairs import PairRegistry

app = typer.Typer(
    help="Registered pairs of a policy and its critic: list, show, promote, roll back.\n\n"
    "REF is champion, challenger, a policy version (7), run:RUN_ID, or a folder with policy/ and critic/ in it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        envvar="MLFLOW_TRACKING_URI",
        metavar="URL",
        help="MLflow server. Without one: the embedded server of this folder, or the database it left.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Ref = Annotated[str, typer.Argument(metavar="REF", help="Which pair: champion, challenger, 7, run:ID or a folder.")]
Gates = Annotated[
    list[str] | None,
    typer.Option("--gate", metavar="METRIC>=NUMBER", help="Refuse unless the evaluation reaches it. Repeatable."),
]

_COLUMNS = {
    "pass@1": "pass_at_k.1",
    # Of all its samples, the one answer that the selector takes.
    "reward": "selectors.reward.1",
    "weighted": "selectors.weighted_majority.1",
    "AUROC": "critic.auroc",
}
_SHOWN = re.compile(
    r"pass_at_k\.\d+|selectors\.\w+\.1|critic\.(auroc\w*|ece|pearson_(correctness|format))|first_error\.(hit_at_1|chance)"
)
"""Of the two hundred numbers that an evaluation has, those that people ask for first."""


@app.command("list")
def list_pairs(tracking_uri: TrackingUri = None, as_json: AsJson = False) -> None:
    """List every registered pair, newest first."""
    with waiting("Reading the registry"):
        registry = open_registry(tracking_uri)
        pairs, problems = registry.list(), registry.problems()
    if as_json:
        print_json({"pairs": [pair.model_dump() for pair in pairs], "problems": problems})
        return
    if not pairs:
        stderr().print("No pair is registered yet. `irlops demo` makes a first one; or: irlops pairs register --help")
    else:
        stdout().print(_table(pairs))
    for problem in problems:
        stderr().print(f"[yellow]Torn:[/yellow] {problem}", soft_wrap=True)


@app.command()
def show(ref: Ref, tracking_uri: TrackingUri = None, as_json: AsJson = False) -> None:
    """Show one pair: its weights, its origin, its evaluation."""
    from irlops.contracts.pair import parse_reference
    from irlops.registry.pairs import pair_in_folder

    with waiting("Reading the registry"):
        is_folder = parse_reference(ref).kind == "folder"  # needs no registry
        pair = pair_in_folder(Path(ref)) if is_folder else open_registry(tracking_uri).resolve(ref)
    if as_json:
        print_json(pair.model_dump())
    else:
        _print_pair(pair)


@app.command()
def promote(
    ref: Ref,
    alias: Annotated[
        str, typer.Option("--as", metavar="ALIAS", help="champion (what is served) or challenger.")
    ] = "champion",
    gates: Gates = None,
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """Make a pair champion, on both halves or on neither.

    Example: irlops pairs promote 7 --gate "critic.auroc>=0.75"
    """
    wanted, parsed = _alias(alias), _gates(gates)
    with waiting(f"Promoting {ref}"):
        pair = open_registry(tracking_uri).promote(ref, alias=wanted, gates=parsed)
    _report(
        pair, f"{pair.label}: policy v{pair.policy.version} and critic v{pair.critic.version} are {wanted}.", as_json
    )


@app.command()
def rollback(tracking_uri: TrackingUri = None, as_json: AsJson = False) -> None:
    """Make the pair champion that was champion before."""
    with waiting("Rolling back"):
        pair = open_registry(tracking_uri).rollback()
    _report(pair, f"Rolled back: {pair.label} is champion again (critic v{pair.critic.version}).", as_json)


@app.command()
def register(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a run with policy/ and critic/ in it.")],
    policy: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The policy, when it is not FOLDER/policy.")
    ] = None,
    critic: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The critic, when it is not FOLDER/critic.")
    ] = None,
    policy_uri: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="Where the same files lie for good (pvc://, s3://, hf://); nothing is copied then."
        ),
    ] = None,
    critic_uri: Annotated[str | None, typer.Option(metavar="URI", help="The same for the critic.")] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="evaluation.json; by default FOLDER/evaluation/evaluation.json if it is there."
        ),
    ] = None,
    data_digest: Annotated[str | None, typer.Option(metavar="DIGEST", help="sha256:… of the demonstrations.")] = None,
    base_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Preset or hub id that the policy was trained from.")
    ] = None,
    run_id: Annotated[str | None, typer.Option(metavar="ID", help="MLflow run that trained it.")] = None,
    alias: Annotated[
        str | None, typer.Option("--as", metavar="ALIAS", help="Make it champion or challenger at once.")
    ] = None,
    gates: Gates = None,
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """Register a policy and its critic as one pair.

    Both folders are checked first: complete, safetensors only, the same tokenizer, a critic with one label.
    """
    from irlops.registry.run_folders import evaluation_of_run, lineage_of_run

    said = {"run_id": run_id, "data_digest": data_digest, "policy_base_model": base_model}
    lineage = lineage_of_run(folder).model_copy(update={name: value for name, value in said.items() if value})
    parsed, wanted = _gates(gates), _alias(alias) if alias else None
    body = _read_evaluation(evaluation) if evaluation else evaluation_of_run(folder)
    with waiting("Registering the pair"):
        registry = open_registry(tracking_uri, create=True)
        pair = registry.register(
            policy or folder / "policy",
            critic or folder / "critic",
            policy_uri=policy_uri,
            critic_uri=critic_uri,
            evaluation=body,
            lineage=lineage if run_id else registry.known_run(lineage),
            gates=parsed,
            alias=wanted,
        )
    _report(pair, f"Registered {pair.label}: policy v{pair.policy.version}, critic v{pair.critic.version}.", as_json)


@app.command()
def repair(tracking_uri: TrackingUri = None) -> None:
    """Mend the aliases after a promotion that was cut off.

    The policy's aliases count; the critic's are brought back to them.
    """
    with waiting("Comparing the aliases"):
        moved = open_registry(tracking_uri).repair()
    stdout().print(f"Moved back: {', '.join(moved)}." if moved else "Nothing was torn.")


def open_registry(tracking_uri: str | None, *, create: bool = False) -> PairRegistry:
    """The registry that a command works on.

    Args:
        create: Begin a database for this folder when there is nothing yet.

    Raises:
        ConfigError: there is none.
    """
    from irlops.registry.client import default_mlflow_dir, find_tracking_uri
    from irlops.registry.pairs import PairRegistry

    uri = tracking_uri or find_tracking_uri()
    if uri is None and create:
        default_mlflow_dir().mkdir(parents=True, exist_ok=True)
        uri = f"sqlite:///{default_mlflow_dir() / 'mlflow.db'}"
    if uri is None:
        raise ConfigError(
            f"There is no registry: MLFLOW_TRACKING_URI is not set and {default_mlflow_dir()} holds none. Set it to "
            "your MLflow server, or make a first pair with `irlops demo`."
        )
    return PairRegistry(uri)


def _table(pairs: list[Pair]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("pair", "alias", "critic", *_COLUMNS, "on", "run", "registered"):
        is_wide = heading in ("run", "registered")
        table.add_column(heading, justify="right" if heading in _COLUMNS else "left", no_wrap=not is_wide)
    for pair in pairs:
        numbers = [_number(pair.evaluation, metric) for metric in _COLUMNS.values()]
        table.add_row(
            f"v{pair.policy.version}",
            " ".join(f"[green]{alias}[/green]" for alias in pair.aliases),
            f"v{pair.critic.version}",
            *numbers,
            pair.evaluation.dataset if pair.evaluation else "",
            pair.lineage.run_name or (pair.lineage.run_id or "")[:8],
            _when(pair.registered_at_ms),
        )
    return table


def _print_pair(pair: Pair) -> None:
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    for name, value in _facts(pair).items():
        if value:
            table.add_row(name, value)
    console = stdout()
    console.print(table)
    if pair.evaluation:
        metrics = Table(box=None, pad_edge=False, title=f"on {pair.evaluation.dataset}", title_justify="left")
        for heading, justify in (("metric", "left"), ("value", "right")):
            metrics.add_column(heading, justify=justify)  # type: ignore[arg-type]
        shown = [name for name in pair.evaluation.metrics if _SHOWN.fullmatch(name)]
        for name in shown:
            metrics.add_row(name, f"{pair.evaluation.metrics[name]:.4g}")
        console.print()
        console.print(metrics)
        if others := len(pair.evaluation.metrics) - len(shown):
            console.print(f"{others} more with --json", style="dim")


def _facts(pair: Pair) -> dict[str, str | None]:
    lineage = pair.lineage
    return {
        "pair": pair.label,
        "policy": f"{f'v{pair.policy.version}  ' if pair.is_registered else ''}{pair.policy.uri}",
        "critic": f"{f'v{pair.critic.version}  ' if pair.is_registered else ''}{pair.critic.uri}",
        "registered": _when(pair.registered_at_ms),
        "trained from": " and ".join(filter(None, (lineage.policy_base_model, lineage.critic_base_model))),
        "run": " ".join(filter(None, (lineage.run_name, lineage.run_id))),
        "git commit": lineage.git_commit,
        "data": lineage.data_digest,
        "tokenizer": pair.tokenizer_digest,
        "policy weights": pair.policy.weights_digest,
        "critic weights": pair.critic.weights_digest,
    }


def _report(pair: Pair, sentence: str, as_json: bool) -> None:
    if as_json:
        print_json(pair.model_dump())
    else:
        stdout().print(sentence)


def _read_evaluation(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PairError(f"{file} can't be read as an evaluation ({error}). Make one with `irlops evaluate`.") from error


def _gates(texts: list[str] | None) -> list[Gate]:
    from irlops.contracts.pair import parse_gate

    return [parse_gate(text) for text in texts or []]


def _alias(text: str) -> Alias:
    if text == "champion" or text == "challenger":
        return text
    raise ConfigError(f"{text!r} is no alias. Choose champion or challenger.")


def _number(evaluation: EvaluationSummary | None, metric: str) -> str:
    value = evaluation.metrics.get(metric) if evaluation else None
    return "" if value is None else f"{value:.3f}"


def _when(at_ms: int | None) -> str:
    return "" if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
