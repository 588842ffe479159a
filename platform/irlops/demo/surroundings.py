"""What the demo finds around it: packages, cores and GPUs, the program's name, signals, and where to keep things."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

from irlops.demo.screen import shown_path
from irlops.errors import MissingDependencyError
from irlops.local.machine import this_machine

_PACKAGES = ("torch", "transformers", "mlflow", "flask", "kserve", "psutil", "matplotlib", "rich")


def policy_backend() -> tuple[Any, str]:
    """vLLM where it has a GPU. On two cores it needs 13 s and 1.9 GiB more than our own server for one question."""
    if this_machine().gpus and importlib.util.find_spec("vllm") is not None:
        return "vllm", "vLLM"
    return "transformers", "transformers (vLLM would need 2 GiB more here)"


def introduction(seed: int, results_dir: Path) -> tuple[str, str]:
    """What is about to happen, and with what."""

    def of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "?"

    machine = this_machine()
    python = ".".join(map(str, sys.version_info[:3]))
    return (
        f"irlops demo: learn from expert solutions, serve what was learned, ask it (seed {seed})",
        f"irlops {of('irlops')}, Python {python}, torch {of('torch')}, transformers {of('transformers')}, MLflow "
        f"{of('mlflow')}, KServe {of('kserve')} · {machine.num_cores} cores, {machine.memory_bytes / 2**30:.0f} GiB · "
        f"results in {shown_path(results_dir)}",
    )


def program() -> str:
    """How to call us again: by name when that is found, else by the path of this environment."""
    return "irlops" if shutil.which("irlops") else shown_path(Path(sys.executable).parent / "irlops")


def require_packages() -> None:
    """Before anything is begun.

    Raises:
        MissingDependencyError: names those that are missing, and how to install them.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"The demo trains, serves and records here, and needs {', '.join(missing)} for it. Install it with: "
            "pip install 'irlops[platform,jobs,serving,mlflow-server]'."
        )


@contextlib.contextmanager
def ending_on_signals() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C, so that everything is ended in order and not only by its guards.

    SIGINT counts as well where it came ignored: that is how scripts start what they put into the background.
    """

    def leave(signal_number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + signal_number)

    wanted = {signal.SIGTERM: leave, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def demo_home() -> Path:
    """Where the other commands look for MLflow, too: IRLOPS_HOME, or .irlops here."""
    return Path(os.environ.get("IRLOPS_HOME", ".irlops")).expanduser().absolute()
