"""A pod's volumes as folders of this machine.

ConfigMap, Secret -> files in the run's working folder      emptyDir -> an empty folder there, one for each pod
PersistentVolumeClaim -> a folder of the claim's name under the state directory, which stays
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from irlops.contracts.pytorchjob import Container, KeyToPath, Pod, Volume
from irlops.contracts.training_manifest import TrainingManifest
from irlops.errors import ManifestError, StorageError


@dataclass(frozen=True)
class Mounts:
    """Where the paths of a container lie on this machine.

    Made by ``lay_out_volumes``; consumed by whoever starts the container's command.
    Example: ``Mounts(((Path("/var/lib/irlops"), Path("/home/me/.irlops/state/irlops-tiny")),))``
    """

    folders: tuple[tuple[str, Path], ...]
    """Mount path and local path, longest mount path first."""

    def find(self, path: str) -> Path | None:
        """The local path, or None when no volume is mounted there."""
        for mount_path, local in self.folders:
            if path == mount_path:
                return local
            if path.startswith(mount_path.rstrip("/") + "/"):
                return local / path[len(mount_path.rstrip("/")) + 1 :]
        return None

    def localise(self, text: str) -> str:
        """An environment value or argument with its container path replaced; also behind ``--option=``."""
        option, equals, value = text.partition("=") if text.startswith("-") else ("", "", text)
        local = self.find(value)
        return text if local is None else f"{option}{equals}{local}"


def lay_out_volumes(
    pod: Pod, container: Container, manifest: TrainingManifest, pod_dir: Path, state_dir: Path
) -> Mounts:
    """Make the folders of one pod's volumes, fill them, and say where the container's mounts lie.

    Args:
        pod_dir: Of this pod alone; removed when the run is over.
        state_dir: Gets a folder for each claim.

    Raises:
        ManifestError: a volume is of another kind, or a ConfigMap, Secret or key is not in the file.
        StorageError: the folders can't be written.
    """
    try:
        volumes = {volume.name: _folder_of(volume, manifest, pod_dir, state_dir) for volume in pod.volumes}
    except OSError as error:
        raise StorageError(
            f"The volumes of {manifest.path} can't be written: {error}. Free space, or choose another --state-dir."
        ) from error
    folders: list[tuple[str, Path]] = []
    for mount in container.volume_mounts:
        if mount.name not in volumes:
            raise ManifestError(
                f"{manifest.path}: {mount.mount_path} mounts the volume {mount.name!r}, which the pod does not have "
                f"(volumes: {', '.join(volumes) or 'none'})."
            )
        local = volumes[mount.name]
        folders.append((mount.mount_path, local / mount.sub_path if mount.sub_path else local))
    return Mounts(tuple(sorted(folders, key=lambda folder: -len(folder[0]))))


def _folder_of(volume: Volume, manifest: TrainingManifest, pod_dir: Path, state_dir: Path) -> Path:
    folder = pod_dir / volume.name
    if volume.persistent_volume_claim:
        folder = state_dir / volume.persistent_volume_claim.claim_name
        folder.mkdir(parents=True, exist_ok=True)
    elif volume.config_map:
        source, wanted = volume.config_map, f"ConfigMap {volume.config_map.name}"
        content = find_content(manifest.config_maps, source.name, manifest.path, wanted, optional=source.optional)
        _write_files(folder, _projected(content, source.items, wanted, manifest.path, optional=source.optional))
    elif volume.secret:
        source, wanted = volume.secret, f"Secret {volume.secret.secret_name}"
        content = find_content(manifest.secrets, source.secret_name, manifest.path, wanted, optional=source.optional)
        _write_files(folder, _projected(content, source.items, wanted, manifest.path, optional=source.optional))
    elif volume.empty_dir:
        folder.mkdir(parents=True)
    else:
        raise ManifestError(
            f"{manifest.path}: the volume {volume.name!r} is a {volume.other_kind or 'volume without a source'}, which exists on a "
            "cluster only. Here configMap, secret, emptyDir and persistentVolumeClaim are known."
        )
    return folder


def find_content(
    objects: Mapping[str, Mapping[str, bytes]], name: str, path: Path, wanted: str, *, optional: bool = False
) -> Mapping[str, bytes]:
    """Keys of a ConfigMap or Secret of the same file.

    Raises:
        ManifestError: it is not there, and not optional.
    """
    if name in objects:
        return objects[name]
    if optional:
        return {}
    raise ManifestError(
        f"{path} uses the {wanted}, which is not in the file (there: {', '.join(objects) or 'none of its kind'}). On a "
        "cluster it may exist already; here it has to stand in the same file."
    )


def _projected(
    content: Mapping[str, bytes], items: Sequence[KeyToPath], wanted: str, path: Path, *, optional: bool
) -> Iterable[tuple[str, bytes]]:
    if not items:
        yield from content.items()
    for item in items:
        if item.key in content:
            yield item.path, content[item.key]
        elif not optional:
            raise ManifestError(f"{path}: {wanted} has no key {item.key!r} (keys: {', '.join(content) or 'none'}).")


def _write_files(folder: Path, files: Iterable[tuple[str, bytes]]) -> None:
    folder.mkdir(parents=True)
    for name, content in files:
        if name.startswith("/") or ".." in Path(name).parts:
            raise ManifestError(f"A volume's file must lie inside the volume (seen: {name!r}).")
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)  # may be a secret
        file.write_bytes(content)


_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_.-][A-Za-z0-9_.-]*)\)")


def expand_references(text: str, environment: Mapping[str, str]) -> str:
    """``$(NAME)`` as Kubernetes expands it: unknown names stay as written, ``$$`` is a dollar sign."""
    return _REFERENCE.sub(lambda found: "$" if found[0] == "$$" else environment.get(found[1], found[0]), text)
