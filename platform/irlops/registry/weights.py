"""Where the weights of a registered pair lie, and how they get to where they are needed.

Big weights never pass through the tracking server. A half is registered by a URI where it lies already (``pvc://``,
``s3://``, ``gs://``, ``hf://`` …); or, when MLflow keeps artifacts as files on this machine or in object storage, its
folder is copied there by this process, and stays as it was when the next run overwrites the folder.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from irlops.contracts.pair import Pair, PairHalf
from irlops.errors import PairError, StorageError
from irlops.registry.client import explaining
from irlops.registry.folders import ModelFolder, inspect_model_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROXIED_LIMIT_BYTES = 64 * 1024**2
"""Most that is sent through a tracking server that proxies artifacts."""

URI_SCHEMES = frozenset({"s3", "gs", "pvc", "hf", "oci", "abfs", "abfss", "https", "hdfs", "webhdfs"})
"""What KServe can load from; http without TLS is left out."""

_PROXIED = ("mlflow-artifacts", "http", "https")


def place_weights(client: MlflowClient, tracking_uri: str, run_id: str, folder: ModelFolder, uri: str | None) -> str:
    """The lasting URI of a half: ``uri`` itself, or where a copy of ``folder`` was put under the run's artifacts.

    Args:
        uri: Where the same files lie for good, as a cluster sees them; None copies the folder.

    Raises:
        PairError: the URI is of a kind nobody can load, or the folder would have to go through the tracking server.
        StorageError: the copy did not fit on the disk.
    """
    if uri is not None:
        return _checked_uri(uri, folder.role)
    artifact_root = client.get_run(run_id).info.artifact_uri or ""
    name = f"{folder.role}-{folder.content_digest.removeprefix('sha256:')[:12]}"
    if (root := _as_local(artifact_root)) is not None:
        _require_shared_disk(root, tracking_uri, folder.role)
        return str(_copy_once(folder, root, name))
    if urlsplit(artifact_root).scheme in _PROXIED and folder.num_bytes > PROXIED_LIMIT_BYTES:
        raise PairError(
            f"The {folder.role} in {folder.path} has {folder.num_bytes / 1024**2:.0f} MiB, and this tracking server "
            f"would carry every byte of it (artifacts at {artifact_root}; at most {PROXIED_LIMIT_BYTES // 1024**2} "
            "MiB are sent that way). Register it by the URI where it lies, for example "
            f"--{folder.role}-uri pvc://CLAIM/PATH or s3://BUCKET/PATH."
        )
    client.log_artifacts(run_id, str(folder.path), name)
    return f"{artifact_root.rstrip('/')}/{name}"


def fetch_weights(half: PairHalf, cache_dir: Path, tracking_uri: str) -> Path:
    """A folder on this machine with the half's files, downloaded once per version.

    ``pvc://claim/path`` is looked up in IRLOPS_PVC_MOUNTS (``claim=/mnt/state,other=/mnt/other``).

    Raises:
        PairError: the files are gone, or differ from what was registered.
        UnavailableError: the download failed.
    """
    path = _mounted(half.uri) or _as_local(half.uri) or _download(half, cache_dir, tracking_uri)
    found = inspect_model_folder(path, half.role)
    if half.weights_digest and found.weights_digest != half.weights_digest:
        raise PairError(
            f"The {half.role} in {path} is not what was registered as v{half.version} ({found.weights_digest[:19]}… "
            f"instead of {half.weights_digest[:19]}…): somebody wrote over it. Register it again as a new pair."
        )
    return path


def fetch_pair(pair: Pair, cache_dir: Path, tracking_uri: str) -> Pair:
    """``pair`` with both halves in folders on this machine; see ``fetch_weights`` for errors."""
    halves = {
        half.role: half.model_copy(update={"uri": str(fetch_weights(half, cache_dir, tracking_uri))})
        for half in (pair.policy, pair.critic)
    }
    return pair.model_copy(update=halves)


def kserve_storage_uri(half: PairHalf) -> str:
    """``half.uri`` as an InferenceService takes it in ``storageUri``.

    Raises:
        PairError: KServe can't load from there (0.21 knows neither ``models:/`` nor ``mlflow-artifacts:``).
    """
    if urlsplit(half.uri).scheme in URI_SCHEMES:
        return half.uri
    raise PairError(
        f"{half.role} v{half.version} lies at {half.uri}, which KServe can't load. Register the pair by a URI that the "
        f"cluster reaches ({', '.join(sorted(URI_SCHEMES))}), for example with --{half.role}-uri pvc://CLAIM/PATH."
    )


def _checked_uri(uri: str, role: str) -> str:
    parts = urlsplit(uri)
    if parts.scheme not in URI_SCHEMES:
        raise PairError(
            f"{uri!r} is no place to serve a {role} from. Give one of {', '.join(sorted(URI_SCHEMES))}, or only the "
            "folder: then its files are copied to MLflow's artifacts."
        )
    if parts.password or ".." in parts.path.split("/"):
        raise PairError(
            f"The {role}'s URI holds a password or '..'. Give a plain address; secrets belong to the cluster."
        )
    return uri.rstrip("/")


def _require_shared_disk(root: Path, tracking_uri: str, role: str) -> None:
    """A path that a server gives out means something only on its own disk: ``<artifact root>/<experiment>/<run>/…``."""
    if urlsplit(tracking_uri).scheme in ("http", "https") and not root.parents[2].exists():
        raise PairError(
            f"The tracking server keeps artifacts in its own file system ({root}), which this machine does not share. "
            f"Register the {role} by the URI where it lies (--{role}-uri), or start the server with --serve-artifacts "
            "or an object store."
        )


def _copy_once(folder: ModelFolder, root: Path, name: str) -> Path:
    """Copy the folder under ``root``, all of it or nothing; the same weights are copied once."""
    target = root / name
    if target.exists():
        return target
    partial = root / f".{name}-{uuid.uuid4().hex[:8]}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder.path, partial)
        partial.rename(target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if target.exists():  # another process registered the same weights at the same moment
            return target
        raise StorageError(
            f"Copying the {folder.role} ({folder.num_bytes / 1024**2:.0f} MiB) to {root} failed: {error}. Free space "
            "and register again; earlier pairs are untouched."
        ) from error
    return target


def _download(half: PairHalf, cache_dir: Path, tracking_uri: str) -> Path:
    scheme = urlsplit(half.uri).scheme
    if scheme in ("pvc", "hf", "oci"):
        raise PairError(
            f"The {half.role} lies at {half.uri}, which can't be downloaded from here. "
            + (
                "Mount the claim and name it: IRLOPS_PVC_MOUNTS=CLAIM=/mnt/path."
                if scheme == "pvc"
                else "Get it by hand."
            )
        )
    digest = (half.weights_digest or "").removeprefix("sha256:")[:12]
    target = cache_dir / f"{half.role}-v{half.version}-{digest or 'unknown'}"
    if target.exists():
        return target
    partial = cache_dir / f".{target.name}-{uuid.uuid4().hex[:8]}"
    partial.mkdir(parents=True)
    try:
        with explaining(f"Downloading {half.role} v{half.version}", tracking_uri):
            from mlflow.artifacts import download_artifacts

            Path(download_artifacts(half.uri, dst_path=str(partial), tracking_uri=tracking_uri)).rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _as_local(uri: str) -> Path | None:
    if uri.startswith("file://"):
        return Path(urlsplit(uri).path)
    return Path(uri) if uri and not urlsplit(uri).scheme else None


def _mounted(uri: str) -> Path | None:
    parts = urlsplit(uri)
    mounts = dict(entry.split("=", 1) for entry in os.environ.get("IRLOPS_PVC_MOUNTS", "").split(",") if "=" in entry)
    if parts.scheme != "pvc" or parts.netloc not in mounts:
        return None
    return Path(mounts[parts.netloc]) / parts.path.lstrip("/")
