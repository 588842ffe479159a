"""A training manifest: one PyTorchJob with the ConfigMaps, Secrets and claims it mounts, in one YAML file.

file -> read_training_manifest -> TrainingManifest -> run here (irlops.local) or on a cluster (irlops.cluster)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import BaseModel, ValidationError

from irlops.contracts.pytorchjob import Claim, ConfigMap, PyTorchJob, Secret
from irlops.contracts.wrong_yaml import UNKNOWN_KEY, explain_unknown_key, explain_yaml
from irlops.errors import ManifestError

_KINDS: dict[str, tuple[str, type[BaseModel]]] = {
    "PyTorchJob": ("kubeflow.org/v1", PyTorchJob),
    "ConfigMap": ("v1", ConfigMap),
    "Secret": ("v1", Secret),
    "PersistentVolumeClaim": ("v1", Claim),
}
_SAYS_ALL = ("missing", "value_error")
"""Problems whose message needs no value beside it."""

_T = TypeVar("_T", bound=BaseModel)


@dataclass(frozen=True)
class TrainingManifest:
    """What one file holds.

    Made by ``read_training_manifest``; consumed by the local runner and by the cluster client.
    Example: ``TrainingManifest(path=Path("airl-tiny.yaml"), job=..., config_maps={"airl-tiny": {"job.yaml": b"kind: airl"}},
    secrets={}, claims=("irlops-tiny",), documents=(...))``
    """

    path: Path
    job: PyTorchJob
    config_maps: Mapping[str, Mapping[str, bytes]]
    """Name to key to content."""
    secrets: Mapping[str, Mapping[str, bytes]]
    claims: tuple[str, ...]
    documents: tuple[Mapping[str, Any], ...]
    """As written, for the cluster."""


def read_training_manifest(path: Path) -> TrainingManifest:
    """Read one manifest file.

    Raises:
        ManifestError: the file is missing or not YAML, holds another kind, not exactly one PyTorchJob, or an object that
            the API server or the training operator would refuse.
    """
    documents = _documents(path)
    objects = [_parse(document, path) for document in documents]
    jobs = _only(PyTorchJob, objects)
    if len(jobs) != 1:
        kinds = ", ".join(sorted({str(document["kind"]) for document in documents})) or "nothing"
        raise ManifestError(
            f"{path} holds {len(jobs)} PyTorchJobs (seen: {kinds}). A training manifest holds exactly one."
        )
    return TrainingManifest(
        path=path,
        job=jobs[0],
        config_maps={one.metadata.name: one.content for one in _only(ConfigMap, objects)},
        secrets={one.metadata.name: one.content for one in _only(Secret, objects)},
        claims=tuple(one.metadata.name for one in _only(Claim, objects)),
        documents=documents,
    )


def _only(kind: type[_T], objects: Iterable[BaseModel]) -> list[_T]:
    return [one for one in objects if isinstance(one, kind)]


def _documents(path: Path) -> tuple[Mapping[str, Any], ...]:
    try:
        loaded: list[Any] = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ManifestError(
            f"No manifest at {path} ({error.strerror}). Those that are shipped lie in manifests/training."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path} is not YAML: {explain_yaml(error)}.") from error
    return tuple(_kubernetes_object(document, path) for document in loaded if document is not None)


def _kubernetes_object(document: Any, path: Path) -> Mapping[str, Any]:
    if not isinstance(document, dict) or "kind" not in document or "apiVersion" not in document:
        raise ManifestError(
            f"{path} holds something that is no Kubernetes object (it has no kind and apiVersion): {document!r:.80}"
        )
    seen = cast("dict[str, Any]", document)
    kind, version = seen["kind"], seen["apiVersion"]
    if kind not in _KINDS or _KINDS[kind][0] != version:
        raise ManifestError(
            f"{path} holds {_article(str(kind))} {kind} ({version}). A training manifest is one PyTorchJob (kubeflow.org/v1) with the "
            "ConfigMaps, Secrets and PersistentVolumeClaims (v1) that it mounts; apply other kinds with kubectl."
        )
    return seen


def _parse(document: Mapping[str, Any], path: Path) -> BaseModel:
    model = _KINDS[document["kind"]][1]
    try:
        return model.model_validate(document)
    except ValidationError as error:
        secret = document["kind"] == "Secret"
        problems = "; ".join(
            _problem(
                one["loc"],
                explain_unknown_key(model, one["loc"]) if one["type"] == UNKNOWN_KEY else one["msg"],
                None if secret or one["type"] in _SAYS_ALL else one["input"],
            )
            for one in error.errors()
        )
        raise ManifestError(f"The {document['kind']} in {path} can't be used: {problems}.") from error


def _article(noun: str) -> str:
    return "an" if noun[:1] in "AEIO" else "a"


def _problem(location: tuple[int | str, ...], message: str, seen: object) -> str:
    where = ".".join(map(str, location)) or "the whole"
    shown = "" if seen is None else f" (seen: {seen!r:.60})"
    return f"{where}: {message.removeprefix('Value error, ')}{shown}"
