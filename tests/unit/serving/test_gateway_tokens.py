"""Token offsets: contiguous, exact, in code points."""

import pytest

from irlops_serving.gateway.tokens import contiguous, spans_of_pieces, spans_of_tokens


def _texts(text, spans):
    return [text[start:end] for start, end in spans]


def test_byte_level_tokens_are_placed_with_the_space_before_them():
    assert spans_of_tokens("so 12 eggs\n", ["so", "Ġ", "1", "2", "Ġeggs", "Ċ"]) == [
        (0, 2), (2, 3), (3, 4), (4, 5), (5, 10), (10, 11),
    ]  # fmt: skip


def test_a_character_of_several_tokens_belongs_to_the_last_of_them():
    # "€" is E2 82 AC in UTF-8, "â", "Ĥ", "¬" in GPT-2's alphabet.
    spans = spans_of_tokens("a €5", ["a", "Ġ", "â", "Ĥ", "¬", "5"])
    assert _texts("a €5", spans) == ["a", " ", "", "", "€", "5"]


def test_bytes_that_are_no_utf8_are_placed_at_the_marks_the_decoder_put_for_them():
    # "Æ" is the byte 84 in GPT-2's alphabet, "ĺ" is 9A: neither begins a character. "â", "Ĥ" are the first two of three.
    text = "a\ufffd\x114\ufffdb\ufffd"
    spans = spans_of_tokens(text, ["a", "Æ", "đ", "4", "â", "Ĥ", "b", "ĺ", ""])
    assert _texts(text, spans) == ["a", "\ufffd", "\x11", "4", "", "\ufffd", "b", "\ufffd", ""]


def test_sentencepiece_tokens_are_placed_without_the_space_they_add_in_front():
    assert spans_of_tokens("the cat", ["▁the", "▁cat"]) == [(0, 3), (3, 7)]


def test_sentencepiece_byte_tokens_make_up_their_character():
    spans = spans_of_tokens("é x", ["▁", "<0xC3>", "<0xA9>", "▁x"])
    assert _texts("é x", spans) == ["", "", "é", " x"]


def test_word_tokens_get_the_white_space_before_them():
    assert _texts("3 + 4 = 7", spans_of_tokens("3 + 4 = 7", ["3", "+", "4", "=", "7"])) == ["3", " +", " 4", " =", " 7"]


def test_an_unknown_token_is_placed_between_its_neighbours():
    spans = spans_of_tokens("3 £ 7", ["3", "", "7"])
    assert _texts("3 £ 7", spans) == ["3", " £ ", "7"]


def test_tokens_that_are_not_the_texts_are_not_guessed():
    assert spans_of_tokens("three apples", ["four", "apples"]) is None


def test_decoded_pieces_beyond_the_text_are_empty():
    # The end-of-turn token is sampled, but is no part of the message.
    assert spans_of_pieces("#### 4", ["####", " 4", "<|im_end|>"]) == [(0, 4), (4, 6), (6, 6)]


def test_decoded_pieces_of_one_character_are_placed_by_their_neighbours():
    spans = spans_of_pieces("a €!", ["a ", "\ufffd", "\ufffd", "!"])
    assert _texts("a €!", spans) == ["a ", "", "€", "!"]


def test_trimmed_offsets_of_a_tokenizer_become_contiguous():
    assert contiguous("the cat ", [(0, 3), (4, 7)]) == [(0, 3), (3, 8)]


def test_overlapping_offsets_within_a_character_go_to_the_last_token():
    assert contiguous("a€b", [(0, 1), (1, 2), (1, 2), (2, 3)]) == [(0, 1), (1, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize("text", ["", "x"], ids=["an empty text", "no tokens"])
def test_nothing_is_placed_where_there_is_nothing(text):
    assert contiguous(text, []) == []
