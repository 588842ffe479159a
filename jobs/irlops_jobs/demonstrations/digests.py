"""Digests of the rows that train, dev and test a model.

A digest covers the order of the rows and the exact question, solution and answer of each. It doesn't cover where a
row was read from, so the hub's copy and a local file of the same rows agree, nor how a file spelled them (key order,
escapes, white space between JSON tokens).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from irlops_jobs.demonstrations.carriers import Demonstration


def digest_demonstrations(demonstrations: Iterable[Demonstration]) -> str:
    """``sha256:`` and 64 hexadecimal digits over one canonical JSON line per row.

    Changing this format changes every recorded digest: a test pins it.
    """
    digest = hashlib.sha256()
    for row in demonstrations:
        line = json.dumps([row.question, row.solution, row.answer], ensure_ascii=False, separators=(",", ":"))
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return f"sha256:{digest.hexdigest()}"


def digest_of_digests(digests: Mapping[str, str]) -> str:
    """``sha256:`` and 64 hexadecimal digits over named digests; the order in which they were put in doesn't count."""
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
