"""``python -m irlops_jobs.demonstrations JOB_FILE --output FILE [--examples N]``: a look at what a job would learn from.

Writes the first N rows of the training and the test split as JSON, for people and for ``irlops demo``.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from irlops.contracts.exit_codes import ExitCode, exit_code_for
from irlops.contracts.jobs import DataConfig, JobEnvironment, load_job
from irlops.errors import IrlopsError
from irlops_jobs.demonstrations.load import load_demonstrations


def main(arguments: list[str] | None = None) -> int:
    """Write the examples; the exit code says whether another try could work."""
    parser = argparse.ArgumentParser(prog="python -m irlops_jobs.demonstrations", description="Show demonstrations.")
    parser.add_argument("job_file", type=Path, help="a job's YAML")
    parser.add_argument("--output", type=Path, required=True, help="gets the JSON")
    parser.add_argument("--examples", type=int, default=16, help="rows of each split (default: 16)")
    options = parser.parse_args(arguments)
    try:
        config = _first_rows_of(load_job(options.job_file).data, options.examples)
        data = load_demonstrations(config, JobEnvironment())
    except IrlopsError as error:
        print(f"Error: {error}", file=sys.stderr)
        return exit_code_for(error)
    splits = {
        split: [asdict(row) for row in rows[: options.examples]]
        for split, rows in (("train", data.train), ("test", data.test))
    }
    options.output.write_text(json.dumps({"name": data.name, **splits}))
    return ExitCode.OK


def _first_rows_of(config: DataConfig, num_rows: int) -> DataConfig:
    """Splits are cut from their start, so a small cut has the same first rows as the whole."""
    return config.model_copy(
        update={
            "num_train": min(num_rows, config.num_train or num_rows),
            "num_test": min(num_rows, config.num_test or num_rows),
        }
    )


if __name__ == "__main__":
    sys.exit(main())
