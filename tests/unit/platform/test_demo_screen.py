"""What the demo prints where nobody sees a line being drawn over itself."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from irlops.cli.gateway_client import Answer
from irlops.demo.memory import PeakMemory
from irlops.demo.results import table_rows
from irlops.demo.screen import Screen, clock
from support.demo_results import rerank_result, summary


@pytest.fixture
def screen() -> Screen:
    return Screen(Console(file=io.StringIO(), width=110))


def printed(screen: Screen) -> str:
    file = screen.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_a_stage_is_a_headline_and_what_came_out_of_it(screen: Screen) -> None:
    with screen.stage("[3/8]", "SFT", "the policy imitates") as view:
        view.update("loss 0.8", 240, 600)
        view.done("loss 4.71 → 0.62")
    assert printed(screen).split("\n") == ["", "[3/8] SFT  the policy imitates", "      ✓ loss 4.71 → 0.62  (0 s)", ""]


def test_progress_without_a_terminal_is_a_line_now_and_then() -> None:
    now = [0.0]
    screen = Screen(Console(file=io.StringIO(), width=110), now_s=lambda: now[0])
    with screen.stage("[3/8]", "SFT", "…") as view:
        for second in range(0, 40):
            now[0] = float(second)
            view.update("loss 0.8", second, 100)
    told = [line.strip() for line in printed(screen).split("\n") if "loss" in line]
    # After 15 s and after 30 s; one unit of work a second leaves 100 - 15 and 100 - 30 seconds.
    assert told == ["0:15  15/100  (about 1:25 left)  loss 0.8", "0:30  30/100  (about 1:10 left)  loss 0.8"]


def test_warnings_are_lines_of_their_own(screen: Screen) -> None:
    with screen.stage("[4/8]", "AIRL", "…") as view:
        view.warn("round 20: dev auroc 0.51 is below 0.60")
    assert "      ! round 20: dev auroc 0.51 is below 0.60\n" in printed(screen)


def test_the_table_fits_an_ordinary_terminal_and_says_what_its_numbers_are(screen: Screen) -> None:
    screen.table(table_rows(summary().evaluations), 250, 16)
    lines = printed(screen).rstrip().split("\n")
    assert lines[1].startswith("Right answers in %, 250 test questions never trained on, 16 samples each")
    airl = next(line for line in lines if line.startswith("AIRL"))
    assert airl.split()[1:5] == ["60.0", "±3.0", "60.0", "±3.0"]  # (64 - 58) / 2
    assert airl.split()[-1] == "0.800"


@pytest.mark.parametrize(
    ("correct", "verdict"), [(True, "✓ right: the"), (False, "✗ wrong: the")], ids=["right", "wrong"]
)
def test_an_answer_is_held_to_the_experts(screen: Screen, correct: bool, verdict: str) -> None:
    screen.answer(Answer("#### 1", rerank_result()), "1", correct=correct)
    assert verdict in printed(screen)
    assert "weighted_majority of 2 candidates" in printed(screen)


def test_the_clock_counts_minutes() -> None:
    assert (clock(7.9), clock(92)) == ("0:07", "1:32")


def test_peak_memory_counts_this_process() -> None:
    with PeakMemory(every_s=0.01) as memory:
        ballast = bytearray(64 * 2**20)
        end_s = time.monotonic() + 30
        while memory.peak_bytes <= len(ballast) and time.monotonic() < end_s:
            time.sleep(0.01)
    assert memory.peak_bytes > len(ballast)
