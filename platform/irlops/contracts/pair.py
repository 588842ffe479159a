"""A pair: one version of the policy and one of the critic, registered, promoted and served together.

    register -> Pair (a version of irlops-policy and of irlops-critic that name each other)
    promote  -> the alias ``champion`` (or ``challenger``) stands on both halves
    resolve  -> PairReference -> Pair with immutable locations

A reference to a pair (``REF`` of the commands) is one of

    champion, challenger        the alias; the policy's alias decides, the critic's follows it
    7, v7                       version 7 of irlops-policy with the critic registered beside it
    run:0f3a...                 the newest pair registered by that MLflow run (a bare 32-digit hex id works too)
    ./out/run, /data/run        a folder with ``policy/`` and ``critic/``: a pair that nobody registered yet
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from irlops.errors import PairError

POLICY_MODEL = "irlops-policy"
CRITIC_MODEL = "irlops-critic"

Alias = Literal["champion", "challenger"]
Role = Literal["policy", "critic"]
ALIASES: tuple[Alias, ...] = ("champion", "challenger")

_VERSION = re.compile(r"v?([1-9][0-9]*)")
_RUN_ID = re.compile(r"(?:run:)?([0-9a-f]{32})")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class PairReference(_Record):
    """What a user wrote for a pair, understood.

    Example: ``parse_reference("v7")`` -> ``PairReference(kind="version", value="7")``.
    """

    kind: Literal["alias", "version", "run", "folder"]
    value: str

    def __str__(self) -> str:
        return f"run:{self.value}" if self.kind == "run" else self.value


def parse_reference(text: str) -> PairReference:
    """Understand a pair reference (see the grammar at the top of this module).

    Raises:
        PairError: the text is none of the four kinds.
    """
    text = text.strip()
    if text in ALIASES:
        return PairReference(kind="alias", value=text)
    if match := _VERSION.fullmatch(text):
        return PairReference(kind="version", value=match[1])
    if match := _RUN_ID.fullmatch(text):
        return PairReference(kind="run", value=match[1])
    if "://" not in text and ("/" in text or text.startswith((".", "~"))):
        return PairReference(kind="folder", value=text)
    raise PairError(
        f"{text!r} names no pair. Write champion, challenger, a policy version (7), run:RUN_ID, or a folder with "
        "policy/ and critic/ in it (./out/run). `irlops pairs list` shows what is registered."
    )


class PairHalf(_Record):
    """One model of a pair: where its weights are and what they are."""

    role: Role
    version: int | None = None
    """Of the registered model; None for a folder that is not registered."""
    uri: str
    """Where the weights lie and stay: a folder (``file://`` or a path), ``s3://``, ``pvc://claim/path``, ``hf://``."""
    weights_digest: str | None = None
    """``sha256:`` of the safetensors files, config and tokenizer, in name order."""
    base_model: str | None = None
    """What it was trained from (a preset or hub id)."""

    @property
    def local_path(self) -> Path | None:
        """The folder, when the weights lie on a file system this process could see; None for anything remote."""
        if self.uri.startswith("file://"):
            return Path(self.uri.removeprefix("file://"))
        return None if "://" in self.uri or ":/" in self.uri else Path(self.uri)


class PairLineage(_Record):
    """What a pair was made from. Absent facts are None, never guessed."""

    run_id: str | None = None
    """MLflow run that trained it."""
    run_name: str | None = None
    data_digest: str | None = None
    """``sha256:`` over everything that trained it."""
    policy_base_model: str | None = None
    critic_base_model: str | None = None
    git_commit: str | None = None


class EvaluationSummary(_Record):
    """The numbers of one evaluation.json that fit in a registry tag.

    ``metrics`` holds them by their path in evaluation.json without ``mean``: ``pass_at_k.1``, ``selectors.reward.1``,
    ``critic.auroc``. Made by ``summarise_evaluation``; read by gates, ``irlops pairs list`` and the operator.
    """

    dataset: str
    split: str | None = None
    dataset_digest: str | None = None
    num_problems: int | None = None
    samples_per_problem: int | None = None
    seed: int | None = None
    metrics: dict[str, float]
    not_finite: tuple[str, ...] = ()
    """Metrics that were there but NaN, infinite or null: a gate on one of them refuses."""


class Pair(_Record):
    """A policy and the critic that belongs to it."""

    policy: PairHalf
    critic: PairHalf
    tokenizer_digest: str
    lineage: PairLineage = PairLineage()
    evaluation: EvaluationSummary | None = None
    aliases: tuple[Alias, ...] = ()
    registered_at_ms: int | None = None
    """Milliseconds since 1970; None when it is not registered."""

    @property
    def is_registered(self) -> bool:
        return self.policy.version is not None

    @property
    def label(self) -> str:
        """How people call it: ``v7 (champion)``."""
        name = f"v{self.policy.version}" if self.is_registered else str(self.policy.local_path or self.policy.uri)
        return name + (f" ({', '.join(self.aliases)})" if self.aliases else "")


class Gate(_Record):
    """One number an evaluation has to reach before a pair may be promoted.

    Example: ``Gate(metric="critic.auroc", minimum=0.75)``.
    """

    metric: str
    """Its path in evaluation.json without ``mean``: ``pass_at_k.1``, ``selectors.reward.1``, ``critic.auroc``,
    ``differences.pass@1-sft``. Numbers in lists have no path."""
    minimum: float | None = Field(default=None, allow_inf_nan=False)
    maximum: float | None = Field(default=None, allow_inf_nan=False)


def parse_gate(text: str) -> Gate:
    """``critic.auroc>=0.75`` or ``critic.ece<=0.1`` as a gate.

    Raises:
        PairError: it is not of that form.
    """
    match = re.fullmatch(r"\s*([\w.@-]+)\s*(>=|<=)\s*([-+.\deE]+)\s*", text)
    try:
        if match is None:
            raise ValueError(text)
        bound = float(match[3])
    except ValueError as error:
        raise PairError(f"{text!r} is not a gate. Write it like critic.auroc>=0.75 or critic.ece<=0.1.") from error
    return Gate(metric=match[1], minimum=bound) if match[2] == ">=" else Gate(metric=match[1], maximum=bound)


def failed_gates(evaluation: EvaluationSummary | None, gates: Iterable[Gate]) -> list[str]:
    """Why ``evaluation`` does not pass, one sentence a gate; empty when it passes."""
    return [reason for gate in gates if (reason := _why_failed(evaluation, gate))]


def _why_failed(evaluation: EvaluationSummary | None, gate: Gate) -> str | None:
    if evaluation is None:
        return f"{gate.metric} is asked for, but the pair has no evaluation"
    if gate.metric in evaluation.not_finite:
        return f"{gate.metric} is not a finite number"
    value = evaluation.metrics.get(gate.metric)
    if value is None:
        return f"{gate.metric} is not in the evaluation (it has {_like(gate.metric, evaluation.metrics)})"
    if gate.minimum is not None and value < gate.minimum:
        return f"{gate.metric} is {value:.4g}, below {gate.minimum:.4g}"
    if gate.maximum is not None and value > gate.maximum:
        return f"{gate.metric} is {value:.4g}, above {gate.maximum:.4g}"
    return None


def _like(metric: str, known: Mapping[str, float]) -> str:
    """The names that were perhaps meant, all of them where they are few."""
    if len(known) <= MAX_NAMED:
        return ", ".join(sorted(known)) or "no metric"
    close = difflib.get_close_matches(metric, known, n=MAX_NAMED, cutoff=0)
    return f"{', '.join(close)} and {len(known) - len(close)} others"


MAX_NAMED = 6
_SUMMARISED = (
    "pass_at_k",
    "selectors",
    "differences",
    "strict",
    "samples",
    "critic",
    "by_aggregation",
    "calibration",
    "first_error",
    "first_own_error",
    "untrained",
    "transfer",
)


def summarise_evaluation(body: Mapping[str, Any]) -> EvaluationSummary:
    """The summary of an evaluation.json body.

    Raises:
        PairError: the body has no dataset name or no number at all.
    """
    dataset = _as_mapping(body.get("dataset"))
    found = {name: value for section in _SUMMARISED for name, value in _numbers(section, body.get(section))}
    if "name" not in dataset or not found:
        raise PairError(
            f"This is not an evaluation: it has the keys {sorted(body)}, and needs dataset.name and at least one of "
            f"{', '.join(_SUMMARISED)}. Make one with `irlops evaluate`."
        )
    return EvaluationSummary(
        dataset=str(dataset["name"]),
        split=dataset.get("split"),
        dataset_digest=dataset.get("digest"),
        num_problems=dataset.get("num_problems"),
        samples_per_problem=body.get("samples_per_problem"),
        seed=body.get("seed"),
        metrics={name: value for name, value in found.items() if value is not None},
        not_finite=tuple(sorted(name for name, value in found.items() if value is None)),
    )


def _numbers(path: str, value: Any) -> Iterable[tuple[str, float | None]]:
    """Every number under ``value`` by its path; None stands for null, NaN and infinity."""
    if isinstance(value, Mapping):
        entries = _as_mapping(cast(object, value))
        if "mean" in entries:
            yield from _numbers(path, entries["mean"])
            return
        for key, entry in entries.items():
            yield from _numbers(f"{path}.{key}", entry)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path, float(value) if math.isfinite(value) else None
    elif value is None and "." in path:
        yield path, None


def _as_mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
