"""The demo's output folder: never somebody else's, and empty of an earlier demo when one begins."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from irlops.errors import ConfigError, StorageError

MARKER = ".irlops-demo.json"
"""Says that a folder is a demo's, and which files in it are."""

_OWN = ("state", "logs", "summary.json")
_SHOWN = (".html", ".png")


@dataclass(frozen=True)
class DemoFolder:
    """What lies where in the output folder.

    Made by ``claim_folder``; consumed by the stages.
    Example: ``DemoFolder(Path("out/demo")).state_dir`` is ``out/demo/state``.
    """

    path: Path

    @property
    def state_dir(self) -> Path:
        """The jobs' claims: checkpoints, models, evaluations; ``logs/`` in it holds what workers print."""
        return self.path / "state"

    @property
    def log_dir(self) -> Path:
        """What servers print."""
        return self.path / "logs"

    @property
    def summary_file(self) -> Path:
        return self.path / "summary.json"

    def publish(self, source: Path) -> list[Path]:
        """Copy an evaluation's page and pictures to the top of the folder, noted so that the next demo removes them.

        Raises:
            StorageError: the disk is full.
        """
        with _explaining(self.path):
            names = sorted(file.name for file in source.iterdir() if file.suffix in _SHOWN)
            _write_marker(self.path, [*_files_in(self.path), *names])
            return [Path(shutil.copy2(source / name, self.path / name)) for name in names]

    def write_summary(self, text: str) -> None:
        """Write summary.json, whole or not at all."""
        with _explaining(self.path):
            partial = self.path / ".summary.json.partial"
            partial.write_text(text, encoding="utf-8")
            partial.replace(self.summary_file)


def claim_folder(path: Path) -> DemoFolder:
    """Make the folder, or clear the one that an earlier demo left.

    Raises:
        ConfigError: something lies there that no demo made.
        StorageError: it can't be written.
    """
    path = path.expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file. Name a folder with --output-dir.")
    with _explaining(path):
        if path.exists() and any(path.iterdir()):
            _require_ours(path)
            _clear(path)
        path.mkdir(parents=True, exist_ok=True)
        _write_marker(path, [])
    return DemoFolder(path)


@contextlib.contextmanager
def only_demo(home: Path) -> Iterator[None]:
    """Hold the folder of MLflow and pairs for one demo: a second one would lose the first one's server halfway.

    Raises:
        ConfigError: another demo runs.
        StorageError: the folder can't be written.
    """
    with _explaining(home):
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / "demo.lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"Another demo already runs on {home}. Wait for it, end it with Ctrl-C, or set IRLOPS_HOME to another "
                "folder for this one."
            ) from error
        yield


def _require_ours(path: Path) -> None:
    if (path / MARKER).is_file():
        return
    seen = ", ".join(sorted(entry.name for entry in path.iterdir())[:3])
    raise ConfigError(
        f"{path} is not empty, and what lies there is no demo's ({seen} …). Nothing was touched. Choose another folder "
        "with --output-dir."
    )


def _clear(path: Path) -> None:
    for name in (*_OWN, *_files_in(path)):
        entry = path / name
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def _files_in(path: Path) -> list[str]:
    """Files that the marker names; only those at the top of the folder, whatever it says."""
    try:
        names = json.loads((path / MARKER).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [name for name in names if isinstance(name, str) and name not in ("", ".", "..") and "/" not in name]


def _write_marker(path: Path, files: Sequence[str]) -> None:
    document = {"about": "made by irlops demo, which clears this folder when it runs here again", "files": list(files)}
    (path / MARKER).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _explaining(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, (ConfigError, StorageError)):
            raise
        raise StorageError(f"{path} can't be written: {error}. Free space, or choose another folder.") from error
