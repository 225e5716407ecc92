from __future__ import annotations

import json
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from maintd.mail.sending.asides import Aside
from tests.ledgers import MINUTE, NOW

SECOND = timedelta(seconds=1)
SOONER = timedelta()


def test_a_lane_that_is_throttled_again_and_again_waits_longer_each_time() -> None:
    now, aside, waits = NOW, Aside(), []
    for _ in range(8):
        aside = aside.again(now, asked=SOONER)
        waits.append(aside.waits(now) / SECOND)
        now += aside.waits(now) + SECOND
    assert waits == [15, 30, 60, 120, 240, 480, 900, 900]


def test_throttles_of_one_storm_are_one() -> None:
    aside = Aside().again(NOW, asked=SOONER)
    assert aside.again(NOW + 14 * SECOND, asked=MINUTE) == aside


def test_a_lane_that_was_let_through_for_a_while_begins_anew() -> None:
    aside = Aside().again(NOW, asked=SOONER).again(NOW + 15 * SECOND, asked=SOONER)
    assert aside.waits(NOW + 15 * SECOND) == 30 * SECOND
    assert aside.again(NOW + 2 * MINUTE, asked=SOONER).waits(NOW + 2 * MINUTE) == 15 * SECOND


def test_a_relay_may_ask_for_a_longer_wait_and_for_no_shorter_one() -> None:
    assert Aside().again(NOW, asked=5 * MINUTE).waits(NOW) == 5 * MINUTE
    assert Aside().again(NOW, asked=SECOND).waits(NOW) == 15 * SECOND


@given(st.timedeltas(timedelta(), timedelta(days=3)))
def test_no_clock_that_leaps_makes_a_lane_wait_longer_than_it_was_set_aside(leap: timedelta) -> None:
    aside = Aside().again(NOW, asked=SOONER)
    assert aside.waits(NOW - leap) <= 15 * SECOND
    assert aside.waits(NOW + leap) <= 15 * SECOND


def test_what_is_kept_reads_the_same() -> None:
    aside = Aside().again(NOW, asked=SOONER)
    assert Aside.read(json.loads(json.dumps(aside.stored()))) == aside
    assert Aside.read(None).waits(NOW) == timedelta()
