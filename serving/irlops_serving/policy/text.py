"""Tokens to text as they come: never half a character, never part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# The longest UTF-8 character has four bytes, so a token can complete at most three before it.
_MAX_CONTEXT_TOKENS = 4


class TextBuilder:
    """The text of one sample.

    ``add`` takes a token and says which stop string it completed; ``take`` gives what may be shown since the last call.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stop: Sequence[str], *, keep_stop: bool
    ) -> None:
        self._tokenizer = tokenizer
        # Primed with the prompt: a tokenizer may write a word's space with the word before it.
        self._stream = DecodeStream(ids=list(prompt_ids), skip_special_tokens=True)
        self._stop, self._keep_stop = stop, keep_stop
        # The last characters could be the start of a stop string.
        self._num_held_back = max((len(text) - 1 for text in stop), default=0) if not keep_stop else 0
        self._num_shown = 0
        self.text = ""

    def add(self, token_id: int) -> str | None:
        before = len(self.text)
        self.text += self._decode(token_id)
        for stop in self._stop:
            found = self.text.find(stop, max(0, before - len(stop) + 1))
            if found >= 0:
                self.text = self.text[: found + len(stop) if self._keep_stop else found]
                return stop
        return None

    def take(self, *, is_finished: bool) -> str:
        end = len(self.text) - (0 if is_finished else self._num_held_back)
        start, self._num_shown = self._num_shown, max(end, self._num_shown)
        return self.text[start : self._num_shown]

    def _decode(self, token_id: int) -> str:
        try:
            return self._stream.step(self._tokenizer, token_id) or ""
        except Exception as error:
            # Some byte-fallback tokenizers write earlier text anew once a character turns out broken; the stream gives up.
            if not str(error).startswith("Invalid prefix"):
                raise
            self._stream = DecodeStream(skip_special_tokens=True)
            return self._stream.step(self._tokenizer, token_id) or ""


def token_text(tokenizer: Tokenizer, token_id: int, context_ids: Sequence[int]) -> str:
    """What one token adds to the text, for log-probabilities: a character's last token gets the whole character.

    Args:
        tokenizer: the policy's.
        token_id: the token; drawn, or only considered.
        context_ids: tokens drawn before it.
    Returns:
        Its text; empty while the character is incomplete.
    """
    alone = tokenizer.decode([token_id], skip_special_tokens=False)
    if not alone.endswith(REPLACEMENT):
        return alone
    for num_context in range(1, min(len(context_ids), _MAX_CONTEXT_TOKENS) + 1):
        context = list(context_ids[-num_context:])
        text = tokenizer.decode([*context, token_id], skip_special_tokens=False)
        if not text.endswith(REPLACEMENT):
            return text[len(_without_broken_end(tokenizer, context)) :]
    return ""


def _without_broken_end(tokenizer: Tokenizer, context: list[int]) -> str:
    while context and tokenizer.decode(context[-1:], skip_special_tokens=False).endswith(REPLACEMENT):
        context = context[:-1]
    return tokenizer.decode(context, skip_special_tokens=False) if context else ""
