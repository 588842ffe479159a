"""The models a job file asks for, and what a run leaves behind of them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from irlops.contracts.jobs import AirlJob, EvaluateJob, JobBase, JobEnvironment
from irlops.errors import DivergenceError, StorageError
from irlops_jobs.distributed.runtime import Runtime
from irlops_jobs.distributed.trainer import Trainer
from irlops_jobs.models.deepen import add_layers, freeze_below
from irlops_jobs.models.load import load_critic, load_policy, load_tokenizer, new_critic, with_lora
from irlops_jobs.models.presets import find_preset
from irlops_jobs.models.save import merged_state_dict, save_model
from irlops_jobs.rollouts.sampling import derive_seed
from irlops_jobs.session import Session
from irlops_jobs.start_folders import CRITIC_LIKE_POLICY, start_folder


def build_policy(job: JobBase, environment: JobEnvironment) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """The policy to train or evaluate, and its tokenizer.

    Raises:
        ConfigError: ``model.policy_from`` names a folder that isn't there.
    """
    cache_dir = environment.state_dir / "cache"
    origin = (
        find_preset(job.model.preset).policy.with_revision(job.model.policy_revision)
        if job.model.policy_from is None
        else _folder(job, environment, "policy_from")
    )
    tokenizer = load_tokenizer(origin, cache_dir=cache_dir)
    model = load_policy(
        origin, cache_dir=cache_dir, dtype=job.model.dtype, seed=derive_seed("policy", job.seed) % 2**31
    )
    _choose_attention(model, job)
    if job.model.lora:
        return with_lora(model, job.model.lora, seed=job.seed), tokenizer
    return model, tokenizer


def _choose_attention(model: PreTrainedModel, job: JobBase) -> None:
    automatic = "sdpa" if torch.cuda.is_available() else "eager"
    model.set_attn_implementation(automatic if job.model.attention == "auto" else job.model.attention)


def build_critic(
    job: AirlJob | EvaluateJob, environment: JobEnvironment, tokenizer: PreTrainedTokenizerBase
) -> nn.Module:
    """A critic to train on: a trained one, or a backbone with a fresh head whose first rewards are all but zero.

    ``critic_from: policy`` copies the policy's starting backbone, so both players read equally well from the start
    (equal sizes did best in GAD, arXiv 2511.10643).
    """
    cache_dir = environment.state_dir / "cache"
    seed = derive_seed("critic", job.seed) % 2**31
    preset = find_preset(job.model.preset)
    if job.model.critic_from in (None, CRITIC_LIKE_POLICY):
        origin: Any = preset.critic.with_revision(job.model.critic_revision)
        if job.model.critic_from == CRITIC_LIKE_POLICY:
            origin = (
                preset.policy.with_revision(job.model.policy_revision)
                if job.model.policy_from is None
                else _folder(job, environment, "policy_from")
            )
        model = new_critic(origin, cache_dir=cache_dir, seed=seed, dtype=job.model.dtype)
        model = add_layers(model, job.model.critic_extra_layers, seed=seed)
    else:
        model = load_critic(_folder(job, environment, "critic_from"), tokenizer=tokenizer, dtype=job.model.dtype)
    _choose_attention(model, job)
    if job.model.critic_trains == "added_layers":
        return freeze_below(model, job.model.critic_extra_layers)
    if job.model.lora and isinstance(job, AirlJob):
        return with_lora(model, job.model.lora, seed=seed, train_head=True)
    return model


def _folder(job: JobBase, environment: JobEnvironment, key: str) -> Path:
    return start_folder(job, environment, f"model.{key}", getattr(job.model, key))


def identity_of(job: JobBase) -> dict[str, str]:
    """What a checkpoint must agree on to be resumed by this job."""
    return {
        "job": type(job).__name__,
        "preset": job.model.preset,
        "policy_from": job.model.policy_from or "",
        "critic_from": f"{job.model.critic_from} + {job.model.critic_extra_layers} layers",
        "lora": "" if job.model.lora is None else job.model.lora.model_dump_json(),
        "seed": str(job.seed),
    }


def export_policy(session: Session, trainer: Trainer, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write ``<run>/policy`` in Hugging Face layout, adapters merged."""
    _export(session, trainer, tokenizer, "policy")


def export_critic(session: Session, trainer: Trainer, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write ``<run>/critic``: a token classifier with one label that stock vLLM serves as it is."""
    _export(session, trainer, tokenizer, "critic")


def _export(session: Session, trainer: Trainer, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    model: nn.Module = trainer.scorer.model  # pyright: ignore[reportAssignmentType]
    weights = merged_state_dict(model)
    require_same_everywhere(weights, session.runtime, name)
    folder, error = session.run_dir / name, None
    if session.runtime.is_main:
        try:
            save_model(model, tokenizer, folder, state_dict=weights)
            _write_lineage(session, name)
        except OSError as failure:
            error = failure
    # All processes end together: none goes on to wait for the first one, which is gone.
    if any(session.runtime.gather(error is not None)):
        if isinstance(error, StorageError):
            raise error
        raise StorageError(
            f"{folder} could not be written{f': {error}' if error else ' by the first process'}."
        ) from error
    session.say(f"wrote {folder}")


def require_same_everywhere(weights: Mapping[str, Tensor], runtime: Runtime, name: str) -> None:
    """Refuse weights that differ between processes: each would have trained, and judged itself, on its own.

    Raises:
        DivergenceError: they differ in a bit or more.
    """
    checksums = runtime.gather({key: _checksum(tensor) for key, tensor in weights.items()})
    differing = sorted({key for other in checksums for key in weights if other[key] != checksums[0][key]})
    if differing:
        raise DivergenceError(
            f"{len(differing)} of {len(weights)} weights of the {name} differ between processes ({', '.join(differing[:3])}), so "
            "their training drifted apart. Nothing was exported. Run all processes on the same hardware and versions, and "
            "resume from a checkpoint before that."
        )


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)


def _write_lineage(session: Session, name: str) -> None:
    lineage: Mapping[str, Any] = {
        "run_name": session.job.run_name,
        "kind": session.job.kind,
        "base_model": session.job.model.preset,
        "data": session.demonstrations.name,
        "data_digest": session.demonstrations.digest,
        "seed": session.job.seed,
    }
    (session.run_dir / name / "lineage.json").write_text(json.dumps(lineage, indent=1) + "\n")
