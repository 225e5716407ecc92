from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from maintd.execution.liveness import Pulse, Watch

LEASE_S = 30.0


def watch() -> Watch:
    return Watch(lease=timedelta(seconds=LEASE_S))


def pulse(counter: int, *, key: int = 1, token: str = "t") -> Pulse:
    return Pulse(key=key, token=token, counter=counter)


def test_a_judge_that_has_just_begun_waits_a_lease() -> None:
    judge = watch()
    assert judge.stopped([pulse(7)], monotonic_s=5000.0) == set()
    assert judge.stopped([pulse(7)], monotonic_s=5000.0 + LEASE_S - 1) == set()
    assert judge.stopped([pulse(7)], monotonic_s=5000.0 + LEASE_S) == {1}


def test_a_claim_by_somebody_else_is_judged_anew() -> None:
    judge = watch()
    judge.stopped([pulse(7, token="a")], monotonic_s=0.0)
    assert judge.stopped([pulse(7, token="b")], monotonic_s=LEASE_S) == set()


def test_a_claim_that_was_away_is_judged_anew() -> None:
    judge = watch()
    judge.stopped([pulse(7)], monotonic_s=0.0)
    judge.stopped([], monotonic_s=10.0)
    assert judge.stopped([pulse(7)], monotonic_s=LEASE_S) == set()


def test_claims_are_judged_one_by_one() -> None:
    judge = watch()
    judge.stopped([pulse(1, key=1), pulse(1, key=2)], monotonic_s=0.0)
    assert judge.stopped([pulse(1, key=1), pulse(2, key=2)], monotonic_s=LEASE_S) == {1}


@given(st.lists(st.integers(min_value=0, max_value=29), max_size=50))
def test_a_counter_that_moves_within_every_lease_is_never_judged_dead(waits: list[int]) -> None:
    judge, now_s = watch(), 0.0
    for counter, wait_s in enumerate(waits):
        assert judge.stopped([pulse(counter)], monotonic_s=now_s) == set()
        now_s += wait_s
        assert judge.stopped([pulse(counter)], monotonic_s=now_s) == set()
