"""What workers print, as a fraction done and a few words."""

from __future__ import annotations

import pytest

from irlops.demo.progress import JobProgress


def after(*lines: str, total: int | None = None) -> JobProgress:
    progress = JobProgress(total=total)
    for line in lines:
        progress.read(line)
    return progress


def test_the_warm_start_counts_its_steps() -> None:
    progress = after("sft-tiny: 20000 demonstrations, steps 0 to 600", "step   240  loss 0.812 nats/token")
    assert (progress.done, progress.total, progress.text) == (240, 600, "loss 0.812")


def test_a_round_says_how_often_the_policy_is_right_and_what_the_critic_thinks() -> None:
    progress = after("round   12/40  accuracy 0.412  critic 0.610  reward right 0.801  wrong -0.304  kl 0.002")
    assert (progress.done, progress.total) == (12, 40)
    assert progress.text == "right 41%, reward of right +0.80, of wrong -0.30"


def test_a_round_without_a_policy_update_is_the_critics_warm_up() -> None:
    assert after("round    1/40  accuracy 0.400  critic 0.690").text == "right 40%, critic warms up"


def test_the_critics_steps_before_the_first_round_are_counted() -> None:
    progress = after("airl-tiny: rounds 0 to 26", "critic warm-up  300/1000  expert token preferred 0.906")
    assert (progress.done, progress.total) == (300, 1000)
    assert progress.text == "critic warms up: prefers the expert's token 91% of the time"
    progress.read("round    1/26  accuracy 0.598  critic 0.975  reward right 1.510  wrong -1.668")
    assert (progress.done, progress.total) == (1, 26)


def test_a_check_on_held_out_questions_is_told() -> None:
    line = "round   20/40  accuracy 0.500  critic 0.610  kl 0.004  dev accuracy 0.547  dev auroc 0.755"
    assert after(line).text == "right 50%, held out: right 55%"


def test_an_evaluation_counts_the_policies_it_has_sampled_from() -> None:
    lines = ["evaluate-tiny: calibrating on 96 dev problems"]
    lines += [f"evaluate-tiny: {row} solves 250 test problems, 16 times each" for row in ("untrained", "sft")]
    progress = after(*lines, total=4)
    assert (progress.done, progress.total) == (2, 4)
    assert progress.text == "sft solves 250 test problems, 16 times each"


def test_an_evaluation_says_how_far_its_sampling_is_and_what_it_looks_for_last() -> None:
    progress = after(
        "evaluate-tiny: sft solves 250 test problems, 16 times each", "sampled 32 of 125 problems", total=4
    )
    assert (progress.done, progress.total, progress.text) == (1, 4, "sampling: 26% of the problems")
    progress.read("evaluate-tiny: looking for the known first error of 256 corrupted solutions")
    assert (progress.done, progress.text) == (1, "looking for the first error of 256 corrupted solutions")


def test_warnings_are_kept_until_somebody_has_read_them() -> None:
    assert after("warning: round 20: dev auroc 0.51 is below 0.60").warnings == [
        "round 20: dev auroc 0.51 is below 0.60"
    ]


@pytest.mark.parametrize("line", ["", "left out 3 demonstrations longer than 192 tokens", "W1123 torch: whatever"])
def test_other_lines_change_nothing(line: str) -> None:
    progress = JobProgress()
    assert (progress.read(line), progress) == (False, JobProgress())
