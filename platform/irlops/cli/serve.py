"""``irlops serve``: a registered pair behind its gateway, on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from irlops.cli.console import stderr, stdout, waiting

if TYPE_CHECKING:
    from irlops.contracts.pair import Pair
    from irlops.local.serve import ServedPair, ServerStatus
    from irlops.registry.server import MlflowServer

DEFAULT_PORT = 8080


class PolicyServer(StrEnum):
    auto = "auto"
    vllm = "vllm"
    transformers = "transformers"


class CriticServer(StrEnum):
    kserve = "kserve"
    vllm = "vllm"


class CriticDtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


def serve(
    pair: Annotated[str, typer.Option(metavar="REF", help="champion, challenger, 7, run:ID or a folder.")] = "champion",
    port: Annotated[int, typer.Option(metavar="N", help="The gateway's port; 0 takes a free one.")] = DEFAULT_PORT,
    policy_port: Annotated[
        int | None, typer.Option(metavar="N", help="The policy's port; by default a free one.")
    ] = None,
    critic_port: Annotated[
        int | None, typer.Option(metavar="N", help="The critic's port; by default a free one.")
    ] = None,
    policy_backend: Annotated[
        PolicyServer, typer.Option(help="Runs the policy; auto takes vLLM where it is installed.")
    ] = PolicyServer.auto,
    critic_backend: Annotated[CriticServer, typer.Option(help="Runs the critic.")] = CriticServer.kserve,
    critic_dtype: Annotated[
        CriticDtype, typer.Option(help="bfloat16 halves the critic's time; rewards differ in the second digit.")
    ] = CriticDtype.float32,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            "--tracking-uri",
            metavar="URL",
            envvar="MLFLOW_TRACKING_URI",
            help="MLflow server; without one, an embedded one.",
        ),
    ] = None,
) -> None:
    """Start critic, policy and gateway of a pair on this machine.

    Also starts the embedded MLflow server, unless --tracking-uri names one or the pair is a folder. Everything ends with
    this command (Ctrl-C).
    """
    from irlops.local.serve import Ports, serve_pair

    with _terminating_on_sigterm(), contextlib.ExitStack() as running:
        wanted, mlflow_uri = _find_pair(pair, tracking_uri, running)
        servers = running.enter_context(
            serve_pair(
                _folder_of(wanted, "policy"),
                _folder_of(wanted, "critic"),
                ports=Ports(gateway=port, policy=policy_port, critic=critic_port),
                backend=policy_backend.value,
                critic_backend=critic_backend.value,
                critic_dtype=critic_dtype.value,
                versions=_versions(wanted),
            )
        )
        _show_start(servers)
        _print_addresses(wanted, servers, mlflow_uri)
        servers.wait()


def _find_pair(reference: str, tracking_uri: str | None, running: contextlib.ExitStack) -> tuple[Pair, str | None]:
    """The pair with both halves on this machine, and the address of MLflow when there is one."""
    from irlops.contracts.pair import parse_reference
    from irlops.registry.pairs import PairRegistry, pair_in_folder

    parsed = parse_reference(reference)
    if parsed.kind == "folder":
        return pair_in_folder(Path(parsed.value)), tracking_uri
    from irlops.registry.client import default_mlflow_dir
    from irlops.registry.weights import fetch_pair

    if tracking_uri is None:
        with waiting("Starting MLflow"):
            tracking_uri = running.enter_context(_embedded_mlflow(default_mlflow_dir())).uri
    with waiting(f"Looking up {reference}"):
        found = PairRegistry(tracking_uri).resolve(parsed)
        return fetch_pair(found, _cache_dir(), tracking_uri), tracking_uri


def _embedded_mlflow(mlflow_dir: Path) -> MlflowServer:
    from irlops.errors import PairError
    from irlops.registry.server import start_mlflow_server

    if not (mlflow_dir / "mlflow.db").exists():
        raise PairError(
            f"Nothing is registered in {mlflow_dir}. `irlops demo` makes a first pair; or name a folder: --pair "
            "./out/run."
        )
    return start_mlflow_server(mlflow_dir)


def _cache_dir() -> Path:
    return Path(os.environ.get("IRLOPS_HOME", ".irlops")).expanduser().absolute() / "weights"


def _folder_of(pair: Pair, role: str) -> Path:
    folder = (pair.policy if role == "policy" else pair.critic).local_path
    assert folder is not None, "fetch_pair gives local folders"
    return folder


def _versions(pair: Pair) -> tuple[str, str]:
    policy, critic = (
        "unversioned" if half.version is None else str(half.version) for half in (pair.policy, pair.critic)
    )
    return policy, critic


def _show_start(servers: ServedPair) -> None:
    """A line with a clock for every server until all are ready; without a terminal, a line when each is."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = stderr()
    columns = (SpinnerColumn(finished_text="[green]✓[/green]"), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks = {process.name: progress.add_task(f"{process.name:8}", total=1) for process in servers.processes}
        announced: set[str] = set()

        def show(status: Sequence[ServerStatus]) -> None:
            for server in status:
                if server.is_ready and server.name not in announced:
                    announced.add(server.name)
                    progress.update(tasks[server.name], completed=1)
                    if not console.is_terminal:
                        console.print(f"{server.name} is ready after {server.elapsed_s:.0f} s")

        servers.wait_until_ready(on_progress=show)


def _print_addresses(pair: Pair, servers: ServedPair, mlflow_uri: str | None) -> None:
    console = stdout()
    console.print(f"Serving {pair.label}", soft_wrap=True)
    addresses = {"Gateway": servers.urls.gateway, "Policy": servers.urls.policy, "Critic": servers.urls.critic}
    if mlflow_uri and mlflow_uri.startswith("http"):
        addresses["MLflow"] = mlflow_uri
    for name, url in addresses.items():
        console.print(f"  {name:8} {url}", soft_wrap=True)
    console.print(f"  {'Logs':8} {servers.log_dir}", soft_wrap=True)
    stderr().print(f'Ask it: irlops ask "…" --url {servers.urls.gateway}    Stop: Ctrl-C', soft_wrap=True)


@contextlib.contextmanager
def _terminating_on_sigterm() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C, so that the servers are stopped in order and not only by their guards."""

    def leave(signal_number: int, _: object) -> None:
        raise SystemExit(128 + signal_number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
