"""What a job will hold in memory on each rank, before anything is downloaded or started.

    python -m irlops_jobs.models.memory_plan job.yaml --ranks 8 --device-gib 80

Weights, gradients and optimizer state are counted from shipped sizes; activations are measured on the real modules on
the meta device. The plan follows what the trainer does: the reference for the KL term is the policy without its
adapters (LoRA) or a full copy; critic and policy update in turn, so only the larger of their activations counts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from irlops.contracts.jobs import AirlJob, EvaluateJob, GrpoJob, Job, LoraConfig, load_job
from irlops.errors import IrlopsError
from irlops_jobs.models.load import LORA_TARGETS
from irlops_jobs.models.presets import ModelSource, find_preset
from irlops_jobs.models.shapes import activation_bytes_per_token, build_on_meta, check_shapes, config_of
from irlops_jobs.models.shared_prefix import LOGITS_PER_CHUNK

GIB = 2**30
RUNTIME_BYTES = int(1.5 * GIB)
"""Of the device's own context, kernels and collectives."""
FRAGMENTATION = 0.08
"""Of everything else: what an allocator can't hand out."""
BYTES_PER_LOGIT = 14
"""In one chunk: the logits in half precision, and three float32 buffers (logits, probabilities, gradient)."""


@dataclass(frozen=True)
class Part:
    """One line of the plan."""

    what: str
    num_bytes: int


@dataclass(frozen=True)
class MemoryPlan:
    """Per-rank memory of one job; ``parts`` add up to ``total_bytes``."""

    job_name: str
    preset: str
    num_ranks: int
    parts: tuple[Part, ...]
    device_gib: float | None = None

    @property
    def total_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts)

    @property
    def fits(self) -> bool | None:
        """Whether a device is large enough; None when none was named."""
        return None if self.device_gib is None else self.total_bytes <= self.device_gib * GIB

    def __str__(self) -> str:
        lines = [f"{self.job_name}: preset {self.preset}, {self.num_ranks} ranks, GiB per rank"]
        lines += [f"  {part.num_bytes / GIB:8.2f}  {part.what}" for part in self.parts]
        verdict = "" if self.fits is None else f" of {self.device_gib:g}: {'fits' if self.fits else 'does not fit'}"
        return "\n".join([*lines, f"  {self.total_bytes / GIB:8.2f}  in all{verdict}"])


@dataclass(frozen=True)
class _Player:
    """A policy or a critic, as deep as the job makes it."""

    name: str
    source: ModelSource
    trains: bool
    extra_layers: int = 0
    num_top_layers: int = 0
    """The last layers, when they, the norm and the head alone learn; no adapters then."""

    @property
    def is_critic(self) -> bool:
        return self.name == "critic"

    @property
    def num_layers(self) -> int:
        return config_of(self.source).num_hidden_layers + self.extra_layers

    def on_meta(self, num_layers: int | None = None) -> PreTrainedModel:
        return build_on_meta(
            self.source,
            is_critic=self.is_critic,
            dtype=torch.bfloat16,
            num_layers=num_layers or self.num_layers,
        )

    def num_parameters(self, num_layers: int | None = None) -> int:
        return sum(parameter.numel() for parameter in self.on_meta(num_layers).parameters())

    def num_learning(self) -> int:
        """Of those, the ones that learn without adapters."""
        if self.num_top_layers == 0:
            return self.num_parameters()
        frozen = self.num_parameters(self.num_layers - self.num_top_layers)
        norm_and_head = 2 * config_of(self.source).hidden_size + 1
        return self.num_parameters() - frozen + norm_and_head


def plan_memory(job: Job, *, num_ranks: int, device_gib: float | None = None) -> MemoryPlan:
    """The plan of one rank; also checks every shape of the preset on the meta device.

    Raises:
        ConfigError: the preset is unknown or its shapes are wrong.
    """
    preset = find_preset(job.model.preset)
    check_shapes(preset.policy, is_critic=False)
    policy = _Player("policy", preset.policy, trains=not isinstance(job, EvaluateJob))
    parts = list(_policy_parts(job, policy, num_ranks))
    activations = [_activations(job, policy)]
    if isinstance(job, AirlJob | EvaluateJob):
        source = preset.policy if job.model.critic_from == "policy" else preset.critic
        check_shapes(source, is_critic=True)
        critic = _Player(
            "critic",
            source,
            isinstance(job, AirlJob),
            job.model.critic_extra_layers,
            job.model.num_layers_that_learn_alone,
        )
        parts += _player_parts(job, critic, num_ranks)
        activations.append(_activations(job, critic))
    if not isinstance(job, EvaluateJob):
        parts.append(Part(f"activations of {job.micro_batch_tokens:,} tokens", max(activations)))
    parts.append(Part("logits of one chunk", LOGITS_PER_CHUNK * BYTES_PER_LOGIT))
    parts += _rollout_parts(job, policy, num_ranks)
    parts.append(Part("fragmentation", int(FRAGMENTATION * sum(part.num_bytes for part in parts))))
    parts.append(Part("device runtime", RUNTIME_BYTES))
    return MemoryPlan(job.run_name, preset.name, num_ranks, tuple(parts), device_gib)


def _policy_parts(job: Job, policy: _Player, num_ranks: int) -> Iterator[Part]:
    yield from _player_parts(job, policy, num_ranks)
    if isinstance(job, AirlJob | GrpoJob) and job.policy.kl_coefficient > 0 and job.model.lora is None:
        num_bytes = policy.num_parameters() * _dtype(job).itemsize
        yield Part("policy: frozen copy for the KL term (a whole one on every rank)", num_bytes)


def _player_parts(job: Job, player: _Player, num_ranks: int) -> Iterator[Part]:
    """Weights, adapters, gradients and optimizer state of one player."""
    name, item = player.name, _dtype(job).itemsize
    lora = job.model.lora if player.trains and player.num_top_layers == 0 else None
    shards = num_ranks if job.sharding == "fsdp" and player.trains else 1
    count = player.num_parameters()
    split = f", 1/{shards} of them" if shards > 1 else ""
    yield Part(f"{name}: {count / 1e9:.2f} billion weights{split}", count * item // shards)
    if shards > 1:
        yield Part(f"{name}: two layers and the embeddings gathered", _gathered_bytes(player, item))
    if not player.trains:
        return
    num_trained, trained_item = player.num_learning(), item
    if lora is not None:
        num_trained, trained_item = _num_lora_parameters(player, lora), 4
        yield Part(f"{name}: adapters of rank {lora.rank}, float32", num_trained * trained_item // shards)
    # Between two micro-batches FSDP keeps gradients whole: reducing them once per step is what saves the traffic.
    yield Part(f"{name}: gradients", num_trained * trained_item)
    yield Part(f"{name}: Adam's two moments{split}", 2 * num_trained * trained_item // shards)


def _activations(job: Job, player: _Player) -> int:
    per_token = activation_bytes_per_token(
        player.source,
        is_critic=player.is_critic,
        dtype=torch.bfloat16 if job.autocast == "bfloat16" else _dtype(job),
        lora=job.model.lora,
        num_layers=player.num_layers,
    )
    return per_token * job.micro_batch_tokens


def _rollout_parts(job: Job, policy: _Player, num_ranks: int) -> Iterator[Part]:
    """Keys and values of the sequences decoded at once; vLLM also holds weights of its own."""
    if not isinstance(job, AirlJob | GrpoJob | EvaluateJob):
        return
    config, item, rollouts = config_of(policy.source), _dtype(job).itemsize, job.rollouts
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * item
    if isinstance(job, EvaluateJob):
        sequences = rollouts.batch_size
    else:
        sequences = min(rollouts.batch_size, -(-job.prompts_per_round // num_ranks) * rollouts.samples_per_prompt)
    if rollouts.engine == "vllm":
        yield Part("vLLM: its own weights (whole on every rank)", policy.num_parameters() * item)
    yield Part(
        f"rollouts: keys and values of {sequences} sequences of {job.model.max_length} tokens",
        sequences * job.model.max_length * per_token,
    )


def _num_lora_parameters(player: _Player, lora: LoraConfig) -> int:
    """rank x (in + out) for every adapted projection; a critic's head is trained whole."""
    linear = [
        module
        for name, module in player.on_meta().named_modules()
        if isinstance(module, torch.nn.Linear) and name.endswith(LORA_TARGETS)
    ]
    head = config_of(player.source).hidden_size + 1 if player.is_critic else 0
    return sum(lora.rank * (module.in_features + module.out_features) for module in linear) + head


def _gathered_bytes(player: _Player, item: int) -> int:
    config = config_of(player.source)
    one, two = (sum(p.numel() for p in player.on_meta(num_layers).parameters()) for num_layers in (1, 2))
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings or player.is_critic else 2)
    return (2 * (two - one) + embeddings) * item


def _dtype(job: Job) -> torch.dtype:
    return getattr(torch, job.model.dtype)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the plan of a job file; 1 when it doesn't fit the device, 2 when the file is wrong."""
    parser = argparse.ArgumentParser(description="Plan a job's memory per rank, without downloading anything.")
    parser.add_argument("job_file", type=Path)
    parser.add_argument("--ranks", type=int, default=1, help="processes of the job (replicas x nprocPerNode)")
    parser.add_argument("--device-gib", type=float, help="memory of one device; the exit status says whether it fits")
    options = parser.parse_args(arguments)
    try:
        plan = plan_memory(load_job(options.job_file), num_ranks=options.ranks, device_gib=options.device_gib)
    except IrlopsError as error:
        print(error, file=sys.stderr)
        return 2
    print(plan)
    return 1 if plan.fits is False else 0


if __name__ == "__main__":
    sys.exit(main())
