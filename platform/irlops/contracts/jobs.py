"""The job file: one YAML per run, mounted from a ConfigMap and parsed before anything heavy is imported.

Hyperparameters live here and nowhere else; the environment carries addresses and secrets (see ``JobEnvironment``).
Unknown keys are errors. Every path in a job file is relative to the state directory, so the same file runs in a pod
and on a laptop.

    SftJob       supervised warm start on demonstrations
    AirlJob      adversarial inverse reinforcement learning: policy and critic in turn
    GrpoJob      outcome-reward reference on the same trainer
    EvaluateJob  samples, scores, selects and writes evaluation.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from irlops.contracts.wrong_yaml import UNKNOWN_KEY, explain_unknown_key, explain_yaml
from irlops.errors import ConfigError


class Section(BaseModel):
    """A frozen part of a job file; a mistyped key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataConfig(Section):
    name: Literal["arithmetic", "gsm8k"]
    source: str | None = None
    """gsm8k only: a folder with train.jsonl and test.jsonl, or None for IRLOPS_DATA_DIR, then the hub."""
    calculator_annotations: Literal["keep", "strip"] = "strip"
    """GSM8K's ``<<expression=value>>`` marks inside solutions."""
    num_train: int | None = Field(default=None, ge=1)
    """Demonstrations used, from the start of the split; None takes all (arithmetic: 20,000)."""
    num_dev: int = Field(default=256, ge=8)
    """Problems held out of training for tuning, calibration and collapse detection."""
    num_test: int | None = Field(default=None, ge=1)
    """Problems to evaluate on; None takes all (arithmetic: 1,000)."""
    min_steps: int = Field(default=2, ge=1, le=8)
    """arithmetic only: fewest steps of a problem."""
    max_steps: int = Field(default=4, ge=1, le=8)
    """arithmetic only: most steps of a problem."""
    on_malformed: Literal["raise", "skip"] = "raise"
    """A row without question or answer stops the job, or is counted and left out."""
    seed: int = 0
    """Of generation and of the train/dev split; kept apart from the run's seed so that seeds share their data."""


class LoraConfig(Section):
    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class ModelConfig(Section):
    preset: str = "tiny"
    """A name from irlops_jobs.models.presets."""
    policy_revision: str | None = None
    """Commit on the hub for the preset's policy; None takes the one that the preset pins."""
    critic_revision: str | None = None
    """The same for the preset's critic."""
    policy_from: str | None = None
    """Folder of the policy to start from (for example ``sft-tiny/policy``); None starts from the preset."""
    critic_from: str | None = None
    """Folder of the critic to start from; ``policy`` copies the policy's backbone; None starts from the preset's critic."""
    critic_extra_layers: int = Field(default=0, ge=0, le=8)
    """Layers added on top of a critic that starts from the policy, to read the policy's own predictions."""
    critic_trains: Literal["all", "added_layers"] = "all"
    """``added_layers`` keeps the copied backbone as it is: what it knows of the policy's predictions stays readable
    while the layers on top learn to judge by it, and a step costs a third. No adapters are put on such a critic."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of all weights; exports are merged."""
    attention: Literal["auto", "eager", "sdpa"] = "auto"
    """``auto`` is eager on a CPU, where it trains short sequences twice as fast, and sdpa on GPUs."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights held in memory. Small models on a CPU want float32."""
    max_length: int = Field(default=256, ge=16)
    """Longest prompt plus solution, in tokens."""

    @property
    def num_layers_that_learn_alone(self) -> int:
        """Of the critic's last layers; 0 when the layers below them learn as well."""
        return self.critic_extra_layers if self.critic_trains == "added_layers" else 0

    @model_validator(mode="after")
    def _added_layers_exist(self) -> ModelConfig:
        if self.critic_trains == "added_layers" and self.critic_extra_layers == 0:
            raise ValueError(
                "critic_trains: added_layers needs critic_extra_layers of 1 or more; there is nothing else."
            )
        return self


class OptimizerConfig(Section):
    name: Literal["adamw", "muon"] = "adamw"
    """``muon`` for hidden matrices (adamw for the rest): reaches a small model's goal in a fraction of the steps."""
    learning_rate: float = Field(gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up; linear and cosine decay to a tenth."""
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = Field(default=1.0, gt=0)


class RolloutConfig(Section):
    engine: Literal["transformers", "vllm"] = "transformers"
    samples_per_prompt: int = Field(default=8, ge=1, le=256)
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Below 1 the sampled distribution is truncated and importance ratios are biased; training keeps 1."""
    max_new_tokens: int = Field(default=128, ge=1)
    batch_size: int = Field(default=512, ge=1)
    """Sequences decoded together by the transformers engine."""
    dtype: Literal["model", "bfloat16"] = "model"
    """Precision of the weights that sample: the model's own, or a copy in half of it, made after each update."""
    gpu_memory_fraction: float = Field(default=0.3, gt=0, lt=1)
    """vllm on a GPU: what it may take of the device, its own weights included; the rest is the trainer's."""


class CriticConfig(Section):
    granularity: Literal["token", "interval", "step", "sequence"] = "token"
    """Where the loss reads the critic: every token, every ``interval_tokens``-th, the last of each step, or the last of all."""
    interval_tokens: int = Field(default=15, ge=1)
    loss: Literal["bce", "pairwise"] = "bce"
    """``pairwise`` compares expert and other traces of one question (Bradley-Terry on trace means)."""
    negatives: Literal["every_token", "some_token"] = "some_token"
    """bce only, what a negative trace says of its tokens: each is wrong, as published, or at least one is."""
    relabel_by_answer: bool = True
    """A policy sample that reaches the expert's answer counts as positive."""
    perturb: Literal["experts", "positives"] = "positives"
    """Corrupt the expert's solutions only, or the relabelled samples as well."""
    perturbations_per_positive: int = Field(default=1, ge=0, le=8)
    """Corrupted copies of each positive, always trained with the positive's own question."""
    perturbed_target: Literal["whole", "from_error", "error"] = "from_error"
    """``from_error`` leaves the tokens before the known corruption out of the negative class: they are right. ``error``
    leaves those behind it out as well: they follow from it, and blame belongs where the mistake was made."""
    mass_balance: Literal["none", "global", "question"] = "question"
    """Weigh both sides so that each holds half of the loss: over everything, or within each question. Within each
    question, how hard it is says nothing about the label, so the critic can't learn difficulty in place of correctness."""
    label_smoothing: float = Field(default=0.05, ge=0, lt=0.5)
    """Targets are 1 - x and x."""
    branches_per_expert: int = Field(default=64, ge=0)
    """Per expert solution, tokens at which the policy's own alternative is held against the expert's; 0 turns it off."""
    corrupted_branches_per_expert: int = Field(default=0, ge=0, le=8)
    """Besides those, the first wrong tokens of this many corruptions of the solution: tokens that the policy would hardly
    write it hardly proposes."""
    corrupted_branch_weight: float = Field(default=1.0, gt=0, le=1)
    """Of each of these; a branch of the policy weighs as much as the policy doubts the expert's token, 1 at most."""
    branch_updates_per_round: int = Field(default=2, ge=0)
    """Optimizer steps on such branches in a round, each on fresh demonstrations."""
    branch_batch_size: int = Field(default=8, ge=1)
    """Demonstrations of one such step, over all processes."""
    branch_floor: float = Field(default=0.1, ge=0, le=1)
    """Least weight of a branch; otherwise it weighs as much as the policy doubts the expert's token."""
    branch_warmup_updates: int = Field(default=0, ge=0)
    """Steps on branches before the first round: the critic learns from experts before it meets samples."""
    replay_capacity: int = Field(default=0, ge=0)
    """Traces of earlier rounds kept to be shown again; 0 turns replay off."""
    replay_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Of each critic batch, the part that comes from earlier rounds."""
    updates_per_round: int = Field(default=1, ge=1)
    """Optimizer steps in a round, each on its own part of the round's questions."""
    warmup_rounds: int = Field(default=10, ge=0)
    """Rounds in which only the critic learns, from the still policy's samples."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, warmup_steps=10)


class RewardConfig(Section):
    form: Literal["gail_logit", "airl"] = "gail_logit"
    """``airl`` reads the critic as AIRL's f and discriminates on f - log pi (arXiv 1710.11248)."""
    shaping: bool = False
    """airl only: a potential h with f = g + gamma h(next) - h(now), on a second head that is not exported."""
    aggregation: Literal["mean", "min", "product", "last", "discounted"] = "min"
    """Of token rewards to one number per trace."""
    gamma: float = Field(default=0.9, ge=0, le=1)
    clip: float | None = Field(default=2.0, gt=0)
    """Token rewards are cut to [-clip, clip]; None leaves them."""
    normalise: Literal["none", "running"] = "none"
    """``running`` centres and scales by mean and standard deviation of all token rewards so far, before clipping."""


class PolicyConfig(Section):
    advantage: Literal["grpo", "dr_grpo", "rloo", "discounted_dense", "centred_dense"] = "grpo"
    """The first three give a whole trace one advantage. ``discounted_dense`` is the published token-level form;
    ``centred_dense`` sums a token's reward and, discounted by ``reward.gamma``, those behind it, each less the group's mean."""
    branches_per_sample: int = Field(default=0, ge=0)
    """airl only: of each sample, tokens at which the critic compares the policy's own alternative; 0 turns it off."""
    branch_weight: float = Field(default=1.0, ge=0)
    """Of the expected reward over those pairs of tokens, beside the clipped policy loss."""
    dense_weight: float = Field(default=0.0, ge=0)
    """Added to a trace-level advantage: this much of the token-level discounted one."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    clip_high: float = Field(default=0.28, gt=0)
    kl_coefficient: float = Field(default=0.01, ge=0)
    """Weight of KL(policy || warm start), estimated per token (Schulman's k3)."""
    updates_per_round: int = Field(default=1, ge=1)
    """Optimizer steps on one round's samples; above 1 the clipping starts to matter."""
    expert_in_group: bool = False
    """The expert's solution is one more member of each group: where all samples fail, there is still one to learn from."""
    mask_truncated: bool = True
    """Samples that ran out of tokens carry no policy gradient."""
    importance_correction: Literal["none", "truncate", "mask"] = "truncate"
    """For the gap between the rollout engine's and the trainer's log-probabilities."""
    importance_limit: float = Field(default=2.0, gt=1)
    min_group_std: float = Field(default=1e-3, gt=0)
    """Groups whose rewards spread less than this teach nothing and are left out."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-4, warmup_steps=5)


class CollapseConfig(Section):
    min_auroc: float = Field(default=0.6, ge=0, le=1)
    """Of the critic on fresh held-out samples."""
    max_truncated: float = Field(default=0.5, gt=0, le=1)
    max_kl: float = Field(default=1.0, gt=0)
    """Nats per token, policy against warm start."""
    min_reward_std: float = Field(default=1e-3, ge=0)
    max_accuracy_drop: float = Field(default=0.15, ge=0, le=1)
    """Below the best agreement with expert answers seen so far on held-out questions."""
    patience: int = Field(default=2, ge=1)
    """Unhealthy checks in a row before the run acts; the last check of a run needs no second one."""
    action: Literal["warn", "rollback"] = "rollback"
    """``rollback`` publishes the last healthy pair and stops."""


class CheckpointConfig(Section):
    every: int = Field(default=20, ge=1)
    """Rounds (airl, grpo) or steps (sft) between checkpoints."""
    keep: int = Field(default=2, ge=1)


class JobBase(Section):
    run_name: str = Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=63)
    """Folder under the state directory and name of the MLflow run."""
    seed: int = 0
    experiment: str = "irlops"
    """MLflow experiment."""
    data: DataConfig
    model: ModelConfig
    checkpoints: CheckpointConfig = CheckpointConfig()
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """``fsdp`` shards weights, gradients and optimizer state over processes, for models that don't fit in one."""
    autocast: Literal["none", "bfloat16"] = "none"
    """Precision of forward and backward passes; weights and optimizer state keep ``model.dtype``."""
    micro_batch_tokens: int = Field(default=8192, ge=64)
    """Padded tokens in one forward pass of one process; lower it when memory is short."""


class SftJob(JobBase):
    kind: Literal["sft"]
    num_steps: int = Field(ge=1)
    batch_size: int = Field(default=64, ge=1)
    """Demonstrations per optimizer step, over all processes."""
    evaluate_every: int = Field(default=0, ge=0)
    """Steps between checks on held-out questions; 0 leaves them to the evaluation."""
    evaluate_prompts: int = Field(default=64, ge=8)
    optimizer: OptimizerConfig

    @model_validator(mode="after")
    def _checks_need_whole_weights(self) -> SftJob:
        if self.sharding == "fsdp" and self.evaluate_every > 0:
            raise ValueError(
                f"evaluate_every: {self.evaluate_every} can't go with sharding: fsdp; solutions of held-out questions are "
                "sampled from whole weights. Set evaluate_every: 0 and run an evaluate job afterwards, or sharding: ddp."
            )
        return self


class ReinforcementJob(JobBase):
    num_rounds: int = Field(ge=1)
    """All rounds, the critic's warm-up included."""
    prompts_per_round: int = Field(default=16, ge=1)
    """Questions per round, over all processes."""
    rollouts: RolloutConfig = RolloutConfig()
    policy: PolicyConfig = PolicyConfig()
    evaluate_every: int = Field(default=20, ge=1)
    """Rounds between checks on held-out questions."""
    evaluate_prompts: int = Field(default=64, ge=8)
    collapse: CollapseConfig = CollapseConfig()


class AirlJob(ReinforcementJob):
    kind: Literal["airl"]
    critic: CriticConfig = CriticConfig()
    reward: RewardConfig = RewardConfig()

    @model_validator(mode="after")
    def _shaping_needs_the_airl_form(self) -> AirlJob:
        if self.reward.shaping and self.reward.form != "airl":
            raise ValueError("reward.shaping needs reward.form: airl; the plain logit has no potential to shape.")
        if self.critic.replay_fraction > 0 and self.critic.replay_capacity == 0:
            raise ValueError("critic.replay_fraction > 0 needs critic.replay_capacity > 0 to draw from.")
        return self


class GrpoJob(ReinforcementJob):
    kind: Literal["grpo"]


class EvaluateJob(JobBase):
    kind: Literal["evaluate"]
    row: str = Field(default="airl", pattern=r"^[a-z0-9_-]+$")
    """Name of the evaluated policy's row in tables; ``model.policy_from`` and ``model.critic_from`` are the pair."""
    compare: dict[str, str | None] = Field(default_factory=dict)
    """More rows, judged by the same critic: a policy folder, or None for the preset as it is before any training."""
    samples_per_problem: int = Field(default=16, ge=2, le=256)
    num_dev_problems: int = Field(default=96, ge=8)
    """Held-out problems on which the critic is calibrated; never test problems."""
    rollouts: RolloutConfig = RolloutConfig()
    num_corrupted: int = Field(default=256, ge=0)
    """Expert test solutions corrupted at a known token, for first-error localisation."""
    bootstrap_resamples: int = Field(default=1000, ge=100)


Job = SftJob | AirlJob | GrpoJob | EvaluateJob
_JOB = TypeAdapter(Annotated[Job, Field(discriminator="kind")])
_KINDS: dict[str, type[JobBase]] = {"sft": SftJob, "airl": AirlJob, "grpo": GrpoJob, "evaluate": EvaluateJob}


def parse_job(document: Any, *, origin: str) -> Job:
    """Validate a job document.

    Raises:
        ConfigError: names ``origin`` and each wrong key with the value seen.
    """
    try:
        return _JOB.validate_python(document)
    except ValidationError as error:
        problems = "; ".join(map(_explained, error.errors()))
        raise ConfigError(
            f"{origin} is not a valid job file: {problems}. The keys are described in docs/jobs.md."
        ) from error


def _explained(problem: ErrorDetails) -> str:
    """One wrong key with what was seen there; a rule between keys says itself what it saw."""
    kind, *parts = problem["loc"] or ("",)
    if kind not in _KINDS:  # it is told only once the kind is known
        kind, parts = "", list(problem["loc"])
    place = ".".join(map(str, parts))
    message = problem["msg"].removeprefix("Value error, ").removesuffix(".")
    if problem["type"] == UNKNOWN_KEY and kind:
        message = explain_unknown_key(_KINDS[str(kind)], parts)
    is_rule = problem["type"] == "value_error" and isinstance(problem["input"], dict)
    if is_rule and not place:
        return message
    seen = "" if is_rule or problem["type"] == "missing" else f" (seen: {problem['input']!r:.80})"
    return f"{place or 'the file'}: {message}{seen}"


def load_job(path: Path) -> Job:
    """Read one job file.

    Raises:
        ConfigError: the file is missing, not YAML, or has wrong keys.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"No job file at {path} ({error.strerror}). Mount the job's ConfigMap there, or set IRLOPS_JOB_FILE to where it is."
        ) from error
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {explain_yaml(error)}.") from error
    return parse_job(document, origin=str(path))


class JobEnvironment(BaseSettings):
    """What a job reads from its environment: addresses, folders and secrets, never hyperparameters."""

    model_config = SettingsConfigDict(env_prefix="IRLOPS_", frozen=True, extra="ignore", use_attribute_docstrings=True)

    job_file: Path = Path("/etc/irlops/job.yaml")
    state_dir: Path = Path("/var/lib/irlops")
    data_dir: Path | None = None
    """Folder with GSM8K's train.jsonl and test.jsonl."""
    tracking_uri: str | None = Field(default=None, validation_alias="MLFLOW_TRACKING_URI")
    tracking_token: SecretStr | None = Field(default=None, validation_alias="MLFLOW_TRACKING_TOKEN")
