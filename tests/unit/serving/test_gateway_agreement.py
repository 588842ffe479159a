"""Agreement of answers under a time limit."""

import time

import pytest

from irlops_serving.gateway.agreement import BoundedAgreement, classes_of, same_text


async def test_numbers_are_compared_without_a_process():
    bounded = BoundedAgreement()
    agree = await bounded.among(["4", "4.0", "5", None])
    assert agree("4", "4.0")
    assert not agree("4", "5")
    assert not agree("4", None)
    assert bounded._workers is None


async def test_formulas_that_mean_the_same_are_one_answer():
    bounded = BoundedAgreement(limit_s=60)
    try:
        agree = await bounded.among([r"\frac{1}{2}", "0.5", "7", None])
        assert agree(r"\frac{1}{2}", "0.5")
        assert not agree("0.5", "7")
        assert not agree(None, None)
    finally:
        bounded.close()


def _never(_):
    time.sleep(3600)


async def test_a_comparison_that_takes_too_long_is_ended_and_texts_are_compared():
    bounded = BoundedAgreement(limit_s=0.2, first_limit_s=0.2, compare=_never)
    agree = await bounded.among(["9^9^9^9", "x"])
    assert agree is same_text
    assert bounded._workers is None


async def test_a_request_without_time_does_not_wait_for_a_comparison():
    bounded = BoundedAgreement()
    try:
        assert await bounded.among(["x", "y"], limit_s=0.01) is same_text
    finally:
        bounded.close()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("$4", "4.", True), ("x", "x ", True), ("x", "y", False), (None, None, False), ("", "", False)],
)
def test_texts_are_compared_normalised(one, other, same):
    assert same_text(one, other) is same


def test_answers_are_sorted_into_classes_by_the_first_they_agree_with():
    assert classes_of(["4", "5", "4.0", "5.00", "6"]) == [0, 1, 0, 1, 4]
