"""A folder that appears whole or not at all, and that replaces an earlier one without a moment in which it is torn."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from irlops.errors import StorageError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def published_folder(folder: Path, *, expected_bytes: int = 0) -> Iterator[Path]:
    """A temporary folder beside ``folder`` that takes its place when the block ends well.

    One writer at a time. What an earlier, killed writer left half-written is removed first.

    Args:
        folder: Where it will stand; what stands there now stays usable until the very end.
        expected_bytes: Refused at once when the volume has less room than this.

    Raises:
        StorageError: the disk is full or can't be written; ``folder`` is as it was.
    """
    folder = folder.absolute()
    staging = folder.with_name(f".{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
        _require_room(folder.parent, expected_bytes)
        staging.mkdir()
        yield staging
        _sync(staging)
        _take_place(staging, folder)
    except (OSError, SafetensorError) as error:  # the safetensors writer has an error type of its own for a full disk
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"{folder} could not be written: {error}. What was there before is untouched. Free space on that volume, or "
            "mount a larger one, and run the job again: it resumes from its last checkpoint."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _require_room(parent: Path, expected_bytes: int) -> None:
    free = shutil.disk_usage(parent).free
    if free < expected_bytes:
        raise StorageError(
            f"{parent} has {free / 2**20:.0f} MiB free, {expected_bytes / 2**20:.0f} MiB are needed. Nothing was written. "
            "Free space on that volume, or mount a larger one, and run the job again."
        )


def _sync(folder: Path) -> None:
    """Onto the disk, files before the names that lead to them: a power cut then leaves the old or the new folder."""
    for path in [*(path for path in folder.rglob("*") if path.is_file()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _take_place(staging: Path, folder: Path) -> None:
    if not folder.exists():
        staging.rename(folder)
        return
    if _exchange(staging, folder):
        return  # the caller removes what is in staging now: the earlier folder
    earlier = folder.with_name(f".{folder.name}.earlier")
    shutil.rmtree(earlier, ignore_errors=True)
    folder.rename(earlier)
    try:
        staging.rename(folder)
    except OSError:
        earlier.rename(folder)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step (Linux); False where the kernel or the file system can't."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0
