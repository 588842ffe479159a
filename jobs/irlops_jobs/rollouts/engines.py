"""The rollout engine a job file names."""

from __future__ import annotations

from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase

from irlops.contracts.jobs import RolloutConfig
from irlops.errors import ConfigError
from irlops_jobs.rollouts.carriers import RolloutEngine
from irlops_jobs.rollouts.transformers_engine import TransformersEngine


def build_engine(
    config: RolloutConfig,
    policy: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    with_alternatives: bool = False,
) -> RolloutEngine:
    """An engine that samples from ``policy`` as it is now.

    Args:
        with_alternatives: say at each token what else might have been written, where that costs nothing (transformers).

    Raises:
        ConfigError: transformers can't decode with weights that are sharded.
        MissingDependencyError: vLLM is asked for and not installed.
    """
    if config.engine == "vllm":
        from irlops_jobs.rollouts.vllm_engine import VllmEngine  # loads vllm, which takes seconds

        return VllmEngine(policy, tokenizer, config, max_length=max_length)
    if any(isinstance(parameter, DTensor) for parameter in policy.parameters()):
        raise ConfigError(
            "rollouts.engine transformers can't decode with weights that are sharded over processes (sharding: fsdp). "
            "Set rollouts.engine: vllm, or sharding: ddp."
        )
    eos_token_id: int = tokenizer.eos_token_id  # pyright: ignore[reportAssignmentType]
    return TransformersEngine(policy, config, eos_token_id=eos_token_id, with_alternatives=with_alternatives)
