"""``irlops logs``: what all workers of a cluster's job, or of a pipeline's jobs, print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from irlops.cli.console import print_error, stderr, stdout
from irlops.cli.options import Kubeconfig, Namespace
from irlops.errors import PermanentError

if TYPE_CHECKING:
    from irlops.cluster.connection import Connection
    from irlops.cluster.training import TrainingCluster

_SETTLED = ("Ready", "Failed", "RolledBack", "Suspended")
"""Phases in which a pipeline starts no further job."""


def logs(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A PyTorchJob, or a ReasoningPipeline.")],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until it is over; restarted pods included.")
    ] = False,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show what all workers of a cluster's job or pipeline print.

    Of a pipeline: the pods of all its stages. With --follow the exit code says whether it ended well.
    """
    from irlops.cluster.connection import connect
    from irlops.cluster.overview import find_pipeline
    from irlops.cluster.training import TrainingCluster

    connection = connect(kubeconfig, namespace)
    cluster = TrainingCluster(connection)
    if cluster.find(name) is not None:
        _logs_of_job(cluster, name, follow=follow)
    elif find_pipeline(connection, name) is not None:
        _logs_of_pipeline(connection, name, follow=follow)
    else:
        raise PermanentError(
            f"{connection.namespace} has neither a PyTorchJob nor a ReasoningPipeline called {name}. `irlops status` lists "
            "those there are."
        )


def _logs_of_job(cluster: TrainingCluster, name: str, *, follow: bool) -> None:
    from irlops.cli.train import line_printer

    say = line_printer(stdout())
    if not follow:
        _complain_of_silence(cluster.logs(name).print_once(say), name)
        return
    state = cluster.follow(name, on_line=say, on_state=lambda state: stderr().print(str(state), markup=False))
    if not state.succeeded:
        print_error(f"{name} ended as {state}")
        raise typer.Exit(1)


def _logs_of_pipeline(connection: Connection, name: str, *, follow: bool) -> None:
    from irlops.cli.train import line_printer
    from irlops.cluster.overview import PIPELINE_LABEL, find_pipeline
    from irlops.cluster.pod_logs import PodLogs

    pods, say = PodLogs(connection, f"{PIPELINE_LABEL}={name}"), line_printer(stdout())
    if not follow:
        _complain_of_silence(pods.print_once(say), name)
        return
    phases: list[str] = []

    def is_over() -> bool:
        row = find_pipeline(connection, name)
        if row is None:
            raise PermanentError(f"The ReasoningPipeline {name} was deleted.")
        if row.phase not in phases[-1:]:
            stderr().print(f"{row.phase} {row.progress}  {row.message}".rstrip(), markup=False)
            phases.append(row.phase)
        return row.phase in _SETTLED

    pods.follow(is_over, say)
    if phases[-1] != "Ready":
        print_error(f"{name} ended as {phases[-1]}. `irlops status` says why.")
        raise typer.Exit(1)


def _complain_of_silence(num_pods: int, name: str) -> None:
    if not num_pods:
        stderr().print(
            f"No pod of {name} has begun yet, or they are gone. `irlops status` says where it stands.", markup=False
        )
