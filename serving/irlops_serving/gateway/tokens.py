"""Where each token of a text begins and ends: exact, contiguous, in Unicode code points.

Every function returns one ``(start, end)`` per token: the first starts at 0, each ends where the next starts, the last
ends where the text does. Token texts put together are the text. A character made of several tokens belongs to the last
of them; whitespace that a tokenizer drops belongs to the token after it; special tokens are empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from irlops.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Spans = list[tuple[int, int]]
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def spans_of_tokens(text: str, tokens: Sequence[str]) -> Spans | None:
    """Places vocabulary strings (``Ġthe``, ``▁the``, ``##s``, ``<0xE2>``) in the text they were made from.

    Args:
        text: what was tokenized.
        tokens: vocabulary entries, as ``convert_ids_to_tokens`` gives them.
    Returns:
        Spans, or None when the strings can't be placed without guessing (unknown tokens, a normalised text).
    """
    for read in (_byte_level, _metaspace):
        pieces = read(tokens)
        if pieces is not None and (spans := _spans_of_bytes(text, pieces)) is not None:
            return spans
    return _spans_by_search(text, [token.removeprefix("##").strip("\u0120\u2581") for token in tokens])


def spans_of_pieces(text: str, pieces: Sequence[str]) -> Spans | None:
    """Places decoded token strings (a server's logprobs ``token``) in a sampled text; see ``spans_of_tokens``.

    A decoded piece of a character reads as U+FFFD; it is placed by what surrounds it, or not at all.
    """
    exact = _spans_of_bytes(text, [piece.encode() for piece in pieces])
    return exact if exact is not None else _spans_by_search(text, pieces)


def contiguous(text: str, offsets: Sequence[tuple[int, int]]) -> Spans:
    """A tokenizer's own offsets (which may trim spaces and overlap within a character) as contiguous spans."""
    ends = list(accumulate((end for _, end in offsets), max))
    for index in range(len(offsets) - 1):
        # Several tokens of one character all claim it; the last one gets it.
        if offsets[index][0] == offsets[index + 1][0] and offsets[index + 1][1] <= ends[index]:
            ends[index] = ends[index - 1] if index else 0
    if ends:
        ends[-1] = len(text)
    return list(zip([0, *ends[:-1]], ends, strict=True)) if ends else []


def _byte_level(tokens: Sequence[str]) -> list[bytes] | None:
    table = _bytes_of_characters()
    try:
        return [bytes(table[character] for character in token) for token in tokens]
    except KeyError:
        return None


def _metaspace(tokens: Sequence[str]) -> list[bytes]:
    pieces = []
    for token in tokens:
        is_byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
        pieces.append(bytes([int(token[3:5], 16)]) if is_byte else token.replace("\u2581", " ").encode())
    return pieces


@cache
def _bytes_of_characters() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: printable Latin-1 stands for itself, the rest moves to U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + rank): byte for rank, byte in enumerate(others)}


def _spans_of_bytes(text: str, pieces: Sequence[bytes]) -> Spans | None:
    joined = b"".join(pieces)
    widths = _widths_of_characters(joined)
    whole = joined.decode(errors="replace")
    # sentencepiece puts a space before the text.
    lead = 1 if not whole.startswith(text) and whole.startswith(" " + text) else 0
    if not whole[lead:].startswith(text):
        return None
    complete = _characters_complete_at(widths)
    ends = [complete[end] - lead for end in accumulate(len(piece) for piece in pieces)]
    ends = [min(max(end, 0), len(text)) for end in ends]
    return list(zip([0, *ends[:-1]], ends, strict=True)) if ends else []


def _widths_of_characters(encoded: bytes) -> list[int]:
    """Bytes behind each character of ``encoded.decode(errors="replace")``: what a model samples need not be UTF-8."""
    widths: list[int] = []
    rest = memoryview(encoded)
    while rest:
        try:
            valid, bad, after = str(rest, "utf-8"), 0, len(rest)
        except UnicodeDecodeError as error:
            valid, bad, after = str(rest[: error.start], "utf-8"), error.end - error.start, error.end
        widths += [1] * len(valid) if valid.isascii() else [len(character.encode()) for character in valid]
        widths += [bad] if bad else []
        rest = rest[after:]
    return widths


def _characters_complete_at(widths: Sequence[int]) -> list[int]:
    """For each byte offset, how many characters end at or before it."""
    complete = [0]
    for index, width in enumerate(widths):
        complete += [index] * (width - 1) + [index + 1]
    return complete


def _spans_by_search(text: str, pieces: Sequence[str]) -> Spans | None:
    """Places pieces left to right; only whitespace, or one run of unreadable pieces, may lie between two of them."""
    ends: list[int] = []
    position, unread = 0, 0
    for piece in pieces:
        if not piece or REPLACEMENT in piece:
            ends.append(position)
            unread += 1
            continue
        found = text.find(piece, position)
        if found < 0 and not text[position:].strip():
            ends.append(position)  # beyond the text: the end-of-turn token
            continue
        if found < 0 or (text[position:found].strip() and not unread):
            return None
        if unread and text[position:found].strip():
            ends[-1] = found
        position, unread = found + len(piece), 0
        ends.append(position)
    if not ends or (text[position:].strip() and not unread):
        return None if text else []
    ends[-1] = len(text)
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _read_tokenizer(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        raise ConfigError(
            f"The tokenizer file {path} can't be read: {error}. Copy the pair's own tokenizer.json again."
        ) from error


class LocalTokenizer:
    """A ``tokenizer.json`` read by the light ``tokenizers`` package: no weights, no call."""

    def __init__(self, path: Path) -> None:
        try:
            import tokenizers  # noqa: F401 - here to say what is missing
        except ImportError as error:
            raise MissingDependencyError(
                "pair.policy.tokenizer_file needs the package 'tokenizers', which is not installed. "
                "Install it, or drop the setting: the policy server then tokenizes."
            ) from error
        if not path.is_file():
            raise ConfigError(f"The tokenizer file {path} is not there. Correct pair.policy.tokenizer_file.")
        self._tokenizer: Tokenizer = _read_tokenizer(path)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str) -> tuple[list[int], Spans]:
        """Token ids of ``text`` without special tokens, and their spans."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, contiguous(text, encoding.offsets)

    def spans_of_ids(self, text: str, ids: Sequence[int]) -> Spans | None:
        """Spans of sampled ids in the text a server made of them."""
        tokens = [self._tokenizer.id_to_token(token_id) or "" for token_id in ids]
        special = {token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special}
        return spans_of_tokens(text, ["" if token in special else token for token in tokens])
