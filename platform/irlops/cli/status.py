"""``irlops status``: a cluster's pipelines and training jobs as a table."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from irlops.cli.console import print_json, stderr, stdout, waiting
from irlops.cli.options import Kubeconfig, Namespace

if TYPE_CHECKING:
    from irlops.cluster.overview import Row

_COLOURS = {
    "Succeeded": "green",
    "Ready": "green",
    "Failed": "red",
    "RolledBack": "red",
    "Restarting": "yellow",
    "Suspended": "yellow",
}


def status(
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """List a cluster's pipelines and training jobs, and where they stand."""
    from irlops.cluster.connection import connect
    from irlops.cluster.overview import overview

    with waiting("Asking the cluster"):
        connection = connect(kubeconfig, namespace)
        rows = overview(connection)
    if as_json:
        print_json([vars(row) for row in rows])
    elif rows:
        _print_table(rows)
    else:
        stderr().print(
            f"Nothing in {connection.namespace} yet. Start with: irlops train -f FILE --cluster", markup=False
        )


def _print_table(rows: tuple[Row, ...]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("Kind", "Name", "Phase", "Progress", "Age", "Message"):
        table.add_column(heading, no_wrap=heading != "Message", overflow="fold")
    for row in rows:
        phase = Text(row.phase, style=_COLOURS.get(row.phase, ""))
        table.add_row(
            row.kind, row.name, phase, row.progress, age(row.created_at, datetime.now(UTC)), Text(row.message)
        )
    stdout().print(table)


def age(created_at: str, now: datetime) -> str:
    """``2026-11-23T10:00:00Z`` -> ``5m``, as kubectl says it."""
    if not created_at:
        return ""
    seconds = int((now - datetime.fromisoformat(created_at.replace("Z", "+00:00"))).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{max(0, seconds)}s"
