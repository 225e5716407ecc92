"""When jobs are due, and which occurrences run after an absence."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from maintd.scheduling.calendar import Occurrence, When, next_occurrence, occurrences
from maintd.scheduling.policy import COUNTED_AT_MOST, GRACE, CatchUp, MissedReason, catch_up

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
# Where clocks do odd things: half an hour, a whole day left out, Ramadan, three hours back, summer time in winter.
CHANGES = [
    ("Europe/Berlin", "2026-03-29T01:00Z"),
    ("Europe/Berlin", "2026-10-25T01:00Z"),
    ("America/New_York", "2026-03-08T07:00Z"),
    ("America/New_York", "2026-11-01T06:00Z"),
    ("Australia/Lord_Howe", "2026-04-04T15:00Z"),
    ("Australia/Lord_Howe", "2026-10-03T15:30Z"),
    ("Pacific/Apia", "2011-12-30T10:00Z"),
    ("Africa/Casablanca", "2026-02-15T02:00Z"),
    ("Africa/Casablanca", "2026-03-22T02:00Z"),
    ("Antarctica/Casey", "2010-03-04T15:00Z"),
    ("Antarctica/Troll", "2026-10-25T01:00Z"),
    ("Europe/Dublin", "2026-10-25T01:00Z"),
    ("America/Santiago", "2026-09-06T04:00Z"),
]


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def due(when: When, *, after: str | datetime, until: str | datetime) -> list[Occurrence]:
    start, end = (instant(bound) if isinstance(bound, str) else bound for bound in (after, until))
    found = []
    for occurrence in occurrences(when, after=start):
        if occurrence.at > end:
            break
        found.append(occurrence)
    return found


def listed(when: When, *, after: str, until: str) -> list[str]:
    """`03-29T01:00Z 2026-03-29T02:30[Europe/Berlin]` for each occurrence."""
    return [f"{o.at:%m-%dT%H:%M}Z {o.label}" for o in due(when, after=after, until=until)]


# --- fixed vectors ---


def test_a_wall_time_in_the_gap_fires_at_the_first_instant_after_it() -> None:
    when = When(cron="30 2 * * *", timezone="Europe/Berlin")
    assert listed(when, after="2026-03-28T00:00Z", until="2026-03-31T00:00Z") == [
        "03-28T01:30Z 2026-03-28T02:30[Europe/Berlin]",
        "03-29T01:00Z 2026-03-29T02:30[Europe/Berlin]",
        "03-30T00:30Z 2026-03-30T02:30[Europe/Berlin]",
    ]


def test_a_wall_time_in_the_gap_can_be_skipped() -> None:
    when = When(cron="30 2 * * *", timezone="Europe/Berlin", gap="skip")
    assert [o.label[:10] for o in due(when, after="2026-03-28T00:00Z", until="2026-03-31T00:00Z")] == [
        "2026-03-28",
        "2026-03-30",
    ]


def test_a_repeated_wall_time_fires_the_first_time() -> None:
    when = When(cron="30 2 * * *", timezone="Europe/Berlin")
    assert listed(when, after="2026-10-24T12:00Z", until="2026-10-26T12:00Z") == [
        "10-25T00:30Z 2026-10-25T02:30[Europe/Berlin]",
        "10-26T01:30Z 2026-10-26T02:30[Europe/Berlin]",
    ]


def test_a_repeated_wall_time_can_fire_both_times() -> None:
    when = When(cron="30 2 * * *", timezone="Europe/Berlin", fold="twice")
    assert listed(when, after="2026-10-24T12:00Z", until="2026-10-26T12:00Z") == [
        "10-25T00:30Z 2026-10-25T02:30[Europe/Berlin]",
        "10-25T01:30Z 2026-10-25T02:30[Europe/Berlin;fold=1]",
        "10-26T01:30Z 2026-10-26T02:30[Europe/Berlin]",
    ]


def test_a_job_of_every_half_hour_keeps_its_pace_through_the_fold() -> None:
    when = When(cron="*/30 * * * *", timezone="America/New_York")
    assert listed(when, after="2026-11-01T04:59Z", until="2026-11-01T07:00Z") == [
        "11-01T05:00Z 2026-11-01T01:00[America/New_York]",
        "11-01T05:30Z 2026-11-01T01:30[America/New_York]",
        "11-01T06:00Z 2026-11-01T01:00[America/New_York;fold=1]",
        "11-01T06:30Z 2026-11-01T01:30[America/New_York;fold=1]",
        "11-01T07:00Z 2026-11-01T02:00[America/New_York]",
    ]


@pytest.mark.parametrize("change", ["2026-03-08T07:00Z", "2026-11-01T06:00Z"])
def test_a_job_of_every_ten_minutes_never_stalls(change: str) -> None:
    when = When(cron="*/10 * * * *", timezone="America/New_York")
    found = due(when, after=instant(change) - DAY, until=instant(change) + DAY)
    assert {later.at - earlier.at for earlier, later in pairwise(found)} == {10 * MINUTE}


def test_half_an_hour_back_repeats_half_an_hour() -> None:
    when = When(cron="*/15 * * * *", timezone="Australia/Lord_Howe")
    labels = [o.label[11:16] for o in due(when, after="2026-04-04T14:14Z", until="2026-04-04T15:30Z")]
    assert labels == ["01:15", "01:30", "01:45", "01:30", "01:45", "02:00"]


def test_half_an_hour_forward_leaves_out_half_an_hour() -> None:
    when = When(cron="10 2 * * *", timezone="Australia/Lord_Howe")
    assert listed(when, after="2026-10-03T12:00Z", until="2026-10-04T00:00Z") == [
        "10-03T15:30Z 2026-10-04T02:10[Australia/Lord_Howe]"
    ]


def test_a_whole_day_that_was_left_out_fires_once_at_its_end() -> None:
    when = When(cron="0 9 * * *", timezone="Pacific/Apia")
    assert listed(when, after="2011-12-29T00:00Z", until="2011-12-31T00:00Z") == [
        "12-29T19:00Z 2011-12-29T09:00[Pacific/Apia]",
        "12-30T10:00Z 2011-12-30T09:00[Pacific/Apia]",
        "12-30T19:00Z 2011-12-31T09:00[Pacific/Apia]",
    ]


def test_of_two_wall_times_on_one_instant_the_one_that_exists_is_kept() -> None:
    when = When(cron="0,30 2,3 * * *", timezone="Europe/Berlin")
    assert listed(when, after="2026-03-29T00:00Z", until="2026-03-29T12:00Z") == [
        "03-29T01:00Z 2026-03-29T03:00[Europe/Berlin]",
        "03-29T01:30Z 2026-03-29T03:30[Europe/Berlin]",
    ]


def test_of_several_wall_times_that_do_not_exist_the_earliest_is_kept() -> None:
    when = When(cron="*/20 2 * * *", timezone="Europe/Berlin")
    assert listed(when, after="2026-03-29T00:00Z", until="2026-03-29T12:00Z") == [
        "03-29T01:00Z 2026-03-29T02:00[Europe/Berlin]"
    ]


def test_seconds_are_in_the_label_only_where_there_are_any() -> None:
    when = When(cron="0,30 0 8 * * *", timezone="Europe/Berlin")
    assert [o.label for o in islice(occurrences(when, after=instant("2026-11-23T00:00Z")), 2)] == [
        "2026-11-23T08:00[Europe/Berlin]",
        "2026-11-23T08:00:30[Europe/Berlin]",
    ]


def test_an_interval_counts_elapsed_time_from_its_anchor() -> None:
    when = When(every="40 min", anchor="2026-10-25T00:10:00+02:00")
    assert listed(when, after="2026-10-24T21:30Z", until="2026-10-24T23:30Z") == [
        "10-24T22:10Z 2026-10-24T22:10[UTC]",
        "10-24T22:50Z 2026-10-24T22:50[UTC]",
        "10-24T23:30Z 2026-10-24T23:30[UTC]",
    ]


@pytest.mark.parametrize(
    ("cron", "gap", "fold"),
    [
        ("*/10 * * * *", "skip", "twice"),
        ("0 */6 * * *", "skip", "twice"),
        ("0 0-23 * * *", "skip", "twice"),
        ("30 0 */2 * * *", "skip", "twice"),
        ("30 2 * * *", "shift", "once"),
        ("* 2 * * *", "shift", "once"),
        ("0 1-23 * * *", "shift", "once"),
    ],
)
def test_the_hour_field_says_whether_a_job_follows_elapsed_time(cron: str, gap: str, fold: str) -> None:
    assert (When(cron=cron).gap, When(cron=cron).fold) == (gap, fold)


def test_a_stated_policy_beats_the_implied_one() -> None:
    when = When(cron="*/10 * * * *", gap="shift", fold="once")
    assert (when.gap, when.fold) == ("shift", "once")


def test_a_rule_that_stops_firing_comes_to_an_end() -> None:
    # From 1981 on Berlin has no 02:30 on the last Sunday of March.
    when = When.model_construct(
        cron="30 2 * 3 7L", timezone="Europe/Berlin", gap="skip", fold="once", every=None
    )
    assert [o.label[:4] for o in occurrences(when, after=instant("1979-01-01T00:00Z"))] == ["1979", "1980"]
    assert next_occurrence(when, after=instant("1981-01-01T00:00Z")) is None


# --- properties ---

changes = st.sampled_from(CHANGES)
times = st.tuples(
    st.one_of(st.just(frozenset(range(24))), st.frozensets(st.integers(0, 23), min_size=1, max_size=4)),
    st.one_of(st.just(frozenset(range(60))), st.frozensets(st.integers(0, 59), min_size=1, max_size=3)),
)


@st.composite
def rules(draw: st.DrawFn) -> tuple[When, datetime, frozenset[int], frozenset[int]]:
    """A rule of given hours and minutes, and a change of the clocks in its zone."""
    zone, change = draw(changes)
    hours, minutes = draw(times)
    cron = f"{','.join(map(str, sorted(minutes)))} {','.join(map(str, sorted(hours)))} * * *"
    policies = {key: draw(st.sampled_from(values)) for key, values in POLICIES.items()}
    return When(cron=cron, timezone=zone, **policies), instant(change), hours, minutes


POLICIES: dict[str, Any] = {"gap": ["shift", "skip"], "fold": ["once", "twice"]}


def by_brute_force(
    when: When, hours: frozenset[int], minutes: frozenset[int], *, after: datetime, until: datetime
) -> Iterator[tuple[datetime, bool]]:
    """Every minute of UTC at which the rule fires, and whether on its second pass."""
    zone = ZoneInfo(when.timezone)

    def matches(wall: datetime) -> bool:
        return wall.hour in hours and wall.minute in minutes

    at = after
    wall_before = at.astimezone(zone).replace(tzinfo=None, fold=0)
    while at < until:
        at += MINUTE
        local = at.astimezone(zone)
        wall = local.replace(tzinfo=None, fold=0)
        left_out = range(1, max((wall - wall_before) // MINUTE, 1))
        in_gap = when.gap == "shift" and any(matches(wall_before + k * MINUTE) for k in left_out)
        if (matches(wall) and (local.fold == 0 or when.fold == "twice")) or in_gap:
            yield at, local.fold == 1
        wall_before = wall


@given(rules())
@settings(max_examples=150)
def test_the_calendar_agrees_with_looking_at_every_minute(
    rule: tuple[When, datetime, frozenset[int], frozenset[int]],
) -> None:
    when, change, hours, minutes = rule
    after, until = change - 5 * HOUR, change + 5 * HOUR
    found = [(o.at, "fold=1" in o.label) for o in due(when, after=after, until=until)]
    assert found == list(by_brute_force(when, hours, minutes, after=after, until=until))


@given(rules(), st.integers(-4 * 3600, 4 * 3600), st.integers(0, 999_999))
def test_what_is_due_does_not_depend_on_where_one_starts(
    rule: tuple[When, datetime, frozenset[int], frozenset[int]], seconds: int, microseconds: int
) -> None:
    when, change, *_ = rule
    middle = change + timedelta(seconds=seconds, microseconds=microseconds)
    end = change + 5 * HOUR
    whole = due(when, after=change - 6 * HOUR, until=end)
    assert due(when, after=middle, until=end) == [o for o in whole if o.at > middle]


@given(rules())
def test_instants_and_labels_never_repeat(
    rule: tuple[When, datetime, frozenset[int], frozenset[int]],
) -> None:
    when, change, *_ = rule
    found = due(when, after=change - 5 * HOUR, until=change + 5 * HOUR)
    assert all(earlier.at < later.at for earlier, later in pairwise(found))
    assert len({o.label for o in found}) == len(found)


@given(
    st.integers(1, 10**7),
    st.datetimes(timezones=st.just(UTC)),
    st.integers(0, 4 * 10**15),
)
def test_an_interval_fires_at_the_next_multiple_from_its_anchor(
    seconds: int, anchor: datetime, after_us: int
) -> None:
    every = timedelta(seconds=seconds)
    when = When(every=every, anchor=anchor.replace(microsecond=0))
    start = instant("1970-01-01T00:00Z") + timedelta(microseconds=after_us)
    found = next_occurrence(when, after=start)
    assert found is not None
    assert start < found.at <= start + every
    assert (found.at - when.anchor) % every == timedelta(0)


def days_of_change(zone: ZoneInfo, year: int) -> list[datetime]:
    """The days of a year in which the offset of a zone changes."""
    days = [datetime(year, 1, 1, tzinfo=UTC) + k * DAY for k in range(366)]
    return [
        day for day in days if day.astimezone(zone).utcoffset() != (day + DAY).astimezone(zone).utcoffset()
    ]


def different_changes(year: int) -> dict[Any, tuple[str, datetime]]:
    """A zone and a day for each way in which clocks change anywhere in a year: most zones share it with others."""
    found: dict[Any, tuple[str, datetime]] = {}
    for name in sorted(available_timezones()):
        zone = ZoneInfo(name)
        for day in days_of_change(zone, year):
            offsets = [(day + k * 30 * MINUTE).astimezone(zone).utcoffset() for k in range(49)]
            found.setdefault((day, *offsets), (name, day))
    return found


def test_wherever_clocks_change_a_daily_job_fires_once_a_day_and_a_frequent_one_never_stalls() -> None:
    swept = different_changes(2026).values()
    assert len(swept) > 20
    for name, day in swept:
        dates = [f"{day + k * DAY:%Y-%m-%d}" for k in (-1, 0, 1, 2)]
        for hour in (0, 1, 2, 3):
            daily = When(cron=f"30 {hour} * * *", timezone=name)
            labels = [o.label[:10] for o in due(daily, after=day - 3 * DAY, until=day + 4 * DAY)]
            assert [label for label in labels if label in dates] == dates, (name, hour)
        frequent = due(When(cron="*/30 * * * *", timezone=name), after=day - HOUR, until=day + DAY + HOUR)
        assert {later.at - earlier.at for earlier, later in pairwise(frequent)} == {30 * MINUTE}, name


# --- what is refused ---


@pytest.mark.parametrize(
    ("keys", "key", "sentence"),
    [
        ({}, "", "give exactly one of cron and every"),
        ({"cron": "0 3 * * *", "every": "1 h"}, "", "give exactly one of cron and every"),
        ({"cron": "61 * * * *"}, "cron", '"61 * * * *" is not a cron expression: bad minute'),
        ({"cron": "0 0 30 13 *"}, "cron", '"0 0 30 13 *" is not a cron expression: bad month'),
        ({"cron": "0 0 32 2 *"}, "cron", '"0 0 32 2 *" is not a cron expression: bad day-of-month'),
        ({"cron": "@daily"}, "cron", '"@daily" is not a cron expression: it has five fields, '),
        ({"cron": ""}, "cron", '"" is not a cron expression: it has five fields, '),
        ({"cron": "0 0 30 2 *"}, "cron", '"0 0 30 2 *" never fires: none of its months has such a day'),
        ({"cron": "0 0 */31 * 1#2"}, "", '"0 0 */31 * 1#2" never fires'),
        (
            {"cron": "30 2 * 3 7L", "gap": "skip", "timezone": "Europe/Berlin"},
            "",
            '"30 2 * 3 7L" never fires',
        ),
        (
            {"cron": "0 3 * * *", "timezone": "europe/berln"},
            "timezone",
            'there is no time zone "europe/berln"; did you mean "Europe/Berlin"?',
        ),
        (
            {"cron": "0 3 * * *", "timezone": "../qqq"},
            "timezone",
            'there is no time zone "../qqq"; use an IANA name such as "Europe/Berlin"',
        ),
        ({"every": "15"}, "every", '"15" is not a duration; '),
        ({"every": "1500 ms"}, "every", "an interval is a whole number of seconds"),
        ({"every": "1 h", "gap": "skip"}, "", "gap goes with cron only"),
        ({"every": "1 h", "fold": "once"}, "", "fold goes with cron only"),
        ({"every": "1 h", "timezone": "Europe/Berlin"}, "", "timezone goes with cron only"),
        ({"cron": "0 3 * * *", "anchor": "2026-01-01T00:00:00Z"}, "", "anchor goes with every only"),
        ({"every": "1 h", "anchor": "soon"}, "anchor", "not an instant; "),
        ({"every": "1 h", "anchor": "0001-01-01T00:00:00+10:00"}, "anchor", "not an instant; "),
        ({"every": "1 h", "anchor": "2026-01-01T00:00:00"}, "anchor", "an instant needs its offset from UTC"),
        (
            {"every": "1 h", "anchor": "2026-01-01T00:00:00.5Z"},
            "anchor",
            "an anchor lies on a whole second",
        ),
        ({"cron": "0 3 * * *", "within": "soon"}, "within", '"soon" is not a duration; '),
    ],
)
def test_a_bad_rule_is_refused_in_words(keys: dict[str, Any], key: str, sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        When(**keys)
    first = caught.value.errors()[0]
    assert (".".join(map(str, first["loc"])), first["type"]) == (key, "value_error")
    assert str(first["ctx"]["error"]).startswith(sentence)


@pytest.mark.parametrize("key", ["on_calendar", "rrule", "at", "jitter"])
def test_a_key_that_is_not_known_is_refused(key: str) -> None:
    with pytest.raises(ValidationError) as caught:
        When(**{"cron": "0 3 * * *", key: "x"})
    assert [(e["type"], e["loc"]) for e in caught.value.errors()] == [("extra_forbidden", (key,))]


@given(st.one_of(st.text(), st.from_regex(r"([0-9*,/#L-]{1,4} ){4}[0-9*,/#L-]{1,4}", fullmatch=True)))
def test_any_text_is_a_rule_or_is_refused(cron: str) -> None:
    try:
        when = When(cron=cron)
    except ValidationError:
        return
    assert next_occurrence(when, after=instant("2026-01-01T00:00Z")) is not None


# --- catching up ---

NOW = instant("2026-11-20T12:00:30Z")
HOURLY = {"cron": "0 * * * *", "timezone": "UTC"}


def caught_up(*, hours_away: float, limit: int = 100, now: datetime = NOW, **keys: Any) -> CatchUp:
    return catch_up(When(**HOURLY, **keys), cursor=now - hours_away * HOUR, now=now, limit=limit)


def hours(found: tuple[Occurrence, ...]) -> list[int]:
    return [o.at.hour for o in found]


def ranges(found: CatchUp) -> list[tuple[int, int, int, MissedReason]]:
    return [(m.first.at.hour, m.last.at.hour, m.count, m.reason) for m in found.missed]


def test_what_is_on_time_runs_whatever_the_policy() -> None:
    for missed in ("once", "skip", "all"):
        found = caught_up(hours_away=0.5, missed=missed)
        assert (hours(found.runs), found.missed, found.cursor) == ([12], (), NOW)


def test_of_what_is_late_the_latest_runs() -> None:
    found = caught_up(hours_away=5, missed="once")
    assert hours(found.runs) == [11, 12]
    assert ranges(found) == [(8, 10, 3, MissedReason.SUPERSEDED)]
    assert found.cursor == NOW


def test_what_is_late_can_be_skipped() -> None:
    found = caught_up(hours_away=5, missed="skip")
    assert hours(found.runs) == [12]
    assert ranges(found) == [(8, 11, 4, MissedReason.SKIPPED)]


def test_everything_late_can_run_a_few_at_a_time() -> None:
    when = When(**HOURLY, missed="all")
    first = catch_up(when, cursor=NOW - 5 * HOUR, now=NOW, limit=3)
    second = catch_up(when, cursor=first.cursor, now=NOW, limit=3)
    assert (hours(first.runs), first.missed, first.cursor) == ([8, 9, 10], (), first.runs[-1].at)
    assert (hours(second.runs), second.missed, second.cursor) == ([11, 12], (), NOW)


def test_the_late_one_and_the_one_on_time_are_both_bounded_by_the_limit() -> None:
    found = caught_up(hours_away=5, missed="once", limit=1)
    assert (hours(found.runs), found.cursor.hour) == ([11], 11)


@pytest.mark.parametrize(
    ("missed", "runs", "others"),
    [
        ("all", [10, 11, 12], []),
        ("once", [11, 12], [(10, 10, 1, MissedReason.SUPERSEDED)]),
        ("skip", [12], [(10, 11, 2, MissedReason.SKIPPED)]),
    ],
)
def test_what_is_older_than_within_is_missed_in_any_case(
    missed: str, runs: list[int], others: list[Any]
) -> None:
    found = caught_up(hours_away=5, missed=missed, within="2 h 30 min")
    assert hours(found.runs) == runs
    assert ranges(found) == [(8, 9, 2, MissedReason.TOO_OLD), *others]


def test_the_bounds_of_grace_and_within_belong_to_the_younger_side() -> None:
    at = instant("2026-11-20T12:00:00Z")
    for age, keys, late in [
        (GRACE, {"missed": "skip"}, False),
        (GRACE + timedelta.resolution, {"missed": "skip"}, True),
        (2 * HOUR, {"missed": "all", "within": "2 h"}, False),
        (2 * HOUR + timedelta.resolution, {"missed": "all", "within": "2 h"}, True),
    ]:
        found = catch_up(When(**HOURLY, **keys), cursor=at - MINUTE, now=at + age, limit=100)
        assert (at in [o.at for o in found.runs], bool(found.missed)) == (not late, late)


def test_what_is_on_time_is_never_too_old() -> None:
    found = caught_up(hours_away=0.5, within="10 s")
    assert (hours(found.runs), found.missed) == ([12], ())


def test_a_clock_that_steps_back_makes_nothing_due() -> None:
    assert catch_up(When(**HOURLY), cursor=NOW, now=NOW - 3 * HOUR, limit=5) == CatchUp(
        runs=(), missed=(), cursor=NOW
    )


def test_a_long_absence_is_counted_up_to_a_bound_and_ends_at_its_true_end() -> None:
    when = When(cron="* * * * *", timezone="Europe/Berlin", missed="skip")
    (missed,) = catch_up(when, cursor=NOW - 365 * DAY, now=NOW, limit=100).missed
    assert (missed.count, missed.exact) == (COUNTED_AT_MOST, False)
    assert missed.last.at == instant("2026-11-20T11:59:00Z")


@given(
    st.sampled_from(["once", "skip", "all"]),
    st.sampled_from(["*/7 * * * *", "30 2 * * *", "0 */3 * * *", "* 1-3 * * *"]),
    st.one_of(st.none(), st.integers(1, 3000)),
    st.integers(1, 3 * 24 * 3600),
    st.integers(1, 10),
    changes,
)
def test_every_occurrence_runs_or_is_missed_for_a_reason_and_never_both(
    missed: Any, cron: str, within_min: int | None, away_s: int, limit: int, change: tuple[str, str]
) -> None:
    within = None if within_min is None else within_min * MINUTE
    when = When(cron=cron, timezone=change[0], missed=missed, within=within)
    now = instant(change[1]) + DAY
    cursor = now - timedelta(seconds=away_s)
    found = catch_up(when, cursor=cursor, now=now, limit=limit)
    considered = due(when, after=cursor, until=found.cursor)
    accounted = list(found.runs)
    for gone in found.missed:
        inside = [o for o in considered if gone.first.at <= o.at <= gone.last.at]
        if gone.exact:
            assert (gone.count, gone.first, gone.last) == (len(inside), inside[0], inside[-1])
        accounted += inside
    assert sorted(accounted, key=lambda o: o.at) == considered
    assert cursor <= found.cursor <= now
    assert len(found.runs) <= limit
