"""The job file inside a manifest: found, changed by ``--set key=value``, and checked before anything starts."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import yaml

from irlops.contracts.jobs import Job, parse_job
from irlops.contracts.pytorchjob import Container, Pod
from irlops.contracts.training_manifest import TrainingManifest
from irlops.contracts.wrong_yaml import explain_yaml
from irlops.errors import ConfigError, ManifestError

JOB_FILE = "IRLOPS_JOB_FILE"


def with_overrides(manifest: TrainingManifest, overrides: Mapping[str, Any]) -> TrainingManifest:
    """The manifest with some keys of its job file set to other values.

    Args:
        overrides: Dotted keys of the job file, for example ``{"seed": 7, "rollouts.samples_per_prompt": 4}``.

    Raises:
        ConfigError: a key leads nowhere, or the manifest carries no job file.
    """
    if not overrides:
        return manifest
    place = find_job_file(manifest)
    if place is None:
        raise ConfigError(
            f"{manifest.path} has no job file to set {', '.join(overrides)} in: no container has {JOB_FILE} pointing into a "
            "mounted ConfigMap. Change the file itself."
        )
    name, key = place
    document = copy.deepcopy(_job_document(manifest, name, key))
    for dotted, value in overrides.items():
        _set(document, dotted, value, origin=str(manifest.path))
    text = yaml.safe_dump(document, sort_keys=False)
    return replace(
        manifest,
        config_maps={**manifest.config_maps, name: {**manifest.config_maps[name], key: text.encode()}},
        documents=tuple(_with_file(each, name, key, text) for each in manifest.documents),
    )


def _with_file(document: Mapping[str, Any], name: str, key: str, text: str) -> Mapping[str, Any]:
    """The same object; the ConfigMap of that name with another text under ``key``."""
    if document["kind"] != "ConfigMap" or document["metadata"]["name"] != name:
        return document
    binary = {other: content for other, content in document.get("binaryData", {}).items() if other != key}
    kept = {field: value for field, value in document.items() if field != "binaryData"}
    return {**kept, "data": {**document.get("data", {}), key: text}, **({"binaryData": binary} if binary else {})}


def check_job_file(manifest: TrainingManifest) -> Job | None:
    """Validate the job file; None when the manifest runs something else than our jobs.

    Raises:
        ConfigError: the job file has wrong keys or values.
        ManifestError: the ConfigMap or its key is not in the file.
    """
    place = find_job_file(manifest)
    if place is None:
        return None
    name, key = place
    return parse_job(_job_document(manifest, name, key), origin=f"{manifest.path} (ConfigMap {name}, {key})")


def find_job_file(manifest: TrainingManifest) -> tuple[str, str] | None:
    """ConfigMap name and key of what IRLOPS_JOB_FILE points to; None when no container has that variable."""
    for _, replica in manifest.job.spec.replicas():
        pod = replica.template.spec
        path = next((variable.value for variable in pod.pytorch.env if variable.name == JOB_FILE), None)
        if path and (place := _config_map_behind(path, pod, pod.pytorch)):
            return place
    return None


def _config_map_behind(path: str, pod: Pod, container: Container) -> tuple[str, str] | None:
    volumes = {volume.name: volume.config_map for volume in pod.volumes}
    for mount in container.volume_mounts:
        source, prefix = volumes.get(mount.name), mount.mount_path.rstrip("/")
        if source is None or not (path == prefix or path.startswith(prefix + "/")):
            continue
        file = "/".join(part for part in (mount.sub_path, path[len(prefix) + 1 :]) if part)
        key = next((item.key for item in source.items if item.path == file), file)
        return source.name, key
    return None


def _job_document(manifest: TrainingManifest, name: str, key: str) -> Any:
    if name not in manifest.config_maps:
        raise ManifestError(
            f"{manifest.path} mounts the ConfigMap {name!r} as its job file, which is not in the file (there: "
            f"{', '.join(manifest.config_maps) or 'none'}). Put it beside the PyTorchJob, with the job under the key {key}."
        )
    content = manifest.config_maps[name]
    if key not in content:
        raise ManifestError(
            f"{manifest.path}: the ConfigMap {name} has no key {key!r}, to which {JOB_FILE} points (keys: {', '.join(content)})."
        )
    try:
        return yaml.safe_load(content[key])
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{key} in the ConfigMap {name} of {manifest.path} is not YAML: {explain_yaml(error)}."
        ) from error


def _set(document: Any, dotted: str, value: Any, *, origin: str) -> None:
    *sections, last = dotted.split(".")
    for depth, section in enumerate(sections, start=1):
        if isinstance(document, dict) and document.get(section) is None:
            document[section] = {}
        document = document.get(section) if isinstance(document, dict) else None
        if not isinstance(document, dict):
            raise ConfigError(
                f"{'.'.join(sections[:depth])} in the job file of {origin} is no section, so {dotted} can't be set."
            )
    if not isinstance(document, dict):
        raise ConfigError(f"The job file of {origin} is no mapping (seen: {document!r:.60}).")
    document[last] = value
