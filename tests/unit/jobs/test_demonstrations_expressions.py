"""Numbers and arithmetic as solutions write them."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irlops_jobs.demonstrations.equations import parse_solution
from irlops_jobs.demonstrations.expressions import evaluate, find_numbers, strip_annotations, write_number


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("100-50-30-15", 5),
        ("2+3*4", 14),
        ("(2+3)*4", 20),
        ("12/60", Fraction(1, 5)),
        (".2*50", 10),
        ("-2*3", -6),
        ("2*-3", -6),
        ("+2", 2),
        ("560//10", 56),
        ("007+1", 8),
    ],
)
def test_arithmetic_is_exact(expression, value):
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    "text", ["", "2+", "1/0", "(1", "1)", "a+1", "2 3", "9" * 16, "1+" * 150 + "1", "__import__", "2**9"]
)
def test_what_is_no_plain_arithmetic_has_no_value(text):
    assert evaluate(text) is None


def test_deep_nesting_is_no_danger():
    assert evaluate("(" * 99 + "1" + ")" * 99) == 1
    assert evaluate("(" * 100_000) is None


def test_numbers_are_found_with_their_place_and_value():
    found = find_numbers("$1,200.50 and .5, 3. Then 12,34 x2")
    assert [(m.written, m.value) for m in found][:3] == [
        ("1,200.50", Fraction(2401, 2)),
        (".5", Fraction(1, 2)),
        ("3", 3),
    ]
    assert [m.start for m in found][:3] == [1, 14, 18]


@pytest.mark.parametrize(
    ("value", "like", "written"),
    [
        (Fraction(1300), "1,250", "1,300"),
        (Fraction(5, 4), "0.50", "1.25"),
        (Fraction(1, 2), ".25", ".50"),
        (Fraction(5, 4), "7", None),
        (Fraction(1, 3), "0.50", None),
        (Fraction(12), "7", "12"),
    ],
    ids=["commas", "decimals", "bare point", "no decimals in whole numbers", "not exact", "longer"],
)
def test_a_number_is_written_in_the_style_of_another(value, like, written):
    assert write_number(value, like) == written


def test_stripping_leaves_what_a_reader_sees():
    assert strip_annotations("12/60 = $<<12/60=0.2>>0.2 each") == "12/60 = $0.2 each"


def test_an_annotated_equation_is_found_in_the_text_and_in_the_annotation():
    text = "She has 12 + 5 = <<12+5=17>>17 apples.\n#### 17"
    (equation,) = parse_solution(text).equations
    places = [text[m.start : m.end] for writing in equation.writings for m in writing.numbers]
    assert places == ["12", "5", "12", "5"]
    assert [text[m.start : m.end] for m in equation.results] == ["17", "17"]
    assert (equation.value, equation.operators, equation.is_editable) == (17, ("+",), True)


def test_units_between_numbers_do_not_hide_an_equation():
    (equation,) = parse_solution("4 rounds* 4 points/round = 16 points").equations
    assert (equation.operands, equation.operators, equation.value) == ((4, 4), ("*",), 16)


def test_a_number_before_the_expression_is_not_part_of_it():
    (equation,) = parse_solution("In 2 weeks he earns 5 x $3 = $15.").equations
    assert equation.operands == (5, 3)


@pytest.mark.parametrize("text", ["2+2=5", "so 7 = 7", "a = 3", "10 = 2*5", "3+4=6+1", "50% of 8 = 4"])
def test_what_does_not_evaluate_to_its_result_is_no_equation(text):
    assert parse_solution(text).equations == ()


def test_an_annotation_that_the_text_puts_differently_is_not_editable():
    (equation,) = parse_solution("2 liters * 20% = <<2*20*.01=.4>>.4 liters").equations
    assert not equation.is_editable


def test_the_final_answer_is_the_number_behind_the_last_hashes():
    parsed = parse_solution("#### 3 no\n1+1=2\n#### $1,200.50")
    assert parsed.final is not None
    assert (parsed.final.written, parsed.final.value) == ("1,200.50", Fraction(2401, 2))


@given(st.text(alphabet="0123456789.,+-*/x()=<>#$ \nab%", max_size=200))
def test_any_text_can_be_parsed(text):
    parsed = parse_solution(text)
    assert all(e.writings[-1].value() is not None for e in parsed.equations)
