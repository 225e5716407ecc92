from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from maintd.mail.sending.pace import Pace


def test_a_relay_that_is_not_known_yet_gets_few_messages_at_once() -> None:
    assert [Pace(most=most).depth for most in (1, 3, 32)] == [1, 3, 4]


def test_windows_that_are_quick_grow_and_windows_that_are_slow_shrink() -> None:
    pace, depths = Pace(most=20), []
    for seconds in (0.01, 0.2, 0.01, 0.01, 0.3, 0.6, 9, 9, 9, 9, 9, 0.01):
        pace.took(seconds)
        depths.append(pace.depth)
    assert depths == [8, 16, 20, 20, 20, 10, 5, 2, 1, 1, 1, 2]


@given(most=st.integers(1, 100), took=st.lists(st.floats(0, 10)))
def test_a_connection_gets_one_message_at_least_and_never_more_than_is_allowed(
    most: int, took: list[float]
) -> None:
    pace = Pace(most=most)
    for seconds in took:
        pace.took(seconds)
        assert 1 <= pace.depth <= most


def test_a_window_whose_tokens_run_out_sooner_is_shorter() -> None:
    pace, depths = Pace(most=32), []
    for seconds in (0.05, 0.15, 0.3):
        pace.took(seconds, of_s=0.2)
        depths.append(pace.depth)
    assert depths == [8, 8, 4]
