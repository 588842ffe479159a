"""The demonstrations a job file asks for."""

from __future__ import annotations

from pathlib import Path

from irlops.contracts.jobs import DataConfig, JobEnvironment
from irlops_jobs.demonstrations.arithmetic import load_arithmetic
from irlops_jobs.demonstrations.carriers import Demonstration, DemonstrationSet
from irlops_jobs.demonstrations.expressions import ANNOTATION
from irlops_jobs.demonstrations.gsm8k import Gsm8kSettings, load_gsm8k

ARITHMETIC_TRAIN, ARITHMETIC_TEST = 20_000, 1_000


def load_demonstrations(config: DataConfig, environment: JobEnvironment) -> DemonstrationSet:
    """All three splits, cut to the sizes asked for; the same settings give the same rows and digests.

    Raises:
        DataError: rows are malformed, or fewer than asked for.
    """
    if config.name == "arithmetic":
        return _arithmetic(config)
    folder = Path(config.source) if config.source else environment.data_dir
    if folder is not None and not folder.is_absolute():
        folder = environment.state_dir / folder
    return load_gsm8k(
        Gsm8kSettings(
            folder=folder,
            keep_annotations=config.calculator_annotations == "keep",
            num_train=config.num_train,
            num_dev=config.num_dev,
            num_test=config.num_test,
            on_malformed=config.on_malformed,
            seed=config.seed,
        )
    )


def _arithmetic(config: DataConfig) -> DemonstrationSet:
    sizes = {
        "train": config.num_train or ARITHMETIC_TRAIN,
        "dev": config.num_dev,
        "test": config.num_test or ARITHMETIC_TEST,
    }

    def rows(split: str) -> list[Demonstration]:
        loaded = load_arithmetic(
            split,  # pyright: ignore[reportArgumentType] - one of the three keys above
            sizes[split],
            seed=config.seed,
            min_steps=config.min_steps,
            max_steps=config.max_steps,
        )
        if config.calculator_annotations == "keep":
            return loaded
        return [Demonstration(row.question, ANNOTATION.sub("", row.solution), row.answer, row.source) for row in loaded]

    return DemonstrationSet.of(
        "arithmetic", train=rows("train"), dev=rows("dev"), test=rows("test"), has_one_solution_each=True
    )
