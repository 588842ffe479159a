"""The tokenizer of the ``tiny`` preset: byte-level BPE with single digits, trained on generated problems.

Byte-level, so that any text survives a round trip; single digits, so that arithmetic is done digit by digit
(as Llama and Qwen do); trained with a fixed seed that has nothing to do with a run's, so that every tiny pair
shares one vocabulary and one digest.
"""

from __future__ import annotations

from functools import cache
from itertools import islice

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from irlops_jobs.demonstrations.arithmetic import generate

VOCABULARY_SIZE = 512
NUM_TRAINING_PROBLEMS = 2000
PAD, BOS, EOS, USER, ASSISTANT = "<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{{ '" + BOS + "' }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '" + ASSISTANT + "' + message['content'] + '" + EOS + "' }}"
    "{% else %}{{ '" + USER + "' + message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)


def _training_texts() -> list[str]:
    problems = islice(generate("train", seed=20_000, min_steps=1, max_steps=6), NUM_TRAINING_PROBLEMS)
    return [text for problem in problems for text in (problem.question, problem.solution)]


@cache
def _trained_vocabulary() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue] - stub is read-only
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue] - stub is read-only
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[AddedToken(token, special=True) for token in (PAD, BOS, EOS, USER, ASSISTANT)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_texts(), trainer)
    return tokenizer.to_str()


def build_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny preset's tokenizer, the same on every machine."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_vocabulary()),
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
        padding_side="right",
        model_max_length=1024,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
