"""Steps in characters and in tokens."""

import pytest

from irlops.steps import segment_steps
from irlops_jobs.demonstrations.steps import step_end_tokens, step_ends, text_and_offsets
from irlops_jobs.models.tokenizers import build_tiny_tokenizer


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("2+3=5 eggs\n5*2=10 eggs\n#### 10", ["2+3=5 eggs\n", "5*2=10 eggs\n", "#### 10"]),
        ("She has 2.5 kg. Then she buys 3. #### 5.5", ["She has 2.5 kg. ", "Then she buys 3. ", "#### 5.5"]),
        ("Mr. Lee and J. Smith pay $3.", ["Mr. Lee and J. Smith pay $3."]),
        ("1. Add.\n2. Halve; Then stop.", ["1. Add.\n", "2. Halve; ", "Then stop."]),
    ],
    ids=["lines", "sentences, decimals and the answer", "abbreviations and initials", "list markers and semicolons"],
)
def test_a_solution_falls_into_its_steps(text, steps):
    assert [text[start:end] for start, end in segment_steps(text)] == steps


def test_a_step_ends_at_its_last_token_and_the_end_token_closes_the_last():
    #        "a b\n" is tokens 0-2, "c" is token 3, the end token has no characters
    assert step_end_tokens("a b\nc", [(0, 1), (1, 3), (3, 4), (4, 5), (5, 5)]) == [2, 4]


def test_a_token_over_a_boundary_belongs_to_the_step_it_ends_in():
    # the second token holds "\nb" of "a\nb"
    assert step_end_tokens("a\nb", [(0, 1), (1, 3)]) == [0, 1]


def test_no_tokens_have_no_step_ends():
    assert step_end_tokens("", []) == []


def test_steps_are_found_in_sampled_tokens_as_they_are():
    tokenizer = build_tiny_tokenizer()
    ids = tokenizer("2+3=5\n5*2=10\n#### 10", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    ends = step_ends(tokenizer, ids)
    pieces = [
        tokenizer.decode(ids[a:b]) for a, b in zip([0, *(e + 1 for e in ends)], [e + 1 for e in ends], strict=False)
    ]
    assert pieces == ["2+3=5\n", "5*2=10\n", "#### 10<|end|>"]


def test_a_character_in_several_tokens_shifts_no_place():
    tokenizer = build_tiny_tokenizer()
    ids = tokenizer("é 1\n2", add_special_tokens=False)["input_ids"]
    text, offsets = text_and_offsets(tokenizer, ids)
    assert [text[start:end] for start, end in offsets][-3:] == ["1", "\n", "2"]
    assert offsets[-1][1] == len(text)
