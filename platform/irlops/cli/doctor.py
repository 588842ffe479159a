"""``irlops doctor``: what is there, what is not, and the command that mends it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from irlops.cli.console import print_json, stderr, stdout, waiting

if TYPE_CHECKING:
    from rich.console import Console

    from irlops.contracts.findings import Finding

_MARKS = {"ok": ("✓", "green"), "optional": ("○", "yellow"), "missing": ("✗", "bold red")}


def doctor(
    cluster: Annotated[
        bool | None,
        typer.Option("--cluster/--no-cluster", help="Look at the cluster, too. On by itself when KUBECONFIG is set."),
    ] = None,
    kubeconfig: Annotated[
        Path | None, typer.Option(envvar="KUBECONFIG", metavar="FILE", help="The cluster to look at.")
    ] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", metavar="NAME", help="Where jobs would run.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Find what this machine or cluster lacks, and the command that fixes it.

    Ends with a nonzero exit code when something needed is missing.
    """
    from irlops.contracts.exit_codes import ExitCode

    with waiting("Looking at this machine"):
        findings = _findings_here()
    if cluster or (cluster is None and kubeconfig is not None):
        with waiting("Asking the cluster"):
            findings += _findings_there(kubeconfig, namespace)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_findings(findings, stdout())
    if any(finding.status == "missing" for finding in findings):
        raise typer.Exit(int(ExitCode.BAD_INPUT))


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """By area, each with its fix under it; the needed ones are counted at the end."""
    from rich.table import Table
    from rich.text import Text

    for area in dict.fromkeys(finding.area for finding in findings):
        console.print(f"\n[bold]{area}[/bold]")
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(width=1)
        table.add_column(no_wrap=True, min_width=22)
        table.add_column(overflow="fold")
        for finding in findings:
            if finding.area == area:
                mark, style = _MARKS[finding.status]
                text = Text(finding.found)
                if finding.fix and finding.status != "ok":
                    text.append(f"\n→ {finding.fix}", style="cyan")
                table.add_row(Text(mark, style=style), Text(finding.name), text)
        console.print(table)
    missing = [finding.name for finding in findings if finding.status == "missing"]
    console.print()
    if missing:
        stderr().print(f"[bold red]Missing: {', '.join(missing)}.[/bold red]", soft_wrap=True)
    else:
        console.print("[green]Everything needed is here.[/green]")


def _findings_there(kubeconfig: Path | None, namespace: str | None) -> list[Finding]:
    """A cluster that can't be asked is itself a finding: what was found here is worth reading all the same."""
    from irlops.cluster.survey import AREA, cluster_findings
    from irlops.contracts.findings import Finding
    from irlops.errors import IrlopsError

    try:
        return cluster_findings(kubeconfig, namespace)
    except IrlopsError as error:
        return [Finding(AREA, "connection", "missing", str(error))]


def _findings_here() -> list[Finding]:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from irlops.cli import machine_checks

    return [*machine_checks.machine_findings(), *machine_checks.package_findings(), *machine_checks.data_findings()]
