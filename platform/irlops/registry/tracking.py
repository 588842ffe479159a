"""What a job records of itself in MLflow: parameters, metrics by step, dataset digests, its config, plots.

    with open_training_run(run_dir, experiment="irlops", run_name="airl-tiny", rank=rank) as run:
        run.log_config(job)
        run.log_metrics({"reward/mean": 0.3}, step=20)

Only rank 0 records. Without MLFLOW_TRACKING_URI every method does nothing. A server that is down at the start is an
error; one that goes away later is not (see ``irlops.registry.delivery``). A restarted job goes on in the same run.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel

from irlops.errors import ConfigError, PreemptedError
from irlops.registry.client import explaining, is_missing, is_refusal, open_client
from irlops.registry.delivery import Delivery, Record
from irlops.registry.masking import mask_secrets
from irlops.registry.provenance import git_commit

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger(__name__)

RUN_FILE = "mlflow-run.json"
UNSENT_FILE = "mlflow-unsent.jsonl"

_MAX_DIGEST = 36
"""Characters MLflow stores of a dataset digest; the whole one goes into the dataset's profile."""

_MAX_PARAM_VALUE = 6000
_MAX_TAG_VALUE = 8000


class TrainingRun:
    """One MLflow run of one job, made by ``open_training_run``; ``run_id`` is None when nothing is recorded.

    Its methods return at once and never raise for the server.
    """

    def __init__(
        self,
        run_id: str | None = None,
        *,
        client: MlflowClient | None = None,
        delivery: Delivery | None = None,
        known_params: Mapping[str, str] | None = None,
        tracking_uri: str | None = None,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        self.run_id, self.tracking_uri = run_id, tracking_uri
        self._client, self._delivery, self._now_ms = client, delivery, now_ms
        self._params = dict(known_params or {})

    @property
    def is_recording(self) -> bool:
        return self._delivery is not None

    def log_params(self, params: BaseModel | Mapping[str, Any]) -> None:
        """Record parameters; nested ones become ``section.key``. Secrets are masked.

        MLflow never changes a parameter: one that differs from before a restart is kept as the tag ``resumed.<key>``.
        """
        for key, value in _flatten(mask_secrets(params)).items():
            before = self._params.setdefault(key, value)
            if before != value:
                self.set_tags({f"resumed.{key}": value})
            else:
                self._put({"kind": "param", "key": key, "value": value})

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers of one step (a round or an optimizer step)."""
        at_ms = self._now_ms()
        self._put(
            *(
                {"kind": "metric", "key": key, "value": _json_number(value), "step": step, "at_ms": at_ms}
                for key, value in values.items()
            )
        )

    def log_config(self, config: BaseModel | Mapping[str, Any], file: str = "config.yaml") -> None:
        """Keep the resolved config as an artifact and as parameters, with secrets masked."""
        self.log_params(config)
        self.log_text(yaml.safe_dump(mask_secrets(config), sort_keys=False, allow_unicode=True), file)

    def log_dataset(
        self, name: str, digest: str, *, source: str, num_rows: int, context: Literal["train", "dev", "test"]
    ) -> None:
        """Record a dataset by its digest (``sha256:…``)."""
        profile = json.dumps({"num_rows": num_rows, "digest": digest})
        short = digest.removeprefix("sha256:")[:_MAX_DIGEST]
        self._put(
            {"kind": "dataset", "key": name, "digest": short, "source": source, "profile": profile, "context": context}
        )
        self.set_tags({f"data_digest.{context}": digest})

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Keep a file, or all files of a folder, beside the run. It is read when it is sent, soon after."""
        self._put({"kind": "artifact", "path": str(path.absolute()), "folder": folder})

    def log_text(self, text: str, file: str) -> None:
        """Keep a text as the artifact ``file``."""
        self._put({"kind": "text", "text": text, "file": file})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record tags; a later value replaces an earlier one."""
        self._put(*({"kind": "tag", "key": key, "value": value[:_MAX_TAG_VALUE]} for key, value in tags.items()))

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Wait until what was recorded so far is sent; False when the server is away."""
        return self._delivery.flush(timeout_s) if self._delivery else True

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED", timeout_s: float = 15.0) -> None:
        """Send what is left and close the run; a job that goes on later opens it again."""
        if self._delivery is None or self._client is None:
            return
        self._delivery.put([{"kind": "status", "key": status}])
        self._delivery.close(timeout_s)
        self._delivery = None

    def __enter__(self) -> TrainingRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish("FINISHED")
            return
        self.set_tags({"error": f"{type(error).__name__}: {error}"})
        self.finish("KILLED" if isinstance(error, (PreemptedError, KeyboardInterrupt)) else "FAILED")

    def _put(self, *records: Record) -> None:
        if self._delivery is not None:
            self._delivery.put(records)


def open_training_run(
    run_dir: Path,
    *,
    experiment: str,
    run_name: str,
    rank: int = 0,
    tracking_uri: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> TrainingRun:
    """The run of the job that works in ``run_dir``: a new one, or the one it had before a restart.

    Args:
        rank: Of this process; others than 0 get a run that records nothing.
        tracking_uri: None takes MLFLOW_TRACKING_URI; when that is not set either, nothing is recorded.

    Raises:
        UnavailableError: the tracking server does not answer.
        ConfigError: the experiment was deleted.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if rank != 0:
        return TrainingRun()
    if not uri:
        _log.info("MLFLOW_TRACKING_URI is not set: this run is recorded in %s only.", run_dir)
        return TrainingRun()
    client = open_client(uri)
    run_dir.mkdir(parents=True, exist_ok=True)
    with explaining("Opening the run", uri):
        run_id, params = _resume(client, run_dir) or (None, {})
        if run_id is None:
            run_id = _create(client, run_dir, uri, experiment, run_name)
    run = TrainingRun(
        run_id,
        client=client,
        delivery=Delivery(lambda batch: _send(client, run_id, batch), _is_outage, run_dir / UNSENT_FILE),
        known_params=params,
        tracking_uri=uri,
    )
    commit = git_commit()
    run.set_tags({**({"mlflow.source.git.commit": commit, "git_commit": commit} if commit else {}), **(tags or {})})
    return run


def ensure_experiment(client: MlflowClient, name: str, tracking_uri: str) -> str:
    """Id of the experiment, made when it does not exist.

    Raises:
        ConfigError: it was deleted in MLflow.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=_artifacts_beside(tracking_uri, name))
        except Exception:
            found = client.get_experiment_by_name(name)  # another process was faster
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise ConfigError(f"The MLflow experiment {name!r} was deleted. Restore it there, or set another `experiment`.")
    return found.experiment_id


def _resume(client: MlflowClient, run_dir: Path) -> tuple[str, dict[str, str]] | None:
    """Run id and parameters of the run that an earlier process recorded in, if this server has it."""
    try:
        before = json.loads((run_dir / RUN_FILE).read_text())
    except (OSError, ValueError):
        return None
    try:
        run = client.get_run(before["run_id"])
    except Exception as error:
        if not is_missing(error):
            raise
        _log.warning("Run %s is not at this tracking server; a new run begins.", before["run_id"])
        return None
    if run.info.lifecycle_stage == "deleted":
        return None
    client.update_run(run.info.run_id, status="RUNNING")
    _log.info("Goes on in MLflow run %s.", run.info.run_id)
    return run.info.run_id, dict(run.data.params)


def _create(client: MlflowClient, run_dir: Path, uri: str, experiment: str, run_name: str) -> str:
    run_id = client.create_run(ensure_experiment(client, experiment, uri), run_name=run_name).info.run_id
    temporary = run_dir / f"{RUN_FILE}.tmp"
    temporary.write_text(json.dumps({"run_id": run_id, "experiment": experiment, "tracking_uri": mask_secrets(uri)}))
    temporary.replace(run_dir / RUN_FILE)
    (run_dir / UNSENT_FILE).unlink(missing_ok=True)  # of a run that this server never had
    return run_id


def _send(client: MlflowClient, run_id: str, batch: Sequence[Record]) -> None:
    from mlflow.entities import Metric, Param, RunTag

    of_kind = {kind: [record for record in batch if record["kind"] == kind] for kind in ("metric", "param", "tag")}
    metrics = [Metric(r["key"], _number(r["value"]), r["at_ms"], r["step"]) for r in of_kind["metric"]]
    params = [Param(r["key"], r["value"]) for r in of_kind["param"]]
    tags = [RunTag(r["key"], r["value"]) for r in of_kind["tag"]]
    for start in range(0, max(len(metrics), 1), 500):
        if metrics:
            client.log_batch(run_id, metrics=metrics[start : start + 500])
    for start in range(0, max(len(params), len(tags)), 100):  # MLflow takes 100 of each in one request
        client.log_batch(run_id, params=params[start : start + 100], tags=tags[start : start + 100])
    for record in batch:
        _send_one(client, run_id, record)


def _send_one(client: MlflowClient, run_id: str, record: Record) -> None:
    match record["kind"]:
        case "dataset":
            _send_dataset(client, run_id, record)
        case "text":
            client.log_text(run_id, record["text"], record["file"])
        case "artifact":
            path, folder = record["path"], record["folder"] or None
            if Path(path).is_dir():
                client.log_artifacts(run_id, path, folder)
            else:
                client.log_artifact(run_id, path, folder)
        case "status":
            client.set_terminated(run_id, status=record["key"])


def _send_dataset(client: MlflowClient, run_id: str, record: Record) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=record["key"],
        digest=record["digest"],
        source_type="irlops",
        source=json.dumps({"uri": record["source"]}),
        profile=record["profile"],
    )
    tag = InputTag("mlflow.data.context", record["context"])
    client.log_inputs(run_id, datasets=[DatasetInput(dataset=dataset, tags=[tag])])


def _is_outage(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return not is_refusal(error)
    return isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.split(".")[0] in (
        "requests",
        "urllib3",
        "botocore",
    )


def _flatten(value: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(value, Mapping):
        text = value if isinstance(value, str) else json.dumps(value)
        return {prefix: text[:_MAX_PARAM_VALUE]}
    parts = [_flatten(entry, f"{prefix}.{key}" if prefix else str(key)) for key, entry in value.items()]
    return {key: text for part in parts for key, text in part.items()}


def _json_number(value: float) -> float | str:
    """JSON has no NaN; MLflow does, and a chart with a hole where training broke is worth having."""
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _number(value: float | str) -> float:
    return float(value)


def _artifacts_beside(tracking_uri: str, name: str) -> str | None:
    """A database that is opened without a server names no place for artifacts; they go beside it."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    return str(Path(tracking_uri.removeprefix("sqlite:///")).parent / "artifacts" / name)
