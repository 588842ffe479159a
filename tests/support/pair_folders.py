"""Model folders as an export leaves them (Hugging Face layout), written without torch in a millisecond."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

WORDS = ("<pad>", "<s>", "</s>", "one", "two", "three")


def write_safetensors(file: Path, tensors: dict[str, list[int]], filler: bytes = b"\0") -> None:
    """Float32 tensors of the given shapes, every byte ``filler``."""
    header, offset = {}, 0
    for name, shape in tensors.items():
        size = 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + filler * offset)


def write_tokenizer(folder: Path, words: tuple[str, ...] = WORDS, **config: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = {"model": {"type": "WordLevel", "vocab": vocabulary}, "added_tokens": [], "padding": None}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>", **config}))


def write_policy(folder: Path, *, weights: int = 0, words: tuple[str, ...] = WORDS) -> Path:
    """A policy; another ``weights`` byte makes it another policy."""
    write_tokenizer(folder, words)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "vocab_size": len(words)}))
    write_safetensors(folder / "model.safetensors", {"model.embed_tokens.weight": [len(words), 4]}, bytes([weights]))
    return folder


def write_critic(folder: Path, *, weights: int = 0, words: tuple[str, ...] = WORDS, num_labels: int = 1) -> Path:
    """A critic: token classification with one label."""
    write_tokenizer(folder, words, pad_token="<pad>")
    config = {
        "architectures": ["LlamaForTokenClassification"],
        "id2label": {str(label): f"LABEL_{label}" for label in range(num_labels)},
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": [len(words), 4], "score.weight": [num_labels, 4]}
    write_safetensors(folder / "model.safetensors", shapes, bytes([weights]))
    return folder


def write_pair(run_dir: Path, *, weights: int = 0) -> tuple[Path, Path]:
    """``run_dir/policy`` and ``run_dir/critic``, as a finished run leaves them."""
    return write_policy(run_dir / "policy", weights=weights), write_critic(run_dir / "critic", weights=weights)


def evaluation_body(*, pass_at_1: float = 0.5, auroc: float | None = 0.8) -> dict[str, Any]:
    """An evaluation.json with a few of its numbers."""
    return {
        "schema": 1,
        "dataset": {"name": "arithmetic", "split": "test", "digest": "sha256:d0", "num_problems": 100},
        "samples_per_problem": 16,
        "seed": 0,
        "pass_at_k": {"1": {"mean": pass_at_1, "ci95": [0.4, 0.6]}},
        "selectors": {"reward": {"1": {"mean": pass_at_1}, "16": {"mean": 0.7}}},
        "critic": {"auroc": auroc, "ece": 0.05},
    }
