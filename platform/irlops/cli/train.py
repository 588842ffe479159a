"""``irlops train``: a training manifest on this machine, or the very same file on a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from irlops.cli.console import print_error, stderr, stdout, waiting
from irlops.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console


class JobKind(StrEnum):
    """What the job becomes on a cluster."""

    PYTORCHJOB = "pytorchjob"
    TRAINJOB = "trainjob"


_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_red", "bright_green", "bright_cyan")


def train(
    file: Annotated[Path, typer.Option("--file", "-f", metavar="FILE", help="A manifest with one PyTorchJob.")],
    local: Annotated[bool, typer.Option("--local", help="Run it on this machine (the default).")] = False,
    cluster: Annotated[bool, typer.Option("--cluster", help="Submit it to the cluster of your kubeconfig.")] = False,
    follow: Annotated[
        bool | None,
        typer.Option(help="Print what the workers print. By default: with --local; with --cluster only when asked."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Another value for a key of the job file, e.g. seed=7. Repeatable."
        ),
    ] = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="--local: gets a folder for each claim. By default .irlops/state."),
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            "--tracking-uri",
            envvar="MLFLOW_TRACKING_URI",
            metavar="URL",
            help="--local: MLflow server; without one, an embedded one.",
        ),
    ] = None,
    kind: Annotated[
        JobKind,
        typer.Option(
            "--as",
            metavar="KIND",
            help="pytorchjob, or trainjob (Kubeflow Trainer v2): printed, with --cluster submitted.",
        ),
    ] = JobKind.PYTORCHJOB,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", metavar="NAME", help="--cluster: by default the kubeconfig's.")
    ] = None,
    kubeconfig: Annotated[
        Path | None, typer.Option(metavar="FILE", help="--cluster: by default KUBECONFIG or ~/.kube/config.")
    ] = None,
) -> None:
    """Run a PyTorchJob manifest, on this machine or on a cluster.

    The same file runs in both places. What one machine can't honour is named, with what is done instead, or refused.
    """
    if local and cluster:
        raise ConfigError("--local and --cluster exclude each other. Choose one.")
    if kind is JobKind.TRAINJOB:
        if local or follow:
            raise ConfigError(f"{'--local' if local else '--follow'} is for PyTorchJobs. Leave out --as trainjob.")
        _as_trainjob(file, parse_settings(settings), namespace, kubeconfig, submit=cluster)
    elif cluster:
        _train_on_cluster(
            file, parse_settings(settings), follow=bool(follow), namespace=namespace, kubeconfig=kubeconfig
        )
    else:
        _train_here(file, parse_settings(settings), state_dir, tracking_uri, follow=follow is not False)


def parse_settings(settings: list[str] | None) -> dict[str, Any]:
    """``["seed=7", "data.num_train=null"]`` -> ``{"seed": 7, "data.num_train": None}``; values are YAML.

    Raises:
        ConfigError: one has no key, or a value that is not YAML.
    """
    import yaml

    from irlops.contracts.wrong_yaml import explain_yaml

    parsed: dict[str, Any] = {}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"--set {setting!r} is no KEY=VALUE. Write for example --set seed=7.")
        try:
            parsed[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {setting!r}: the value is not YAML ({explain_yaml(error)}).") from error
    return parsed


def _train_here(
    file: Path, overrides: dict[str, Any], state_dir: Path | None, tracking_uri: str | None, *, follow: bool
) -> None:
    from irlops.local.training import RUNNER, run_pytorchjob
    from irlops.registry.client import default_mlflow_dir

    say = line_printer(stdout())
    with _tracking_server(tracking_uri) as uri:
        result = run_pytorchjob(
            file,
            state_dir=state_dir or default_mlflow_dir().parent / "state",
            tracking_uri=uri,
            overrides=overrides,
            on_line=say if follow else lambda who, line: say(who, line) if who == RUNNER else None,
        )
    if not result.succeeded:
        print_error(f"{result.name} failed after {result.wall_s:.0f} s: {result.reason}")
        raise typer.Exit(result.exit_code)
    stdout().print(
        f"{result.name} finished in {result.wall_s:.0f} s; what it made lies in {result.state_dir}", markup=False
    )


@contextlib.contextmanager
def _tracking_server(tracking_uri: str | None) -> Iterator[str]:
    """The address to record runs at; an embedded server when none is given, for as long as the job runs."""
    from irlops.registry.client import default_mlflow_dir, require_answer

    if tracking_uri:
        require_answer(tracking_uri)  # here, not in workers that would be started again to ask once more
        yield tracking_uri
        return
    from irlops.registry.server import start_mlflow_server

    with waiting("Starting MLflow"):
        server = start_mlflow_server(default_mlflow_dir())
    with server:
        yield server.uri


def _train_on_cluster(
    file: Path, overrides: dict[str, Any], *, follow: bool, namespace: str | None, kubeconfig: Path | None
) -> None:
    from irlops.cluster.training import TrainingCluster
    from irlops.contracts.training_manifest import read_training_manifest
    from irlops.local.overrides import check_job_file, with_overrides

    manifest = with_overrides(read_training_manifest(file), overrides)
    check_job_file(manifest)
    with waiting("Submitting"):
        cluster = TrainingCluster.connect(kubeconfig, namespace or manifest.job.metadata.namespace)
        job = cluster.submit(manifest)
    stdout().print(f"{job.name} submitted to {job.namespace}", markup=False)
    if not follow:
        stdout().print(
            f"Follow it with: irlops logs {job.name} --follow --namespace {job.namespace}",
            markup=False,
        )
        return
    state = cluster.follow(
        job.name, on_line=line_printer(stdout()), on_state=lambda state: stderr().print(str(state), markup=False)
    )
    if not state.succeeded:
        print_error(f"{job.name} ended as {state}")
        raise typer.Exit(1)
    stdout().print(f"{job.name} finished", markup=False)


def _as_trainjob(
    file: Path, overrides: dict[str, Any], namespace: str | None, kubeconfig: Path | None, *, submit: bool
) -> None:
    from irlops.cluster.trainjobs import JOBSET_LABEL, as_trainjob
    from irlops.contracts.training_manifest import read_training_manifest
    from irlops.local.overrides import check_job_file, with_overrides

    manifest = with_overrides(read_training_manifest(file), overrides)
    check_job_file(manifest)
    if not submit:
        import yaml

        typer.echo(yaml.safe_dump_all(as_trainjob(manifest), sort_keys=False), nl=False)
        return
    from irlops.cluster.training import TrainingCluster

    with waiting("Submitting"):
        cluster = TrainingCluster.connect(kubeconfig, namespace or manifest.job.metadata.namespace)
        job = cluster.submit_trainjob(manifest)
    stdout().print(f"{job.name} submitted to {job.namespace} as a TrainJob", markup=False)
    stdout().print(f"Follow it with: kubectl logs -n {job.namespace} -l {JOBSET_LABEL}={job.name} -f", markup=False)


def line_printer(console: Console) -> Callable[[str, str], None]:
    """Prints lines behind the coloured name of who said them: ``worker-0 | step 20  loss 1.2``."""
    from rich.text import Text

    colours: dict[str, str] = {}

    def print_line(who: str, line: str) -> None:
        colour = colours.setdefault(who, _COLOURS[len(colours) % len(_COLOURS)])
        console.print(Text.assemble((f"{who} | ", colour), Text.from_ansi(line)), soft_wrap=True)

    return print_line
