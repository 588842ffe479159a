"""Corruptions: wrong where they say, right before, in the same format, with their own question."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irlops_jobs.demonstrations.arithmetic import load_arithmetic
from irlops_jobs.demonstrations.expressions import ANNOTATION, evaluate, parse_number, strip_annotations
from irlops_jobs.demonstrations.perturbations import (
    KINDS,
    PerturbationMix,
    perturb,
    perturb_positives,
    token_span,
)
from irlops_jobs.models.tokenizers import build_tiny_tokenizer

QUESTION = "Ava has 12 apples and buys 5. Then she buys 3 bags with twice as many each. How many has she?"
SOLUTION = (
    "She has 12 + 5 = <<12+5=17>>17 apples.\n"
    "Each bag has 17 x 2 = <<17*2=34>>34.\n"
    "The bags have 34*3=<<34*3=102>>102 apples.\n"
    "In all 17 + 102 = <<17+102=119>>119.\n"
    "#### 119"
)
POSITIVES = [(row.question, row.solution) for row in load_arithmetic("train", 150, seed=3)]
STRIPPED = [(question, strip_annotations(solution)) for question, solution in POSITIVES]


def _only(kind, carried=1.0):
    return PerturbationMix(**dict.fromkeys(KINDS, 0.0) | {kind: 1.0}, carried=carried)


def _draws(kind, num=60, carried=1.0, solution=SOLUTION):
    drawn = (perturb(QUESTION, solution, rng=random.Random(n), mix=_only(kind, carried)) for n in range(num))
    return [one for one in drawn if one is not None]


def _many(positives=POSITIVES, **settings):
    return [one for many in perturb_positives(positives, num_each=2, seed=0, round_index=0, **settings) for one in many]


def _false_annotations(text):
    return [m[0] for m in ANNOTATION.finditer(text) if evaluate(m[1]) != parse_number(m[2])]


def test_a_carried_slip_of_arithmetic_is_the_only_false_equation():
    for one in _draws("result"):
        wrong = _false_annotations(one.solution)
        assert len(wrong) == 1
        assert one.solution.index(wrong[0]) < one.first_error_start < one.solution.index(wrong[0]) + len(wrong[0])


def test_the_visible_result_always_equals_its_annotation():
    for one in _draws("result") + _draws("operator") + _draws("number"):
        for match in ANNOTATION.finditer(one.solution):
            assert one.solution.startswith(match[2], match.end())


@pytest.mark.parametrize("kind", ["operator", "number"])
def test_a_carried_wrong_step_leaves_every_equation_true(kind):
    drawn = [one for one in _draws(kind) if one.carried]
    assert len(drawn) > 20
    assert all(not _false_annotations(one.solution) for one in drawn)


@pytest.mark.parametrize("kind", ["operator", "number"])
def test_a_wrong_step_that_is_not_carried_keeps_its_old_result(kind):
    for one in _draws(kind, carried=0.0):
        assert len(_false_annotations(one.solution)) == 1
        assert one.solution.endswith("#### 119")
        assert not one.carried


def test_a_carried_slip_reaches_the_answer_by_hand():
    # 34*3 = 102 becomes 104, so 17 + 104 = 121 and the answer with it
    (one,) = {d.solution: d for d in _draws("result", 300) if "34*3=104" in d.solution}.values()
    assert one.solution.splitlines()[3:] == ["In all 17 + 104 = <<17+104=121>>121.", "#### 121"]
    assert one.solution.splitlines()[2] == "The bags have 34*3=<<34*3=104>>104 apples."
    # ...<<34*3=10 is right, the 4 is wrong
    start = one.solution.index("=104>>") + 3
    assert (one.first_error_start, one.first_error_end) == (start, start + 1)


def test_a_multiplication_is_written_with_the_sign_of_the_text_and_a_star_in_its_annotation():
    drawn = {one.solution.splitlines()[0] for one in _draws("operator", 200)}
    assert "She has 12 x 5 = <<12*5=60>>60 apples." in drawn


def test_a_wrong_answer_leaves_the_reasoning_alone():
    for one in _draws("answer"):
        assert one.solution.rpartition("#### ")[0] == SOLUTION.rpartition("#### ")[0]
        assert one.solution.rpartition("#### ")[2] != "119"
        assert one.carried


def test_a_swapped_step_uses_a_number_before_it_is_derived():
    for one in _draws("step_swap"):
        assert sorted(one.solution.splitlines()) == sorted(SOLUTION.splitlines())
        used = one.solution[one.first_error_start : one.first_error_end]
        assert used not in one.solution[: one.first_error_start]
        assert used not in QUESTION


def test_steps_that_do_not_need_each_other_are_not_swapped():
    assert _draws("step_swap", solution="2+3=5 eggs\n4+4=8 hens\n#### 8") == []


@pytest.mark.parametrize(
    ("solution", "still_right"),
    [("2*2=4\n#### 4", "2+2=4"), ("7 * 1 = 7\n#### 7", "7 / 1 = 7")],
    ids=["2*2 and 2+2", "7*1 and 7/1"],
)
def test_a_corruption_that_is_right_by_accident_is_rejected(solution, still_right):
    drawn = _draws("operator", carried=1.0, solution=solution) + _draws("operator", carried=0.0, solution=solution)
    assert drawn
    assert not any(one.solution.startswith(still_right) for one in drawn)


@pytest.mark.parametrize("positives", [POSITIVES, STRIPPED], ids=["annotated", "stripped"])
def test_every_positive_gets_its_corruptions_with_its_own_question(positives):
    drawn = perturb_positives(positives, num_each=2, seed=0, round_index=4)
    assert [len(many) for many in drawn] == [2] * len(positives)
    for (question, solution), many in zip(positives, drawn, strict=True):
        assert all(one.question == question and one.solution != solution for one in many)
        assert len({one.solution for one in many}) == 2


@pytest.mark.parametrize("positives", [POSITIVES, STRIPPED], ids=["annotated", "stripped"])
def test_everything_before_the_first_error_is_as_it_was(positives):
    originals = dict(positives)
    for one in _many(positives, mix=PerturbationMix.for_localisation()):
        original = originals[one.question]
        assert one.solution[: one.first_error_start] == original[: one.first_error_start]
        assert one.solution[one.first_error_start] != original[one.first_error_start : one.first_error_start + 1]
        assert one.first_error_start < one.first_error_end <= len(one.solution)


def test_form_tells_nothing_about_a_corruption():
    originals = dict(POSITIVES)
    for one in _many():
        original = originals[one.question]
        assert sorted(re.sub(r"[0-9]+|[-+*/]", "n", one.solution).splitlines()) == sorted(
            re.sub(r"[0-9]+|[-+*/]", "n", original).splitlines()
        )
        assert abs(len(one.solution) - len(original)) <= 16


def test_kinds_come_in_about_the_shares_of_the_mix():
    counts = Counter(one.kind for one in _many())
    shares = {kind: count / counts.total() for kind, count in counts.items()}
    assert set(shares) == set(KINDS)
    assert all(abs(shares[kind] - getattr(PerturbationMix(), kind)) < 0.12 for kind in KINDS)


def test_localisation_leaves_out_what_has_no_single_first_error():
    assert "step_swap" not in {one.kind for one in _many(mix=PerturbationMix.for_localisation())}


def test_corruptions_depend_on_seed_round_and_index_alone():
    whole = perturb_positives(POSITIVES[:6], num_each=2, seed=1, round_index=2)
    assert perturb_positives(POSITIVES[3:6], num_each=2, seed=1, round_index=2, first_index=3) == whole[3:]
    assert perturb_positives(POSITIVES[:6], num_each=2, seed=1, round_index=3) != whole
    assert perturb_positives(POSITIVES[:6], num_each=2, seed=2, round_index=2) != whole


def test_a_text_without_numbers_has_no_corruption():
    assert perturb_positives([("How many?", "None at all.")], num_each=2, seed=0, round_index=0) == [()]


@given(st.text(alphabet="0123456789.,+-*/x()=<>#$ \nab", max_size=120), st.integers(0, 5))
def test_any_sampled_text_is_corrupted_or_left_alone_without_an_error(text, seed):
    one = perturb("I have 3 and 4.", text, rng=random.Random(seed))
    assert one is None or (one.solution != text and one.first_error_start < one.first_error_end <= len(one.solution))


def test_a_span_of_characters_becomes_the_tokens_that_touch_it():
    offsets = [(0, 3), (3, 4), (4, 5), (5, 5), (5, 8)]
    assert token_span(offsets, 3, 4) == (1, 2)
    assert token_span(offsets, 2, 6) == (0, 5)
    assert token_span(offsets, 9, 10) == (5, 5)  # cut off at the model's length


def test_the_first_wrong_token_is_the_first_wrong_digit_with_the_tiny_tokenizer():
    tokenizer = build_tiny_tokenizer()
    for one in _many(POSITIVES[:40], mix=PerturbationMix.for_localisation()):
        encoded = tokenizer(one.solution, add_special_tokens=False, return_offsets_mapping=True)
        first, _ = token_span(encoded["offset_mapping"], one.first_error_start, one.first_error_end)
        before = tokenizer.decode(encoded["input_ids"][:first])
        assert dict(POSITIVES)[one.question].startswith(before)
        upto = tokenizer.decode(encoded["input_ids"][: first + 1])
        assert not dict(POSITIVES)[one.question].startswith(upto)
