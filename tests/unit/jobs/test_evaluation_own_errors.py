"""Where a policy's own wrong sample went wrong, in a world with one right solution to the letter."""

from dataclasses import replace

from irlops_jobs.evaluation.own_errors import first_difference, own_errors
from support.scored_samples import problem, sample

RIGHT = replace(sample("5", 2.0, 2.0, 2.0), token_ids=(10, 11, 2))
WRONG = replace(sample("6", 2.0, -3.0, 1.0), token_ids=(10, 14, 2))
ALSO_WRONG = replace(sample("7", -1.0, 1.0, 1.0), token_ids=(13, 11, 2))


def _with_solution(*samples):
    return replace(problem(*samples, gold="5"), only_solution_ids=(10, 11, 2))


def test_the_first_token_that_departs_from_the_right_solution_is_the_error():
    (found,) = own_errors([_with_solution(RIGHT, WRONG)])
    assert (found.first_error_start, found.first_error_end, found.num_tokens) == (1, 2, 3)
    assert found.token_rewards == (2.0, -3.0, 1.0)


def test_a_problem_gives_one_error_however_many_samples_are_wrong():
    (found,) = own_errors([_with_solution(WRONG, ALSO_WRONG)])
    assert found.token_ids == WRONG.token_ids


def test_a_problem_without_wrong_samples_gives_none():
    assert own_errors([_with_solution(RIGHT)]) == []


def test_where_a_question_may_be_solved_in_many_words_nobody_knows_the_error():
    assert own_errors([problem(WRONG, gold="5")]) == []


def test_a_sample_that_stops_before_it_departs_has_no_first_error():
    assert first_difference((10, 11), (10, 11, 2)) is None
    assert first_difference((10, 2), (10, 11, 2)) == 1
