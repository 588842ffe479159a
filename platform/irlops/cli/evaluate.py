"""``irlops evaluate``: the evaluation job on this machine, for any pair."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from irlops.cli.console import print_error, print_json, stderr, stdout, waiting
from irlops.errors import ConfigError

if TYPE_CHECKING:
    from irlops.contracts.jobs import EvaluateJob
    from irlops.contracts.pair import EvaluationSummary, Pair
    from irlops.local.processes import SupervisedProcess

RUN_NAME = "evaluate"
_FOLLOW_EVERY_S = 0.2
_LONGEST_SOLUTION = {"arithmetic": 128, "gsm8k": 320}
"""Tokens; GSM8K's solutions are longer, and cutting them off would count as wrong."""


def evaluate(
    pair: Annotated[str, typer.Option(metavar="REF", help="champion, challenger, 7, run:ID or a folder.")] = "champion",
    dataset: Annotated[str, typer.Option(metavar="NAME", help="arithmetic or gsm8k.")] = "arithmetic",
    samples: Annotated[int, typer.Option(min=2, max=256, metavar="N", help="Solutions for each problem.")] = 16,
    num_problems: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Test problems; all of them when left out.")
    ] = None,
    output_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="Gets evaluation.json, report.html and pictures.")
    ] = Path("out/evaluation"),
    data_dir: Annotated[
        Path | None,
        typer.Option(envvar="IRLOPS_DATA_DIR", metavar="DIR", help="GSM8K's train.jsonl and test.jsonl; else the hub."),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Longest solution; by default 128, for gsm8k 320.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.01, metavar="T", help="Of sampling.")] = 1.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Of sampling; the data set stays the same.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, metavar="N", help="Processes; by default two.")] = None,
    record: Annotated[bool, typer.Option(help="Put the result on the registered pair.")] = True,
    tracking_uri: Annotated[
        str | None, typer.Option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", metavar="URL", help="MLflow server.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Measure a pair: pass@k, selectors, and how well the critic tells right from wrong.

    Runs the same evaluation job as a cluster would, here and now.
    """
    from irlops.contracts.pair import summarise_evaluation

    with waiting(f"Fetching {pair}"):
        found, registry = _fetch(pair, tracking_uri, output_dir)
    job = make_job(found, dataset, samples, num_problems, max_new_tokens, temperature, seed)
    body = run_job(job, output_dir, workers or min(2, os.cpu_count() or 1), data_dir)
    if registry is not None and record:
        registry.record_evaluation(str(found.policy.version), body)
    if as_json:
        print_json(body)
        return
    stdout().print(_table(summarise_evaluation(body)))
    stdout().print(f"\n{output_dir / 'report.html'}", style="dim", markup=False)


def make_job(
    pair: Pair,
    dataset: str,
    samples: int,
    num_problems: int | None,
    max_new_tokens: int | None,
    temperature: float,
    seed: int,
) -> EvaluateJob:
    """The evaluation job for a pair whose folders are on this machine.

    Raises:
        ConfigError: a value is out of range, or the model's context is too short.
    """
    from irlops.contracts.jobs import EvaluateJob, parse_job

    if dataset not in _LONGEST_SOLUTION:
        raise ConfigError(f"{dataset!r} is no data set. Choose {' or '.join(_LONGEST_SOLUTION)}.")
    longest = max_new_tokens or _LONGEST_SOLUTION[dataset]
    policy, critic = pair.policy.local_path, pair.critic.local_path
    assert policy is not None
    context = json.loads((policy / "config.json").read_text()).get("max_position_embeddings", 2048)
    if longest >= context:
        raise ConfigError(
            f"{longest} new tokens do not fit into the policy's context of {context}. Lower --max-new-tokens."
        )
    document = {
        "kind": "evaluate",
        "run_name": RUN_NAME,
        "row": "pair",
        "seed": seed,
        "data": {"name": dataset, "num_test": num_problems},
        "model": {
            "policy_from": str(policy),
            "critic_from": str(critic),
            "max_length": min(context, longest + 512),  # room for the question
        },
        "samples_per_problem": samples,
        "rollouts": {"samples_per_prompt": samples, "max_new_tokens": longest, "temperature": temperature},
    }
    job = parse_job(document, origin="the evaluation that these options ask for")
    assert isinstance(job, EvaluateJob)
    return job


def run_job(job: EvaluateJob, output_dir: Path, workers: int, data_dir: Path | None) -> dict[str, Any]:
    """Run the job under torchelastic and leave its results in ``output_dir``; evaluation.json's body.

    Raises:
        SystemExit: the job failed, with the job's own message and exit code.
    """
    import yaml

    from irlops.local.processes import start_supervised

    state_dir = (output_dir / ".state").absolute()
    shutil.rmtree(state_dir, ignore_errors=True)
    state_dir.mkdir(parents=True)
    (state_dir / "job.yaml").write_text(yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False))
    process = start_supervised(
        "the evaluation",
        [sys.executable, "-P", "-m", "irlops_jobs.launch"],
        log_file=output_dir / "evaluation.log",
        environment=_job_environment(state_dir, workers, data_dir),
        working_dir=state_dir,
    )
    try:
        _follow(process)
    finally:
        process.stop()
    if process.exit_code:
        lines = process.last_lines().splitlines()
        said = next((line for line in reversed(lines) if line.startswith("Error: ")), lines[-1])
        print_error(f"{said.removeprefix('Error: ')} (log: {process.log_file})")
        raise SystemExit(process.exit_code)
    results = state_dir / RUN_NAME / "evaluation"
    shutil.copytree(results, output_dir, dirs_exist_ok=True)
    shutil.rmtree(state_dir)
    return json.loads((output_dir / "evaluation.json").read_text())


def _fetch(ref: str, tracking_uri: str | None, output_dir: Path) -> tuple[Pair, Any]:
    """The pair in folders on this machine, and the registry it came from (None for a folder)."""
    from irlops.cli.pairs import open_registry
    from irlops.contracts.pair import parse_reference
    from irlops.registry.pairs import pair_in_folder
    from irlops.registry.weights import fetch_pair

    output_dir.mkdir(parents=True, exist_ok=True)
    if parse_reference(ref).kind == "folder":
        return pair_in_folder(Path(ref)), None
    registry = open_registry(tracking_uri)
    return fetch_pair(registry.resolve(ref), output_dir / ".weights", registry.tracking_uri), registry


def _job_environment(state_dir: Path, workers: int, data_dir: Path | None) -> dict[str, str]:
    ours = {
        "IRLOPS_JOB_FILE": str(state_dir / "job.yaml"),
        "IRLOPS_STATE_DIR": str(state_dir),
        "PET_NNODES": "1",
        "PET_NPROC_PER_NODE": str(workers),
        "PYTHONUNBUFFERED": "1",
    }
    # The result goes onto the pair, not into a run of its own.
    inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return inherited | ours | ({"IRLOPS_DATA_DIR": str(data_dir.absolute())} if data_dir else {})


def _follow(process: SupervisedProcess) -> None:
    """Show the job's last line while it runs; a process that was told to stop stops the job."""
    console, started = stderr(), time.monotonic()
    with console.status("Starting …") as status:
        while process.is_running:
            said = process.last_lines(1)
            elapsed = time.monotonic() - started
            status.update(f"{said if not said.startswith('(') else 'Starting'} … {elapsed:.0f} s")
            time.sleep(_FOLLOW_EVERY_S)


# The rest is in evaluation.json and report.html.
_PRINTED = ("pass_at_k.", "selectors.", "strict.pass_at_1", "critic.", "first_error.", "differences.")


def _table(summary: EvaluationSummary) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"{summary.dataset}, {summary.num_problems} problems x {summary.samples_per_problem}")
    table.add_column("value", justify="right")
    for name, value in summary.metrics.items():
        if not name.startswith(_PRINTED) or ".by_rule." in name:
            continue
        table.add_row(name, f"{value:.3f}")
    return table
