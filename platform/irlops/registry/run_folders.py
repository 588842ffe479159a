"""What a finished run says of itself in its folder: from what it was made, and how it was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from irlops.contracts.pair import PairLineage
from irlops.errors import PairError
from irlops.registry.provenance import git_commit
from irlops.registry.tracking import RUN_FILE


def lineage_of_run(run_dir: Path) -> PairLineage:
    """Lineage from ``policy/lineage.json``, ``critic/lineage.json`` and the run's MLflow id; absent facts stay None.

    Raises:
        PairError: one of these files is there, but damaged.
    """
    policy, critic = (_read(run_dir / half / "lineage.json") or {} for half in ("policy", "critic"))
    return PairLineage(
        run_id=(_read(run_dir / RUN_FILE) or {}).get("run_id"),
        run_name=policy.get("run_name") or run_dir.absolute().name,
        data_digest=policy.get("data_digest"),
        policy_base_model=policy.get("base_model"),
        critic_base_model=critic.get("base_model"),
        git_commit=git_commit(),
    )


def evaluation_of_run(run_dir: Path) -> dict[str, Any] | None:
    """Body of ``evaluation/evaluation.json``; None when the run was not evaluated in its own folder.

    Raises:
        PairError: the file is damaged.
    """
    return _read(run_dir / "evaluation" / "evaluation.json")


def _read(file: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise PairError(f"{file} can't be read ({error}). Run the job that writes it again.") from error
    if not isinstance(document, dict):
        raise PairError(f"{file} holds a {type(document).__name__}, not an object. Run the job that writes it again.")
    return document
