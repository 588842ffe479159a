"""Steps, returns and the suspected first error."""

import pytest

from irlops.selection import Calibration
from irlops_serving.gateway.steps import discounted_returns, segment_steps, step_rewards, suspected_first_error


def _texts(text):
    return [text[start:end] for start, end in segment_steps(text)]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("3+4=7\n7*2=14\n#### 14", ["3+4=7\n", "7*2=14\n", "#### 14"]),
        ("She has 3. She buys 4.", ["She has 3. ", "She buys 4."]),
        ("It costs 3.50 dollars", ["It costs 3.50 dollars"]),
        ("He walks approx. 4 miles", ["He walks approx. 4 miles"]),
        ("1. Add them.\n2. Double it.", ["1. Add them.\n", "2. Double it."]),
        ("first\n\n\nsecond\n", ["first\n\n\n", "second\n"]),
        ("\n\nonly", ["\n\nonly"]),
        ("", []),
    ],
    ids=["lines", "sentences", "decimals", "abbreviations", "list markers", "blank lines", "leading lines", "nothing"],
)
def test_a_solution_is_cut_into_its(text, steps):
    assert _texts(text) == steps
    assert "".join(_texts(text)) == text


def test_a_very_long_line_is_segmented_quickly():
    text = "It is 4. " * 100_000
    assert len(segment_steps(text)) == 100_000


def test_a_return_is_the_reward_plus_the_discounted_rest():
    # G_3 = 4; G_2 = 2 + 0.5 * 4 = 4; G_1 = 1 + 0.5 * 4 = 3
    assert discounted_returns([1.0, 2.0, 4.0], gamma=0.5) == [3.0, 4.0, 4.0]


MEAN = Calibration(aggregation="mean")
SPANS = [(0, 1), (1, 3), (3, 4), (4, 5), (5, 5)]


@pytest.mark.parametrize(
    ("aggregation", "rewards"),
    [
        # (1 + 2 + 6) / 3 = 3; the end-of-turn token belongs to the last step: (-1 - 3) / 2 = -2
        ("mean", [3.0, -2.0]),
        ("min", [1.0, -3.0]),
        # sigmoid of 1, 2, 6: .731059 x .880797 x .997527 = .642322, log-odds .585457; of -1, -3: .268941 x .047426 =
        # .012755, log-odds -4.349012
        ("product", [0.585457, -4.349012]),
    ],
)
def test_a_steps_tokens_become_one_number_as_a_solutions_do(aggregation, rewards):
    steps = step_rewards("a b\nc", SPANS, [1.0, 2.0, 6.0, -1.0, -3.0], Calibration(aggregation=aggregation))
    assert [step.text for step in steps] == ["a b\n", "c"]
    assert [step.reward for step in steps] == pytest.approx(rewards, abs=1e-5)


def test_one_wrong_digit_among_right_tokens_is_suspected():
    # As a critic that learned by `some_token` rewards "21*2=43": every token but one reads like an expert's.
    rewards = [7.0] * 6 + [-5.5]
    steps = step_rewards(
        "21*2=43", [(i, i + 1) for i in range(7)], rewards, Calibration(aggregation="product", bias=-1.6)
    )
    assert suspected_first_error(steps, threshold=-1.6).step == 0


def test_the_suspected_first_error_is_the_first_step_below_the_threshold():
    steps = step_rewards("a\nb\nc", [(0, 2), (2, 4), (4, 5)], [1.0, -0.5, -2.0], MEAN)
    suspected = suspected_first_error(steps, threshold=0.0)
    assert (suspected.step, suspected.start, suspected.end, suspected.reward) == (1, 2, 4, -0.5)


def test_nothing_is_suspected_when_every_step_reads_like_an_experts():
    assert suspected_first_error(step_rewards("a", [(0, 1)], [0.1], MEAN), threshold=0.0) is None
