"""TRL's GRPOTrainer, timed; run by the interpreter of TRL's own environment.

python -m benchmarks.training_trl FOLDER        FOLDER/settings.json in, FOLDER/result.json out
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports] - only in the environment made for it

from irlops.answers import AnswerRule, answers_agree, extract_answer


def outcome_reward(completions: list[list[dict[str, str]]], answer: list[str], **_: Any) -> list[float]:
    """1.0 where a completion ends in the expert's answer: the rule of our ``grpo`` job, by the same functions."""
    texts = [completion[0]["content"] for completion in completions]
    return [
        float(answers_agree(extract_answer(text, AnswerRule.GSM8K), expected))
        for text, expected in zip(texts, answer, strict=True)
    ]


class Stopwatch(TrainerCallback):
    """Seconds from the end of one step to the end of the next: sampling, rewards and update."""

    def __init__(self) -> None:
        self.stamps: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.stamps.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.stamps.append(time.perf_counter())

    def seconds(self) -> list[float]:
        return [after - before for before, after in zip(self.stamps, self.stamps[1:], strict=False)]


def config_of(settings: dict[str, Any], folder: Path) -> Any:
    """Our job's objective in TRL's words."""
    return GRPOConfig(
        output_dir=str(folder / "output"),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        save_strategy="no",
        max_steps=len(settings["rows"]) // settings["prompts"],
        per_device_train_batch_size=settings["prompts"] * settings["samples"],
        steps_per_generation=1,
        num_iterations=1,
        num_generations=settings["samples"],
        max_completion_length=settings["max_new_tokens"],
        temperature=1.0,
        shuffle_dataset=False,
        learning_rate=settings["learning_rate"],
        adam_beta2=0.95,
        beta=settings["kl_coefficient"],
        epsilon=0.2,
        epsilon_high=0.28,
        loss_type="dr_grpo",
        scale_rewards="none",
        mask_truncated_completions=True,
        dataloader_pin_memory=False,
        bf16=settings["bf16"],
        gradient_checkpointing=settings["gradient_checkpointing"],
        model_init_kwargs={"attn_implementation": settings["attention"], "dtype": "float32"},
    )


def main() -> None:
    """Train for as many steps as there are questions for."""
    folder = Path(sys.argv[1])
    settings = json.loads((folder / "settings.json").read_text())
    rows = settings["rows"]
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    prompts = [[{"role": "user", "content": row["question"]}] for row in rows]
    text = tokenizer.apply_chat_template(prompts[0], add_generation_prompt=True, tokenize=False)
    if tokenizer(text, add_special_tokens=False)["input_ids"] != rows[0]["prompt_ids"]:
        raise RuntimeError(f"TRL's prompt differs from the jobs': {text!r}. Both must read the same tokenizer folder.")
    stopwatch = Stopwatch()
    trainer = GRPOTrainer(
        model=settings["model"],
        reward_funcs=outcome_reward,
        args=config_of(settings, folder),
        train_dataset=Dataset.from_dict({"prompt": prompts, "answer": [row["answer"] for row in rows]}),
        processing_class=tokenizer,
        callbacks=[stopwatch],
    )
    trainer.train()
    history = [row for row in trainer.state.log_history if "completions/mean_length" in row]
    result = {
        "seconds": stopwatch.seconds(),
        "tokens_per_sample": [row["completions/mean_length"] for row in history],
        "truncated": [row["completions/clipped_ratio"] for row in history],
        "reward": [row["reward"] for row in history],
    }
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
