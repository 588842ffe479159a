"""GSM8K: the hub's copy at a pinned revision, or a folder of local JSON lines.

    rows (file or hub) -> demonstrations -> contradictions and leaks left out -> train, dev (held out of train), test

The test split is never trained or tuned on: a training row that repeats a test question is left out and counted.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from irlops.errors import DataError, MissingDependencyError, UnavailableError
from irlops_jobs.demonstrations.carriers import Demonstration, DemonstrationSet
from irlops_jobs.demonstrations.rows import MalformedRowError, contradiction_in, parse_row, reason_of

HUB_ID = "openai/gsm8k"
HUB_CONFIGURATION = "main"
HUB_REVISION = "740312add88f781978c0658806c59bc2815b9866"
FILE_NAMES = {"train": "train.jsonl", "test": "test.jsonl"}


@dataclass(frozen=True)
class RawRow:
    """One row as it was read; ``where`` is for messages: ``train.jsonl, line 18``."""

    where: str
    source: str
    content: Any


@dataclass(frozen=True)
class Gsm8kSettings:
    """How to read GSM8K.

    Example:
        ``Gsm8kSettings(folder=Path("data/gsm8k"), num_dev=256, on_malformed="skip")``
    """

    folder: Path | None = None
    """With train.jsonl and test.jsonl; None reads the hub."""
    keep_annotations: bool = False
    num_train: int | None = None
    """From the start of what is left after the hold-out; None takes all."""
    num_dev: int = 256
    """Questions held out of the training rows."""
    num_test: int | None = None
    on_malformed: Literal["raise", "skip"] = "raise"
    seed: int = 0
    """Of the hold-out only."""
    revision: str = HUB_REVISION


def load_gsm8k(settings: Gsm8kSettings) -> DemonstrationSet:
    """The three splits, the same for the same settings.

    Expert solutions that contradict themselves are left out of train and dev and counted, whatever ``on_malformed``
    says: the official train split has nine. The test split keeps every row, so that its numbers compare with others'.

    Raises:
        DataError: a file is missing, a row is malformed (unless skipped), or too few rows are left for the hold-out.
        MissingDependencyError: the hub is needed and ``datasets`` is not installed.
        UnavailableError: the hub doesn't answer and its copy is not in the local cache.
    """
    skipped: Counter[str] = Counter()
    test = list(_parse(_raw_rows(settings, "test"), settings, skipped))
    test_questions = {row.question for row in test}
    train = list(_without_contradictions(_parse_annotated(_raw_rows(settings, "train"), settings, skipped), skipped))
    unseen = [row for row in train if row.question not in test_questions]
    skipped["also_in_test"] += len(train) - len(unseen)
    train, dev = _hold_out(unseen, settings)
    return DemonstrationSet.of(
        "gsm8k",
        train=train[: settings.num_train],
        dev=dev,
        test=test[: settings.num_test],
        num_skipped={reason: count for reason, count in sorted(skipped.items()) if count},
    )


def _hold_out(rows: list[Demonstration], settings: Gsm8kSettings) -> tuple[list[Demonstration], list[Demonstration]]:
    """Train and dev, split by question so that a question with two solutions never lies on both sides.

    A smaller hold-out of the same seed is part of a larger one.
    """
    questions = sorted({row.question for row in rows})
    if len(questions) <= settings.num_dev:
        raise DataError(
            f"GSM8K's training rows hold {len(questions)} usable questions, too few to hold out {settings.num_dev}. "
            "Lower data.num_dev, or check that train.jsonl is complete (the official file has 7473 rows)."
        )
    random.Random(f"irlops-gsm8k-dev-{settings.seed}").shuffle(questions)  # noqa: S311 - not for secrets
    held_out = set(questions[: settings.num_dev])
    return [row for row in rows if row.question not in held_out], [row for row in rows if row.question in held_out]


def _parse(raw_rows: Iterable[RawRow], settings: Gsm8kSettings, skipped: Counter[str]) -> Iterator[Demonstration]:
    for demonstration, _ in _parse_annotated(raw_rows, settings, skipped):
        yield demonstration


def _parse_annotated(
    raw_rows: Iterable[RawRow], settings: Gsm8kSettings, skipped: Counter[str]
) -> Iterator[tuple[Demonstration, str]]:
    """Each demonstration with its solution as it was written, annotations included."""
    for raw in raw_rows:
        try:
            row = parse_row(raw.content, source=raw.source, keep_annotations=settings.keep_annotations)
        except MalformedRowError as error:
            if settings.on_malformed == "raise":
                raise DataError(
                    f"{raw.where} is malformed: {error}. "
                    "Correct the row, or leave such rows out with data.on_malformed: skip."
                ) from error
            skipped[reason_of(error)] += 1
            continue
        yield row, raw.content["answer"]


def _without_contradictions(
    rows: Iterable[tuple[Demonstration, str]], skipped: Counter[str]
) -> Iterator[Demonstration]:
    for row, written_solution in rows:
        if contradiction_in(written_solution) is None:
            yield row
        else:
            skipped["contradiction"] += 1


def _raw_rows(settings: Gsm8kSettings, split: Literal["train", "test"]) -> Iterator[RawRow]:
    if settings.folder is None:
        return _hub_rows(split, settings.revision)
    return _file_rows(settings.folder / FILE_NAMES[split], split, settings.on_malformed)


def _file_rows(path: Path, split: str, on_malformed: str) -> Iterator[RawRow]:
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise DataError(
            f"Can't read GSM8K's {split} rows from {path}: {error.strerror}. "
            "Put the official train.jsonl and test.jsonl there, or leave data.source out to use the hub."
        ) from error
    index = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        yield RawRow(
            f"{path}, line {number}", f"gsm8k/{split}:{index}", _json_or_text(line, path, number, on_malformed)
        )
        index += 1
    if index == 0:
        raise DataError(f"{path} holds no rows. The official file has {7473 if split == 'train' else 1319}.")


def _json_or_text(line: bytes, path: Path, number: int, on_malformed: str) -> Any:
    """The row, or the undecodable line itself (which then counts as no object)."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError covers bad JSON and bad UTF-8
        if on_malformed == "raise":
            raise DataError(
                f"{path}, line {number} is not JSON ({error}). Correct the line, or set data.on_malformed: skip."
            ) from error
        return None


def _hub_rows(split: str, revision: str) -> Iterator[RawRow]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingDependencyError(
            "Reading GSM8K from the hub needs the package `datasets`: install irlops[jobs], or set IRLOPS_DATA_DIR "
            "to a folder with train.jsonl and test.jsonl."
        ) from error
    try:
        rows = load_dataset(HUB_ID, HUB_CONFIGURATION, split=split, revision=revision)
    except Exception as error:  # the hub's client raises a dozen unrelated types for "can't be reached"
        raise UnavailableError(
            f"The hub gives no {HUB_ID} at revision {revision[:12]} ({type(error).__name__}: {str(error)[:200]}). "
            "Try again, or set IRLOPS_DATA_DIR to a folder with train.jsonl and test.jsonl."
        ) from error
    for index, row in enumerate(rows):
        yield RawRow(f"{HUB_ID} {split} row {index}", f"gsm8k/{split}:{index}", row)
