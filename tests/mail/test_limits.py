"""What goes over the wire of a limit's tokens, at any times, with delays and clocks of every kind."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maintd.mail.sending.limits import Limit, Used, grant, urgent_share, waits
from maintd.units import Rate, parse_rate

SECOND = 1_000_000
PER_SECOND = Rate(count=5, per=timedelta(seconds=1))


def limit(text: str, *, name: str = "relay", urgent: bool = True) -> Limit:
    rate = parse_rate(text)
    return Limit(name=name, rate=rate, reserve=0 if urgent else urgent_share(rate))


@dataclass(kw_only=True)
class World:
    """One ledger and its clock, and a wire that sees everything.

    Attributes:
        real_us: The time that passes; the processes' monotonic clocks show it.
        ahead_us: How far the ledger's clock is ahead of it.
        wire: When each message went out, with the names of the limits that it counts for.
    """

    real_us: int = 0
    ahead_us: int = 10**15
    stored: dict[str, str] = field(default_factory=dict)
    wire: list[tuple[int, frozenset[str]]] = field(default_factory=list)

    def take(self, limits: Sequence[Limit], wanted: int, *, valid_us: int, delays: Sequence[float]) -> int:
        """Takes tokens; each of their messages goes out after that share of the time it has."""
        used = {one.row: Used.read(json.loads(self.stored.get(one.row, "null"))) for one in limits}
        granted = grant(limits, used, wanted=wanted, now_us=self.real_us + self.ahead_us, valid_us=valid_us)
        self.stored |= {row: json.dumps(kept.stored()) for row, kept in granted.used.items()}
        for number in range(granted.count):
            assert granted.within_us >= valid_us
            after_us = int(delays[number % len(delays)] * (granted.within_us - 1))
            self.wire.append((self.real_us + after_us, frozenset(one.name for one in limits)))
        return granted.count

    def most_in_a_stretch(self, limit: Limit) -> int:
        """The most messages that were on the wire within any stretch of the limit's length."""
        per_us = limit.rate.per // timedelta(microseconds=1)
        times = sorted(at for at, names in self.wire if limit.name in names)
        return max((sum(begin <= at < begin + per_us for at in times) for begin in times), default=0)


#: Slots of a limit of one second are this long; what is off by one shows at their borders.
SLOT = SECOND // 20
SPANS = st.builds(
    lambda slots, off: max(0, slots * SLOT + off), st.integers(0, 25), st.sampled_from([0, 0, 1, -1, 17])
)


@st.composite
def act(draw: st.DrawFn) -> tuple[int, int, int, int, list[float]]:
    """Time that passes, how far the clock goes back, messages that want to go out, how long for, and their delays."""
    return (
        draw(SPANS | st.integers(0, SECOND)),
        draw(st.just(0) | SPANS | st.integers(0, 3600 * SECOND)),
        draw(st.sampled_from([1, 2, 9])),
        draw(st.sampled_from([1, SECOND // 5, SECOND])),
        draw(st.lists(st.sampled_from([0.0, 1.0, 0.3]), min_size=1, max_size=3)),
    )


@settings(max_examples=300)
@given(st.lists(act(), max_size=12))
# Taken early in a slot, out at the end of the next; the clock goes back to late in a slot.
@example([(0, 0, 5, 1, [1.0]), (0, 9 * SLOT + 1000, 1, 1, [0.0]), (20 * SLOT + 1000, 0, 5, 1, [0.0])])
def test_no_stretch_of_time_ever_sees_one_message_too_many(
    acts: list[tuple[int, int, int, int, list[float]]],
) -> None:
    world, five = World(), limit("5/s")
    for passes, back, wanted, valid_us, delays in acts:
        world.real_us += passes
        world.ahead_us -= back
        world.take([five], wanted, valid_us=valid_us, delays=delays)
    assert world.most_in_a_stretch(five) <= 5


@given(st.lists(st.tuples(act(), st.sets(st.sampled_from(["lane", "campaign"]))), max_size=12))
def test_every_limit_holds_however_they_overlap(
    acts: list[tuple[tuple[int, int, int, int, list[float]], set[str]]],
) -> None:
    limits = {
        "relay": limit("5/s"),
        "lane": limit("2/s", name="lane"),
        "campaign": limit("3/s", name="campaign"),
    }
    world = World()
    for (passes, back, wanted, valid_us, delays), names in acts:
        world.real_us += passes
        world.ahead_us -= back
        world.take(
            [limits[name] for name in sorted(names | {"relay"})], wanted, valid_us=valid_us, delays=delays
        )
    for one in limits.values():
        assert world.most_in_a_stretch(one) <= one.rate.count


def test_the_check_notices_a_message_too_many() -> None:
    world, five = World(), limit("5/s")
    world.take([five], 5, valid_us=1, delays=[0])
    world.stored.clear()
    world.take([five], 1, valid_us=1, delays=[0])
    assert world.most_in_a_stretch(five) == 6


def greedy(world: World, limits: Sequence[Limit], *, until_us: int, valid_us: int) -> Iterator[int]:
    """Takes whatever there is as soon as there is any, and as long as it is told to wait waits."""
    while world.real_us < until_us:
        yield world.take(limits, 10**6, valid_us=valid_us, delays=[0.5])
        used = {one.row: Used.read(json.loads(world.stored[one.row])) for one in limits}
        waiting = waits(limits, used, now_us=world.real_us + world.ahead_us)
        assert waiting
        assert min(waiting.values()) > 0
        world.real_us += max(waiting.values())


@pytest.mark.parametrize("text", ["1/s", "14/s", "1000/s", "600/min", "10000/h", "50000/day"])
def test_a_limit_is_used_under_load(text: str) -> None:
    world, one = World(), limit(text)
    per_us = one.rate.per // timedelta(microseconds=1)
    taken = sum(greedy(world, [one], until_us=20 * per_us, valid_us=SECOND // 5))
    assert 0.75 <= taken / (20 * one.rate.count) <= 1.05


def test_bulk_leaves_a_tenth_to_urgent_mail_whatever_it_takes() -> None:
    world, bulk, urgent = World(), limit("50/s", urgent=False), limit("50/s")
    assert world.take([bulk], 1000, valid_us=1, delays=[0]) == 45
    assert world.take([bulk], 1000, valid_us=1, delays=[0]) == 0
    assert world.take([urgent], 1000, valid_us=1, delays=[0]) == 5


def test_a_small_limit_has_no_tenth_and_bulk_may_use_all_of_it() -> None:
    assert World().take([limit("9/min", urgent=False)], 1000, valid_us=1, delays=[0]) == 9


def test_of_several_limits_the_tightest_decides_and_none_gives_more() -> None:
    wide, tight = limit("10/s"), limit("3/s", name="lane")
    world = World()
    assert world.take([wide, tight], 5, valid_us=1, delays=[0]) == 3
    assert world.take([wide], 50, valid_us=1, delays=[0]) == 7


@given(st.integers(0, 7200 * SECOND), st.integers(0, SECOND))
def test_a_clock_that_went_back_costs_a_stretch_of_time_and_not_the_time_it_went_back(
    back: int, passed: int
) -> None:
    world, five = World(), limit("5/s")
    assert world.take([five], 5, valid_us=SECOND // 5, delays=[0.5]) == 5
    world.real_us += passed
    world.ahead_us -= back
    used = {five.row: Used.read(json.loads(world.stored[five.row]))}
    if waits([five], used, now_us=world.real_us + world.ahead_us) == {}:
        world.take([five], 5, valid_us=SECOND // 5, delays=[0.5])  # which finds out that it went back
    world.real_us += 2 * SECOND
    assert world.take([five], 5, valid_us=SECOND // 5, delays=[0.5]) == 5


def test_limits_of_other_lengths_are_counted_apart() -> None:
    assert limit("5/s").row != limit("5/min").row
    assert limit("5/s").row == limit("9/s").row


def test_what_is_kept_of_a_limit_stays_small() -> None:
    world, one = World(), limit("1000/s")
    for _ in range(500):
        world.real_us += 7_000
        world.take([one], 3, valid_us=SECOND // 5, delays=[0])
    assert len(world.stored[one.row]) < 600
