"""What a step of a solution is: one cut for rewards in training, for the evaluation and for answers online.

A line is a step. Within a line a sentence is one, when it ends with . ! ? or ; before white space and a new beginning:
"3.5" has no space after its point, and "approx. 4" no capital, so neither is cut. ``####`` always begins a step.
"""

from __future__ import annotations

import re
from itertools import pairwise

_BOUNDARY = re.compile(r"\n\s*|(?<=[.!?;])[ \t]+(?=[A-Z$(\[])|(?<=[^\n#])(?=####)")
# Cuts that end no step: after an abbreviation or an initial, and after the number of a list item ("1. First").
_NO_END = re.compile(
    r"(?:\b(?:e\.g|i\.e|vs|approx|Mr|Mrs|Ms|Dr|Prof|St|Mt|Jr|Sr|No|Fig|Eq|a\.m|p\.m|U\.S|[B-HJ-Z])\."
    r"|(?:^|\n)[ \t]*\d{1,2}[.)])[ \t]+$"
)
_LONGEST_NO_END = 16


def segment_steps(text: str) -> list[tuple[int, int]]:
    """Contiguous (start, end) of the steps of a solution, in characters; white space belongs to the step before it.

    Example:
        >>> segment_steps("3+4=7\\n7*2=14\\n#### 14")
        [(0, 6), (6, 13), (13, 20)]
    """
    first = len(text) - len(text.lstrip())
    ends = (match.end() for match in _BOUNDARY.finditer(text, first))
    edges = [0, *(end for end in ends if end < len(text) and not _ends_no_step(text, end)), len(text)]
    return [(start, end) for start, end in pairwise(edges) if end > start]


def _ends_no_step(text: str, end: int) -> bool:
    return _NO_END.search(text[max(0, end - _LONGEST_NO_END) : end]) is not None
