"""Reading GSM8K: the official answer rule, malformed rows, contradictions, the hold-out, digests."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from irlops.errors import DataError
from irlops_jobs.demonstrations.gsm8k import Gsm8kSettings, load_gsm8k
from irlops_jobs.demonstrations.rows import contradiction_in, official_answer

OFFICIAL = Path(__file__).resolve().parents[4] / "shared" / "gsm8k"
needs_official_files = pytest.mark.skipif(
    not OFFICIAL.is_dir(), reason="the official files are not beside the repository"
)


def _row(number, question=None):
    solution = f"{number}+1=<<{number}+1={number + 1}>>{number + 1}\n#### {number + 1}"
    return {"question": question or f"What is {number} plus 1?", "answer": solution}


def _folder(tmp_path, train, test=None):
    for name, rows in (("train", train), ("test", test or [_row(1000)])):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def _load(folder, **settings):
    return load_gsm8k(Gsm8kSettings(folder=folder, **{"num_dev": 2, **settings}))


@pytest.mark.parametrize(
    ("solution", "answer"),
    [("#### 72", "72"), ("so\n#### 1,234", "1234"), ("#### -3", "-3"), ("#### 2.50", "2.50"), ("#### 5\n#### 6", "5")],
    ids=["plain", "commas are removed", "negative", "decimals stay", "the first one counts"],
)
def test_the_official_answer_is_the_number_behind_the_hashes(solution, answer):
    assert official_answer(solution) == answer


@pytest.mark.parametrize("solution", ["72", "#### many", "#### 1.2.3", "#### ..", ""])
def test_a_solution_without_a_number_behind_the_hashes_has_no_answer(solution):
    with pytest.raises(DataError, match=r"no_answer|unparsable_answer"):
        official_answer(solution)


def test_dev_is_held_out_of_train_and_test_stays_whole(tmp_path):
    loaded = _load(_folder(tmp_path, [_row(n) for n in range(10)], [_row(n) for n in range(100, 105)]))
    assert (len(loaded.train), len(loaded.dev), len(loaded.test)) == (8, 2, 5)
    assert not {row.question for row in loaded.train} & {row.question for row in loaded.dev}


def test_the_hold_out_depends_on_its_seed_alone_and_a_smaller_one_is_part_of_a_larger(tmp_path):
    folder = _folder(tmp_path, [_row(n) for n in range(40)])
    small, again, large = (_load(folder, num_dev=n) for n in (4, 4, 8))
    assert small.dev == again.dev
    assert set(small.dev) < set(large.dev)
    assert _load(folder, num_dev=4, seed=1).dev != small.dev


def test_two_solutions_of_one_question_never_lie_on_both_sides_of_the_hold_out(tmp_path):
    rows = [_row(n, question=f"Question {n // 3}?") for n in range(30)]
    loaded = _load(_folder(tmp_path, rows), num_dev=5)
    assert (len(loaded.dev), len(loaded.train)) == (15, 15)
    assert not {row.question for row in loaded.train} & {row.question for row in loaded.dev}


def test_a_training_row_that_repeats_a_test_question_is_left_out_and_counted(tmp_path):
    loaded = _load(_folder(tmp_path, [_row(n) for n in range(10)], [_row(3)]))
    assert loaded.num_skipped == {"also_in_test": 1}
    assert len(loaded.train) + len(loaded.dev) == 9


def test_annotations_are_stripped_unless_kept(tmp_path):
    folder = _folder(tmp_path, [_row(n) for n in range(4)])
    assert "<<" not in _load(folder).train[0].solution
    assert "<<" in _load(folder, keep_annotations=True).train[0].solution


def test_a_source_counts_rows_from_zero(tmp_path):
    loaded = _load(_folder(tmp_path, [_row(n) for n in range(4)]))
    assert {row.source for row in (*loaded.train, *loaded.dev)} == {f"gsm8k/train:{n}" for n in range(4)}


MALFORMED = {
    "not JSON": ('{"question": ', "line 3 is not JSON", "not_an_object"),
    "not an object": ("[1, 2]", "line 3 is malformed: not_an_object", "not_an_object"),
    "no answer key": ('{"question": "How many?"}', "line 3 is malformed: missing_answer", "missing_answer"),
    "a number as question": ('{"question": 3, "answer": "#### 3"}', "question_not_text", "question_not_text"),
    "an empty question": ('{"question": " ", "answer": "#### 3"}', "empty_question", "empty_question"),
    "no final answer": ('{"question": "How many?", "answer": "It is 3."}', "no_answer", "no_answer"),
    "an answer in words": ('{"question": "How many?", "answer": "#### three"}', "no_answer", "no_answer"),
    "too deep to parse": ("[" * 100_000, "line 3 is not JSON", "not_an_object"),
}


@pytest.mark.parametrize(("line", "message", "reason"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_row_stops_the_job_with_file_and_line_or_is_counted(tmp_path, line, message, reason):
    folder = _folder(tmp_path, [_row(0), _row(1), line, _row(2), _row(3)])
    with pytest.raises(DataError, match=message) as caught:
        _load(folder)
    assert "train.jsonl, line 3" in str(caught.value)
    loaded = _load(folder, on_malformed="skip")
    assert loaded.num_skipped == {reason: 1}
    assert len(loaded.train) + len(loaded.dev) == 4


def test_bytes_that_are_no_text_are_a_malformed_line(tmp_path):
    folder = _folder(tmp_path, [_row(n) for n in range(4)])
    (folder / "train.jsonl").write_bytes((folder / "train.jsonl").read_bytes() + b'{"question": "\xff\xfe"}\n')
    with pytest.raises(DataError, match=r"train.jsonl, line 5 is not JSON"):
        _load(folder)


def test_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path):
    folder = _folder(tmp_path, [_row(0), "", _row(1), _row(2), "  "])
    (folder / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + (folder / "train.jsonl").read_bytes())
    assert len(_load(folder).train) == 1


def test_a_missing_file_is_named_with_what_belongs_there(tmp_path):
    with pytest.raises(DataError, match=r"test\.jsonl: No such file.*Put the official train\.jsonl and test\.jsonl"):
        _load(tmp_path)


def test_an_empty_file_is_refused(tmp_path):
    folder = _folder(tmp_path, [_row(0)])
    (folder / "train.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"train\.jsonl holds no rows"):
        _load(folder)


def test_a_hold_out_larger_than_the_data_is_refused(tmp_path):
    with pytest.raises(DataError, match="hold 3 usable questions, too few to hold out 3"):
        _load(_folder(tmp_path, [_row(n) for n in range(3)]), num_dev=3)


def test_a_hub_that_cannot_be_reached_is_worth_another_try(tmp_path):
    code = "from irlops_jobs.demonstrations.gsm8k import *; load_gsm8k(Gsm8kSettings())"
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "irlops.errors.UnavailableError: The hub gives no openai/gsm8k" in done.stderr
    assert "set IRLOPS_DATA_DIR" in done.stderr


CONTRADICTIONS = {
    "wrong arithmetic": ("2+2=<<2+2=5>>5\n#### 5", r"<<2\+2=5>> is wrong: 2\+2 is 4"),
    "text and annotation differ": ("2+2=<<2+2=4>>5\n#### 4", "is followed by 5"),
    "two answers": ("It is 4 or 5.\n#### 4\n#### 5", "2 final answers: 4, 5"),
    "an answer out of nowhere": ("48+16=<<48+16=64>>64 points\n#### 66", "never states the final answer 66"),
}


@pytest.mark.parametrize(("solution", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_contradicting_solution_is_left_out_of_training_and_counted(tmp_path, solution, message):
    assert re.search(message, contradiction_in(solution) or "")
    loaded = _load(_folder(tmp_path, [*(_row(n) for n in range(4)), {"question": "Odd?", "answer": solution}]))
    assert loaded.num_skipped == {"contradiction": 1}


def test_a_contradicting_test_row_stays_so_that_results_compare(tmp_path):
    odd = {"question": "Odd?", "answer": "2+2=<<2+2=5>>5\n#### 5"}
    assert len(_load(_folder(tmp_path, [_row(n) for n in range(4)], [_row(100), odd])).test) == 2


@pytest.mark.parametrize(
    "solution",
    [
        "1/3 of 12 is <<12/3=4>>4\n#### 4",
        "10/4=<<10/4=2.5>>2.50 dollars, or 250 cents\n#### 250",
        "It costs 0.25 dollars each.\n#### 25",
        "He needs three days.\n#### 3",
        "The town has 17 000 people.\n#### 17000",
        "#### 7",
        "560//10=<<560//10=56>>56\n#### 56",
        "3/4 stays <<3/4=3/4>>3/4 of 8, which is 6\n#### 6",
    ],
    ids=[
        "words",
        "more decimals",
        "cents",
        "a number word",
        "spaces in thousands",
        "bare",
        "double slash",
        "a fraction",
    ],
)
def test_a_solution_that_only_writes_differently_contradicts_nothing(solution):
    assert contradiction_in(solution) is None


def test_the_digest_is_pinned_so_that_recorded_ones_stay_valid(tmp_path):
    loaded = _load(_folder(tmp_path, [_row(n) for n in range(4)], [_row(9)]))
    # printf '%s\n' '["What is 9 plus 1?","9+1=10\\n#### 10","10"]' | sha256sum
    assert loaded.digests["test"] == "sha256:b4aea5e692caca3bbf0c5a321c14dac6889225c65b32a9174e0ab9e7415c1d95"


def test_a_digest_sees_order_and_content_but_not_how_the_file_spelled_them(tmp_path):
    rows = [_row(n) for n in range(5)]
    (tmp_path / "a").mkdir()
    first = _load(_folder(tmp_path / "a", rows, rows[:3]), num_dev=1).digests["test"]
    respelled = [json.dumps(dict(reversed(row.items())), ensure_ascii=True, indent=None) + "  " for row in rows[:3]]
    (tmp_path / "a" / "test.jsonl").write_text("\n".join(respelled))
    assert _load(tmp_path / "a", num_dev=1).digests["test"] == first
    for changed in ([rows[1], rows[0], rows[2]], rows[:2], [{**rows[0], "question": "Other?"}, *rows[1:3]]):
        (tmp_path / "a" / "test.jsonl").write_text("\n".join(map(json.dumps, changed)))
        assert _load(tmp_path / "a", num_dev=1).digests["test"] != first


@needs_official_files
def test_the_official_files_have_their_known_counts():
    loaded = load_gsm8k(Gsm8kSettings(folder=OFFICIAL, keep_annotations=True))
    # 7473 rows = 7208 + 256 held out + 9 that contradict themselves
    assert (len(loaded.train), len(loaded.dev), loaded.num_skipped) == (7208, 256, {"contradiction": 9})
    assert len(loaded.test) == 1319
    assert loaded.digests["test"] == "sha256:1831b330cd15c28e9e975b7539bb6160b14bc2ecd2738396584d1d3978d16576"
    commas = {name: _num_with(OFFICIAL / f"{name}.jsonl", ",") for name in ("train", "test")}
    negative = {name: _num_with(OFFICIAL / f"{name}.jsonl", "-") for name in ("train", "test")}
    assert commas == {"train": 79, "test": 14}
    assert negative == {"train": 3, "test": 2}
    assert all("," not in row.answer for row in loaded.test)
    assert sum("<<" not in row.solution for row in loaded.test) == 18


def _num_with(path, character):
    return sum(character in json.loads(line)["answer"].rpartition("#### ")[2] for line in path.open())
