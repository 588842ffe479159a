"""Text comes out whole: no half characters, no piece of a stop string."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from irlops_serving.policy.text import TextBuilder, token_text
from support.tiny_models import tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One token per byte."""
    return tiny_tokenizer().backend_tokenizer


def _feed(tokenizer: Tokenizer, text: str, stop: tuple[str, ...] = (), *, keep_stop: bool = False):
    builder = TextBuilder(tokenizer, [], stop, keep_stop=keep_stop)
    shown: list[str] = []
    for token in tokenizer.encode(text, add_special_tokens=False).ids:
        found = builder.add(token)
        shown.append(builder.take(is_finished=found is not None))
        if found is not None:
            return builder, shown, found
    return builder, shown, None


def test_a_character_of_several_bytes_appears_with_its_last(tokenizer: Tokenizer):
    # é is two bytes, 髕 three.
    _, shown, _ = _feed(tokenizer, "aé髕")
    assert shown == ["a", "", "é", "", "", "髕"]


def test_special_tokens_leave_no_text(tokenizer: Tokenizer):
    builder = TextBuilder(tokenizer, [], (), keep_stop=False)
    for token in ("a", "<|end|>", "b"):
        builder.add(tokenizer.token_to_id(token))
    assert builder.text == "ab"


def test_a_stop_string_ends_the_text_before_it(tokenizer: Tokenizer):
    builder, _, found = _feed(tokenizer, "one. Q: two", stop=("\n", "Q:"))
    assert (builder.text, found) == ("one. ", "Q:")


def test_a_stop_string_may_be_kept(tokenizer: Tokenizer):
    builder, _, _ = _feed(tokenizer, "one. Q: two", stop=("Q:",), keep_stop=True)
    assert builder.text == "one. Q:"


def test_the_start_of_a_stop_string_is_held_back_until_it_is_none(tokenizer: Tokenizer):
    _, shown, found = _feed(tokenizer, "abEXc", stop=("END",))
    # Two characters stay back at each step: END has three.
    assert (shown, found) == (["", "", "a", "b", "E"], None)


def test_what_was_held_back_is_shown_at_the_end(tokenizer: Tokenizer):
    builder, shown, _ = _feed(tokenizer, "abEN", stop=("END",))
    assert "".join(shown) + builder.take(is_finished=True) == "abEN"


def test_nothing_of_a_stop_string_was_ever_shown(tokenizer: Tokenizer):
    _, shown, _ = _feed(tokenizer, "abEND", stop=("END",))
    assert "".join(shown) == "ab"


def test_the_text_of_a_token_is_its_own(tokenizer: Tokenizer):
    assert token_text(tokenizer, tokenizer.token_to_id("a"), []) == "a"


def test_the_last_token_of_a_character_gets_all_of_it(tokenizer: Tokenizer):
    first, second = tokenizer.encode("é", add_special_tokens=False).ids
    a = tokenizer.token_to_id("a")
    assert token_text(tokenizer, first, [a]) == ""
    assert token_text(tokenizer, second, [a, first]) == "é"
