"""The steps of a solution in tokens, for rewards and losses at step granularity."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from irlops.steps import segment_steps


def step_end_tokens(text: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Position of the last token of each step, ascending.

    A token that reaches over a boundary belongs to the step in which it ends. Tokens without characters (special
    ones) belong to the step before them, so the end token closes the last step. Steps without a token are left out.

    Args:
        text: The solution.
        offsets: (start, end) of each of its tokens, in characters.
    """
    step_ends = [end for _, end in segment_steps(text)] or [0]
    step, last_token = 0, {}
    for position, (_, end) in enumerate(offsets):
        while step + 1 < len(step_ends) and end > step_ends[step]:
            step += 1
        last_token[step] = position
    return sorted(last_token.values())


def text_and_offsets(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text of sampled tokens and where each of them stands in it, without tokenizing the text again.

    Sampled tokens need not be those that the tokenizer would choose for their text. A character that is spread over
    several byte tokens appears as one replacement sign per token, which moves no step boundary.
    """
    pieces = tokenizer.batch_decode([[token] for token in token_ids], skip_special_tokens=True)
    offsets: list[tuple[int, int]] = []
    position = 0
    for piece in pieces:
        offsets.append((position, position + len(piece)))
        position += len(piece)
    return "".join(pieces), offsets


def step_ends(tokenizer: PreTrainedTokenizerBase, solution_ids: Sequence[int]) -> list[int]:
    """Position of the last token of each step of a tokenized solution; the last token always ends one."""
    text, offsets = text_and_offsets(tokenizer, solution_ids)
    return step_end_tokens(text, offsets)
