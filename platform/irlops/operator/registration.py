"""Registers what a run left on the state volume as a pair, in a pod that has the volume: the operator has none.

    python -m irlops.operator.registration --run=tiny-4f2a1-airl --evaluation=PATH --claim=tiny-state

Asked again, after a pod was killed, it finds the pair that it registered. Both halves are registered by where they lie
(``pvc://``); no weight is copied.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irlops.contracts.evaluation import Calibration
from irlops.contracts.exit_codes import ExitCode, exit_code_for
from irlops.contracts.jobs import JobEnvironment
from irlops.contracts.pair import CRITIC_MODEL, Pair
from irlops.errors import ConfigError, DataError, IrlopsError
from irlops.operator.registry import CALIBRATION_TAG

if TYPE_CHECKING:
    from irlops.registry.pairs import PairRegistry

_log = logging.getLogger(__name__)


def register_run(
    registry: PairRegistry, state_dir: Path, *, run: str, evaluation: Mapping[str, Any] | None, claim: str
) -> Pair:
    """The pair of ``<state>/<run>/policy`` and ``critic``, registered now or by an earlier attempt.

    Raises:
        PairError: the folders are no pair, or the registry refused.
        UnavailableError: the registry does not answer.
    """
    from irlops.registry.run_folders import lineage_of_run

    for pair in registry.list():
        if pair.lineage.run_name == run and pair.policy.uri == f"pvc://{claim}/{run}/policy":
            _log.info("%s is registered as %s already.", run, pair.label)
            return pair
    folder = state_dir / run
    lineage = registry.known_run(lineage_of_run(folder)).model_copy(update={"run_name": run})
    return registry.register(
        folder / "policy",
        folder / "critic",
        policy_uri=f"pvc://{claim}/{run}/policy",
        critic_uri=f"pvc://{claim}/{run}/critic",
        evaluation=evaluation,
        lineage=lineage,
    )


def read_evaluation(path: Path) -> dict[str, Any]:
    """The body of evaluation.json.

    Raises:
        DataError: it is missing or no object.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"There is no evaluation at {path} ({error}). The evaluation job writes it.") from error
    if not isinstance(body, dict):
        raise DataError(f"{path} is no evaluation: it holds a {type(body).__name__}. Run the evaluation again.")
    return body


def calibration_of(evaluation: Mapping[str, Any], critic: Path) -> Calibration | None:
    """As the evaluation fitted it, or as it lies beside the critic."""
    found = evaluation.get("calibration")
    file = critic / "calibration.json"
    if found is None and file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
    return None if found is None else Calibration.model_validate(found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Register, and end with a code that PyTorchJob's ``restartPolicy: ExitCode`` understands."""
    parser = argparse.ArgumentParser(description="Register what a run left as a pair.")
    parser.add_argument("--run", required=True, help="folder of the run on the state volume")
    parser.add_argument("--evaluation", required=True, type=Path, help="evaluation.json on the state volume")
    parser.add_argument("--claim", required=True, help="the PersistentVolumeClaim that holds the volume")
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
    try:
        _register(asked)
    except IrlopsError as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        return int(exit_code_for(error))
    return int(ExitCode.OK)


def _register(asked: argparse.Namespace) -> None:
    from irlops.registry.pairs import PairRegistry

    environment = JobEnvironment()
    if not environment.tracking_uri:
        raise ConfigError("MLFLOW_TRACKING_URI is not set, so there is no registry. The operator sets it.")
    evaluation = read_evaluation(environment.state_dir / asked.evaluation)
    registry = PairRegistry(environment.tracking_uri)
    pair = register_run(registry, environment.state_dir, run=asked.run, evaluation=evaluation, claim=asked.claim)
    calibration = calibration_of(evaluation, environment.state_dir / asked.run / "critic")
    if calibration is not None:
        _tag_calibration(environment.tracking_uri, str(pair.critic.version), calibration)
    _log.info("Registered %s.", pair.label)


def _tag_calibration(tracking_uri: str, critic_version: str, calibration: Calibration) -> None:
    from irlops.registry.client import explaining, open_client

    with explaining("Recording the calibration", tracking_uri):
        text = calibration.model_dump_json(by_alias=True)
        open_client(tracking_uri).set_model_version_tag(CRITIC_MODEL, critic_version, CALIBRATION_TAG, text)


if __name__ == "__main__":
    sys.exit(main())
