from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maintd.mail.verdicts.failures import Failure
from maintd.mail.verdicts.schedules import (
    LONGEST_ASKED,
    LONGEST_UNCOUNTED,
    SCHEDULES,
    WHEN_RESUMED,
    Schedule,
    asked_wait,
)

ZERO, MINUTE, HOUR = timedelta(), timedelta(minutes=1), timedelta(hours=1)
failures = st.sampled_from(Failure)
spreads = st.floats(0, 1, exclude_max=True)


def waits_of(schedule: Schedule, *, spread: float) -> list[timedelta]:
    """The waits of a message that fails again and again, until it is given up."""
    waits: list[timedelta] = []
    put_off_for = ZERO
    while True:
        counted = len(waits) + 1 if schedule.counted else 0
        wait = schedule.wait(failures=counted, put_off_for=put_off_for, spread=spread)
        if wait is None:
            return waits
        waits.append(wait)
        put_off_for += wait


def test_every_type_of_failure_has_its_schedule() -> None:
    assert SCHEDULES.keys() == set(Failure)


@given(failures, spreads)
def test_waits_never_shrink_and_come_to_an_end(failure: Failure, spread: float) -> None:
    schedule = SCHEDULES[failure]
    waits = waits_of(schedule, spread=spread)
    assert all(before <= after for before, after in pairwise(waits))
    assert all(MINUTE <= wait <= schedule.waits.longest * 1.25 for wait in waits)
    assert sum(waits, ZERO) <= LONGEST_UNCOUNTED + 5 * MINUTE * 1.25
    bound = schedule.most if schedule.most is not None else LONGEST_UNCOUNTED // (5 * MINUTE) + 1
    assert len(waits) <= bound


@pytest.mark.parametrize(
    ("failure", "minutes"),
    [
        (Failure.CONNECT, [1, 4, 16, 60]),
        (Failure.GREYLIST, [5, 10, 20, 40, 60, 60]),
        (Failure.THROTTLE, [5, 5, 5]),
        (Failure.TEMPORARY, [5, 15, 45, 135, 240, 240]),
        (Failure.MAILBOX, [60, 120, 240, 360, 360]),
        (Failure.POLICY, [60, 180, 540]),
    ],
)
def test_the_waits_are_those_that_the_documentation_names(failure: Failure, minutes: list[int]) -> None:
    waits = waits_of(SCHEDULES[failure], spread=0.0)
    assert waits[: len(minutes)] == [number * MINUTE for number in minutes]


def test_what_cannot_be_made_is_not_tried_again() -> None:
    assert waits_of(SCHEDULES[Failure.TEMPLATE], spread=0.0) == []


@given(st.integers(0, 10_000), st.integers(0, 10_000), spreads)
def test_whoever_resumes_a_campaign_finds_what_the_sender_cost_waiting(
    failures: int, days: int, spread: float
) -> None:
    wait = WHEN_RESUMED.wait(failures=failures, put_off_for=timedelta(days=days), spread=spread)
    assert wait is not None
    assert not WHEN_RESUMED.counted


@pytest.mark.parametrize(
    ("text", "wait"),
    [
        ("Greylisted, please try again in 300 seconds", 300 * timedelta(seconds=1)),
        ("Try again in 15 minutes", 15 * MINUTE),
        ("retry after 2 hours or 10 minutes", 2 * HOUR),
        ("come back in 90s", 90 * timedelta(seconds=1)),
        ("not before 9 hours", LONGEST_ASKED),
        ("at most 10 MB, code 42", ZERO),
        ("Later", ZERO),
    ],
)
def test_a_relay_may_say_how_long_to_wait(text: str, wait: timedelta) -> None:
    assert asked_wait(text) == wait


@given(st.text() | st.builds("in {} {}".format, st.integers(), st.sampled_from(["s", "minutes", "hours"])))
def test_whatever_it_says_the_wait_is_bounded(text: str) -> None:
    assert ZERO <= asked_wait(text) <= LONGEST_ASKED
