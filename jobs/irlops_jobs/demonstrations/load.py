"""The ``data`` section of a job file to the demonstrations it names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from irlops.contracts.jobs import DataConfig
from irlops_jobs.demonstrations.arithmetic import Split, load_arithmetic
from irlops_jobs.demonstrations.carriers import Demonstration, DemonstrationSet
from irlops_jobs.demonstrations.expressions import strip_annotations
from irlops_jobs.demonstrations.gsm8k import Gsm8kSettings, load_gsm8k

ARITHMETIC_NUM_TRAIN = 20_000
ARITHMETIC_NUM_TEST = 1_000


def load_demonstrations(data: DataConfig, data_dir: Path | None = None) -> DemonstrationSet:
    """The three splits of a job's data; the same section gives the same rows and digests on every rank.

    Args:
        data: The section of the job file.
        data_dir: IRLOPS_DATA_DIR, where GSM8K's files lie when ``data.source`` names no folder; None reads the hub.

    Raises:
        DataError, MissingDependencyError, UnavailableError: see ``load_gsm8k``.
    """
    if data.name == "arithmetic":
        return _load_arithmetic(data)
    return load_gsm8k(
        Gsm8kSettings(
            folder=Path(data.source) if data.source else data_dir,
            keep_annotations=data.calculator_annotations == "keep",
            num_train=data.num_train,
            num_dev=data.num_dev,
            num_test=data.num_test,
            on_malformed=data.on_malformed,
            seed=data.seed,
        )
    )


def _load_arithmetic(data: DataConfig) -> DemonstrationSet:
    def rows(split: Split, num: int) -> list[Demonstration]:
        made = load_arithmetic(split, num, seed=data.seed, min_steps=data.min_steps, max_steps=data.max_steps)
        if data.calculator_annotations == "keep":
            return made
        return [replace(row, solution=strip_annotations(row.solution)) for row in made]

    return DemonstrationSet.of(
        "arithmetic",
        train=rows("train", data.num_train or ARITHMETIC_NUM_TRAIN),
        dev=rows("dev", data.num_dev),
        test=rows("test", data.num_test or ARITHMETIC_NUM_TEST),
    )
