"""The circuit breaker, with a clock in hand."""

from irlops_serving.gateway.breaker import CircuitBreaker


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


def _opened(clock):
    breaker = CircuitBreaker(failures=2, open_s=5, clock=clock)
    for _ in range(2):
        assert breaker.may_call()
        breaker.record_failure()
    return breaker


def test_calls_pass_until_failures_come_in_a_row():
    breaker = CircuitBreaker(failures=2, open_s=5, clock=Clock())
    for record in (breaker.record_failure, breaker.record_success, breaker.record_failure):
        assert breaker.may_call()
        record()
    assert breaker.may_call()


def test_an_open_circuit_refuses_and_says_for_how_long():
    clock = Clock()
    breaker = _opened(clock)
    clock.now_s = 2.0
    assert not breaker.may_call()
    assert breaker.retry_after_s == 3.0


def test_a_half_open_circuit_lets_one_call_try():
    clock = Clock()
    breaker = _opened(clock)
    clock.now_s = 5.0
    assert [breaker.may_call(), breaker.may_call()] == [True, False]


def test_a_trial_that_succeeds_closes_the_circuit():
    clock = Clock()
    breaker = _opened(clock)
    clock.now_s = 5.0
    breaker.may_call()
    breaker.record_success()
    assert [breaker.may_call(), breaker.may_call()] == [True, True]


def test_a_trial_that_fails_opens_the_circuit_again():
    clock = Clock()
    breaker = _opened(clock)
    clock.now_s = 5.0
    breaker.may_call()
    breaker.record_failure()
    assert breaker.retry_after_s == 5.0


def test_a_trial_whose_caller_leaves_is_free_for_the_next():
    clock = Clock()
    breaker = _opened(clock)
    clock.now_s = 5.0
    breaker.may_call()
    breaker.record_cancelled()
    assert breaker.may_call()
