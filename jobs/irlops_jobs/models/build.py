"""The models a job file asks for, and what a run leaves behind of them."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from irlops.contracts.jobs import Job, JobEnvironment
from irlops.errors import CheckpointError
from irlops_jobs.distributed.trainer import Trainer
from irlops_jobs.models.load import load_critic, load_policy, load_tokenizer, new_critic
from irlops_jobs.models.presets import find_preset
from irlops_jobs.models.save import save_model
from irlops_jobs.rollouts.sampling import derive_seed
from irlops_jobs.session import Session
