"""``python -m irlops_jobs.demonstrations JOB_FILE --output FILE [--examples N]``: a look at what a job would learn from.

Writes how many rows each split has and the first N of them as JSON, for people and for ``irlops demo``.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from irlops.contracts.exit_codes import ExitCode, exit_code_for
from irlops.contracts.jobs import JobEnvironment, load_job
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
        data = load_demonstrations(load_job(options.job_file).data, JobEnvironment())
    except IrlopsError as error:
        print(f"Error: {error}", file=sys.stderr)
        return exit_code_for(error)
    splits = {"train": data.train, "dev": data.dev, "test": data.test}
    document = {
        "name": data.name,
        "digest": data.digest,
        "num_rows": {split: len(rows) for split, rows in splits.items()},
        "examples": {split: [asdict(row) for row in rows[: options.examples]] for split, rows in splits.items()},
    }
    options.output.write_text(json.dumps(document))
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
