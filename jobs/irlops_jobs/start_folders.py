"""The folders whose models a job starts from: named before torch is imported when one of them holds none.

Without torch on purpose: that an earlier job has not run yet should not cost half a minute on every node.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from irlops.contracts.jobs import EvaluateJob, JobBase, JobEnvironment
from irlops.errors import ConfigError

CRITIC_LIKE_POLICY = "policy"
"""model.critic_from: start from the policy's backbone."""


def start_folder(job: JobBase, environment: JobEnvironment, key: str, relative: str) -> Path:
    """Where the model lies that ``key`` of the job file names.

    Raises:
        ConfigError: there is none.
    """
    folder = environment.state_dir / relative
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{key} of {job.run_name} is {relative}, but {folder} holds no model (no config.json). "
            "Run the job that writes it first, or correct the path: it is relative to IRLOPS_STATE_DIR."
        )
    return folder


def require_start_folders(job: JobBase, environment: JobEnvironment) -> None:
    """Look at every folder that the job will read a model from.

    Raises:
        ConfigError: one of them holds none.
    """
    for key, relative in _named(job):
        start_folder(job, environment, key, relative)


def _named(job: JobBase) -> Iterator[tuple[str, str]]:
    if job.model.policy_from is not None:
        yield "model.policy_from", job.model.policy_from
    if job.model.critic_from not in (None, CRITIC_LIKE_POLICY):
        yield "model.critic_from", job.model.critic_from
    if isinstance(job, EvaluateJob):
        yield from ((f"compare.{row}", relative) for row, relative in job.compare.items() if relative is not None)
