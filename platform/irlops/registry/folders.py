"""What a model folder (Hugging Face layout) holds, read without loading a weight.

    folder -> inspect_model_folder -> ModelFolder -> check_pair_folders -> may be registered

Only headers, JSON and digests are read, so a pair is checked in any image, without torch or transformers.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irlops.contracts.pair import Role
from irlops.errors import PairError

UNSAFE_SUFFIXES = frozenset(
    {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".h5", ".keras", ".py", ".pyc", ".so"}
)
"""Files that are code, or can run code when they are loaded. Weights come as safetensors only."""

_MAX_HEADER_BYTES = 100_000_000
"""Of a safetensors file; the limit of the format's own reader."""

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token")
"""Pad tokens are left out: padding is masked, and a critic often gets one that its policy lacks."""


@dataclass(frozen=True)
class ModelFolder:
    """A model folder that is complete and safe to load.

    Made by ``inspect_model_folder``; consumed by ``check_pair_folders`` and the registry.
    Example: ``ModelFolder(path=Path("out/airl/critic"), role="critic", architecture="LlamaForTokenClassification",
    num_bytes=3_611_000, weights_digest="sha256:9f…", content_digest="sha256:c0…", tokenizer_digest="sha256:41…", num_tokens=96)``.
    """

    path: Path
    role: Role
    architecture: str
    num_bytes: int
    weights_digest: str
    """Of weights, config and tokenizer.json: what the model computes."""
    content_digest: str
    """Of every file in it, calibration and lineage included: which copy this is."""
    tokenizer_digest: str
    num_tokens: int
    """Entries of the tokenizer, added ones included."""


def inspect_model_folder(path: Path, role: Role) -> ModelFolder:
    """Check one half of a pair.

    Raises:
        PairError: the folder is missing or incomplete, holds files that can run code, or is not the kind of model
            its role asks for.
    """
    path = path.expanduser().absolute()
    if not path.is_dir():
        raise PairError(
            f"The {role} is missing: there is no folder {path}. A pair needs both halves; train them in one run, or "
            "give the folder that the run wrote."
        )
    _refuse_unsafe_files(path, role)
    config = _read_json(path / "config.json", role)
    architecture = _architecture(config, path, role)
    weight_files = _weight_files(path, role)
    shapes = {name: shape for file in weight_files for name, shape in _tensor_shapes(file, role).items()}
    tokenizer = _read_json(path / "tokenizer.json", role)
    if role == "critic":
        _require_one_label(config, shapes, path)
    digests = {file: _file_digest(file) for file in sorted(path.rglob("*")) if file.is_file()}
    model_files = [*weight_files, path / "config.json", path / "tokenizer.json"]
    return ModelFolder(
        path=path,
        role=role,
        architecture=architecture,
        num_bytes=sum(file.stat().st_size for file in digests),
        weights_digest=_combined({file.name: digests[file] for file in model_files}),
        content_digest=_combined({str(file.relative_to(path)): digest for file, digest in digests.items()}),
        tokenizer_digest=tokenizer_digest(path),
        num_tokens=_num_tokens(tokenizer),
    )


def check_pair_folders(policy: ModelFolder, critic: ModelFolder) -> None:
    """The critic reads the policy's token ids as they are, so both tokenizers have to be the same.

    Raises:
        PairError: they differ; the message says in what.
    """
    if policy.tokenizer_digest == critic.tokenizer_digest:
        return
    raise PairError(
        f"Policy {policy.path} and critic {critic.path} use different tokenizers "
        f"({policy.tokenizer_digest[:19]}… and {critic.tokenizer_digest[:19]}…; {_difference(policy, critic)}). "
        "The critic scores the policy's token ids as they are. Register a policy and a critic that one run trained, or "
        "train the critic on the policy's tokenizer."
    )


def tokenizer_digest(path: Path) -> str:
    """``sha256:`` of what maps text to token ids: tokenizer.json less padding and truncation, and the special tokens.

    Raises:
        PairError: tokenizer.json is missing or not JSON.
    """
    mapping = {
        key: part for key, part in _read_json(path / "tokenizer.json").items() if key not in ("padding", "truncation")
    }
    canonical = json.dumps([mapping, _special_tokens(path)], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


def _refuse_unsafe_files(path: Path, role: Role) -> None:
    unsafe = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.suffix.lower() in UNSAFE_SUFFIXES)
    if unsafe:
        raise PairError(
            f"The {role} folder {path} holds files that can run code when loaded: {', '.join(unsafe[:5])}"
            f"{' …' if len(unsafe) > 5 else ''}. Save it with safe_serialization (safetensors) and remove them."
        )


def _architecture(config: dict[str, Any], path: Path, role: Role) -> str:
    if config.get("auto_map"):
        raise PairError(
            f"{path / 'config.json'} asks for remote code (auto_map: {config['auto_map']}), which is never run here. "
            f"Use a {role} of an architecture that transformers has built in."
        )
    architecture = str((config.get("architectures") or [""])[0])
    wanted = {"policy": "ForCausalLM", "critic": "ForTokenClassification"}[role]
    if not architecture.endswith(wanted):
        raise PairError(
            f"{path} is no {role}: its architecture is {architecture or '(none)'}, and a {role}'s ends in "
            f"{wanted}." + (" Were the two folders swapped?" if "For" in architecture else "")
        )
    return architecture


def _require_one_label(config: dict[str, Any], shapes: dict[str, list[int]], path: Path) -> None:
    num_labels = len(config.get("id2label") or {0: "", 1: ""})  # transformers' own default is two labels
    if num_labels != 1:
        raise PairError(
            f"{path} has {num_labels} labels; a critic gives one reward per token. Train it with num_labels=1."
        )
    head = shapes.get("score.weight") or shapes.get("classifier.weight")
    if head is None or head[0] != 1:
        raise PairError(
            f"{path} has no reward head: expected score.weight of shape [1, width], found {head or 'none'}. Export the "
            "critic with save_pretrained, merged if it was trained with LoRA."
        )


def _weight_files(path: Path, role: Role) -> list[Path]:
    """The safetensors files, all shards of them."""
    index = path / "model.safetensors.index.json"
    if not index.exists():
        single = path / "model.safetensors"
        if not single.is_file():
            raise PairError(
                f"The {role} folder {path} is incomplete: it has no model.safetensors. Was the export cut short?"
            )
        return [single]
    shards = sorted(set(_read_json(index, role).get("weight_map", {}).values()))
    missing = [shard for shard in shards if not (path / shard).is_file()]
    if missing or not shards:
        raise PairError(f"The {role} folder {path} is incomplete: its index names {missing or 'no'} missing shards.")
    return [path / shard for shard in shards]


def _tensor_shapes(file: Path, role: Role) -> dict[str, list[int]]:
    """Shapes by tensor name, from the header; a file shorter than its header promises is torn."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER_BYTES
        try:
            header = json.loads(stream.read(length)) if length < min(size, _MAX_HEADER_BYTES) else None
        except ValueError:
            header = None
    if not isinstance(header, dict):
        raise PairError(f"{file} ({size} bytes) is not a safetensors file. Export the {role} again.")
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    expected = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    if size != expected:
        raise PairError(f"{file} is torn: {size} bytes instead of {expected}. Export the {role} again.")
    return {name: entry["shape"] for name, entry in tensors.items()}


def _file_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _combined(digests: dict[str, str]) -> str:
    listing = "".join(f"{name}\0{digests[name]}\n" for name in sorted(digests))
    return f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"


def _read_json(file: Path, role: Role | None = None) -> dict[str, Any]:
    half = f"The {role}" if role else "A model"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PairError(
            f"{half} folder {file.parent} is incomplete: it has no {file.name}. Was the export cut short?"
        ) from error
    except ValueError as error:
        raise PairError(f"{file} is not JSON ({error}). Export the model again.") from error
    if not isinstance(document, dict):
        raise PairError(f"{file} holds a {type(document).__name__}, not an object. Export the model again.")
    return document


def _special_tokens(path: Path) -> dict[str, str | None]:
    """bos, eos and unk as plain text; save_pretrained writes them as strings or as objects, by version."""
    file = path / "tokenizer_config.json"
    config = _read_json(file) if file.exists() else {}
    tokens = {name: config.get(name) for name in _SPECIAL_TOKENS}
    return {name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()}


def _num_tokens(tokenizer: dict[str, Any]) -> int:
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    added = [token for token in tokenizer.get("added_tokens") or [] if token.get("content") not in vocabulary]
    return len(vocabulary) + len(added)


def _difference(policy: ModelFolder, critic: ModelFolder) -> str:
    if policy.num_tokens != critic.num_tokens:
        return f"{policy.num_tokens} and {critic.num_tokens} tokens"
    ours, theirs = _special_tokens(policy.path), _special_tokens(critic.path)
    for name in _SPECIAL_TOKENS:
        if ours[name] != theirs[name]:
            return f"{name} is {ours[name]!r} and {theirs[name]!r}"
    return f"both have {policy.num_tokens} tokens, but not the same ones or not cut the same way"
