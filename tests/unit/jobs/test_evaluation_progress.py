"""Sampling that takes a while says how far it is."""

from irlops_jobs.evaluate import saying_now_and_then


def test_a_line_after_two_seconds_and_then_every_ten():
    now, said = [0.0], []
    tell = saying_now_and_then(said.append, now_s=lambda: now[0])
    for second in range(1, 15):
        now[0] = float(second)
        tell(second * 4, 60)
    # After 2 s (8 problems) and 10 s later (12 s: 48 problems).
    assert said == ["sampled 8 of 60 problems", "sampled 48 of 60 problems"]


def test_quick_sampling_and_the_end_of_any_say_nothing():
    now, said = [0.0], []
    tell = saying_now_and_then(said.append, now_s=lambda: now[0])
    tell(30, 60)
    now[0] = 30.0
    tell(60, 60)
    assert said == []
