"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", metavar="NAME", help="By default the kubeconfig's.")
]
Kubeconfig = Annotated[Path | None, typer.Option(metavar="FILE", help="By default KUBECONFIG or ~/.kube/config.")]
