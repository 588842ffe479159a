"""Which source code a run came from."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def git_commit(folder: Path | None = None) -> str | None:
    """Commit of the code (40 hex digits, ``+dirty`` when the working tree differs); None when it can't be told.

    Images carry it in IRLOPS_GIT_COMMIT, as they hold no repository.
    """
    if commit := os.environ.get("IRLOPS_GIT_COMMIT"):
        return commit
    folder = folder or Path(__file__).parent
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    return f"{commit}+dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no") else commit


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
