"""When a job is due: cron expressions and intervals as instants, with every change of the clocks decided by name.

A cron expression speaks of wall time, and on the days on which clocks change a wall time may not exist (the *gap* in
spring) or exist twice (the *fold* in autumn). cronsim iterates over wall times that know no zone; this module alone
turns them into instants, by the two policies of `When`.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from typing import Any, Literal, Self
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError
from pydantic import Field, field_validator, model_validator

from maintd.errors import did_you_mean
from maintd.spec import Duration, Spec, ZonedInstant

Gap = Literal["shift", "skip"]
Fold = Literal["once", "twice"]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RULES_OF = datetime(
    2026, 1, 1, tzinfo=UTC
)  # "never" is judged by the clock changes in force, not those of 1970
_SECOND = timedelta(seconds=1)
# The rarest expression that fires at all, a 29 February on a given weekday, comes back within 40 years (2072, 2112).
_PATIENCE_YEARS = 50
_FIELDS = "minute, hour, day of month, month and weekday"


@dataclass(frozen=True, kw_only=True)
class Occurrence:
    """One nominal instant of a job.

    Attributes:
        at: The instant, in UTC.
        label: Its wall time in the job's zone, unique within the job: `2026-11-23T08:00[Europe/Berlin]`. The second of
            a repeated wall time says so: `2026-10-25T02:30[Europe/Berlin;fold=1]`. One moved out of a gap keeps the
            wall time that did not exist.
    """

    at: datetime
    label: str


@lru_cache(maxsize=4096)
def _parsed(cron: str) -> CronSim:
    return CronSim(cron, datetime(2000, 1, 1))  # noqa: DTZ001 - wall time has no zone


@cache
def _zone_names() -> frozenset[str]:
    return frozenset(available_timezones())


def _reads(cron: str) -> bool:
    try:
        _parsed(cron)
    except CronSimError:
        return False
    return True


def _why_not(cron: str, error: CronSimError) -> str:
    fields = cron.split()
    if len(fields) not in (5, 6):
        return f'"{cron}" is not a cron expression: it has five fields, {_FIELDS}'
    what = str(error).lower()
    if what == "bad day-of-month" and _reads(" ".join([*fields[:-2], "*", fields[-1]])):
        return f'"{cron}" never fires: none of its months has such a day'
    return f'"{cron}" is not a cron expression: {what}'


def _follows_elapsed_time(cron: str) -> bool:
    return cron.split()[-4].startswith("*") or len(_parsed(cron).hours) == 24


def _implied_gap(given: dict[str, Any]) -> Gap | None:
    cron = given.get("cron")
    if cron is None:
        return None
    return "skip" if _follows_elapsed_time(cron) else "shift"


def _implied_fold(given: dict[str, Any]) -> Fold | None:
    cron = given.get("cron")
    if cron is None:
        return None
    return "twice" if _follows_elapsed_time(cron) else "once"


class When(Spec):
    """When a job is due: exactly one of `cron` and `every`, and what happens to instants that were missed."""

    cron: str | None = None
    """A cron expression of five fields: minute, hour, day of month, month, weekday, such as `"30 2 * * mon-fri"`. A
    sixth field in front gives the second. If both day of month and weekday are restricted, either of them suffices.
    `L` is the last day of the month, `LW` its last working day, `mon#1` its first Monday and `5L` its last Friday."""
    every: Duration | None = None
    """An interval in whole seconds, such as `"15 min"`. It counts elapsed time and takes no notice of time zones."""
    timezone: str = "UTC"
    """The IANA name of the zone whose wall time `cron` speaks of, such as `"Europe/Berlin"`."""
    gap: Gap | None = Field(default_factory=_implied_gap)
    """What happens to a wall time that does not exist because clocks go forward: `"shift"` runs the job at the first
    instant after the gap, `"skip"` not at all. If not given: `"skip"` where the hour field of `cron` is `*` or `*/n` or
    names all 24 hours, for such jobs follow elapsed time; otherwise `"shift"`."""
    fold: Fold | None = Field(default_factory=_implied_fold)
    """What happens to a wall time that exists twice because clocks go back: `"once"` runs the job the first time,
    `"twice"` both times. If not given: `"twice"` where the hour field of `cron` is `*` or `*/n` or names all 24 hours,
    otherwise `"once"`."""
    anchor: ZonedInstant = _EPOCH
    """An instant from which `every` counts, backwards too: it sets the phase, not the beginning."""
    missed: Literal["once", "skip", "all"] = "once"
    """What happens to instants at which nothing was there to run the job: `"once"` runs the latest of them, `"skip"`
    none, `"all"` every one, oldest first."""
    within: Duration | None = None
    """A missed instant that is older than this is never caught up."""

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, cron: str | None) -> str | None:
        try:
            if cron is not None:
                _parsed(cron)
        except CronSimError as error:
            raise ValueError(_why_not(cron or "", error)) from None
        return cron

    @field_validator("every")
    @classmethod
    def _is_whole_seconds(cls, every: timedelta | None) -> timedelta | None:
        if every is not None and every % _SECOND:
            raise ValueError("an interval is a whole number of seconds")
        return every

    @field_validator("anchor")
    @classmethod
    def _is_on_a_second(cls, anchor: datetime) -> datetime:
        if anchor.microsecond:
            raise ValueError("an anchor lies on a whole second")
        return anchor

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, timezone: str) -> str:
        if timezone not in _zone_names():
            near = did_you_mean(timezone, _zone_names(), listing=False)
            cure = near or 'use an IANA name such as "Europe/Berlin"'
            raise ValueError(f'there is no time zone "{timezone}"; {cure}')
        return timezone

    @model_validator(mode="after")
    def _is_one_rule(self) -> Self:
        if (self.cron is None) == (self.every is None):
            raise ValueError("give exactly one of cron and every")
        for key, default in (("timezone", "UTC"), ("gap", None), ("fold", None)):
            if self.every is not None and getattr(self, key) != default:
                raise ValueError(f"{key} goes with cron only; every counts elapsed time")
        if self.cron is not None and self.anchor != _EPOCH:
            raise ValueError("anchor goes with every only")
        return self

    @model_validator(mode="after")
    def _fires(self) -> Self:
        if self.cron is not None and next_occurrence(self, after=_RULES_OF) is None:
            raise ValueError(f'"{self.cron}" never fires')
        return self


def next_occurrence(when: When, *, after: datetime) -> Occurrence | None:
    """The first occurrence strictly after an instant, or None if there is none in fifty years."""
    return next(occurrences(when, after=after), None)


def occurrences(when: When, *, after: datetime) -> Iterator[Occurrence]:
    """The occurrences strictly after an instant, in strictly increasing order, worked out one by one.

    Wherever one starts the sequence is the same: what is due does not depend on who asks, or when. Of several wall
    times that land on one instant one is kept: the one that exists, else the earliest.

    Args:
        when: The rule.
        after: An aware instant.
    """
    candidates = _by_cron(when, after) if when.every is None else _by_interval(when, after)
    last = after
    for occurrence in candidates:
        if occurrence.at > last:
            last = occurrence.at
            yield occurrence


def _by_interval(when: When, after: datetime) -> Iterator[Occurrence]:
    assert when.every is not None
    at = when.anchor + ((after - when.anchor) // when.every + 1) * when.every
    while True:
        yield Occurrence(at=at, label=_label(at.replace(tzinfo=None), "UTC"))
        at += when.every


def _by_cron(when: When, after: datetime) -> Iterator[Occurrence]:
    """Occurrences in order, from a few that are not after `after` yet, several possibly on one instant."""
    assert when.cron is not None
    zone = ZoneInfo(when.timezone)
    last_year = after.year
    # First passes come in the order of their wall times; second passes wait here until the first pass is through.
    second_passes: deque[Occurrence] = deque()
    for wall in _walls(when.cron, _first_wall(after, zone)):
        if wall.year - last_year > _PATIENCE_YEARS:
            break
        at, again = _resolve(when, wall, zone)
        if at is None:
            continue
        last_year = at.year
        while second_passes and second_passes[0].at < at:
            yield second_passes.popleft()
        yield Occurrence(at=at, label=_label(wall, when.timezone))
        if again is not None:
            second_passes.append(Occurrence(at=again, label=_label(wall, f"{when.timezone};fold=1")))
    yield from second_passes


def _label(wall: datetime, zone: str) -> str:
    return f"{wall.isoformat(timespec='seconds' if wall.second else 'minutes')}[{zone}]"


def _walls(cron: str, after: datetime) -> Iterator[datetime]:
    """The wall times, without zone, that match an expression strictly after one."""
    walls = copy.copy(_parsed(cron))  # parsing costs more than the iteration that follows
    walls.dt = after.replace(microsecond=0)
    return walls


def _offset(wall: datetime, zone: ZoneInfo, *, fold: Literal[0, 1]) -> timedelta:
    return wall.replace(tzinfo=zone, fold=fold).utcoffset() or timedelta(0)


def _first_wall(after: datetime, zone: ZoneInfo) -> datetime:
    """The wall time after which every occurrence after `after` is found, if need be with some before it."""
    local = after.astimezone(zone)
    wall = local.replace(tzinfo=None, fold=0)
    overlap = _offset(wall, zone, fold=0) - _offset(wall, zone, fold=1)
    if local.fold == 0 and overlap > timedelta(0):  # in the first pass: the second one starts over
        return wall - overlap
    return wall


def _resolve(when: When, wall: datetime, zone: ZoneInfo) -> tuple[datetime | None, datetime | None]:
    """The instants of a wall time: of its first and of its second pass.

    PEP 495: in a fold `fold=0` gives the offset before the change and `fold=1` the one after it; in a gap too.
    """
    before, after = _offset(wall, zone, fold=0), _offset(wall, zone, fold=1)
    if before < after:
        return _shifted(when, wall, zone), None
    again = wall - after if before > after and when.fold == "twice" else None
    return (wall - before).replace(tzinfo=UTC), again and again.replace(tzinfo=UTC)


def _shifted(when: When, wall: datetime, zone: ZoneInfo) -> datetime | None:
    """The first instant after the gap, unless gaps are skipped or the job is due at that wall time anyway."""
    assert when.cron is not None
    if when.gap != "shift":
        return None
    end = _gap_end(wall, zone)
    wall_then = end.astimezone(zone).replace(tzinfo=None)
    due_anyway = next(_walls(when.cron, wall_then - _SECOND), None) == wall_then
    return None if due_anyway else end


def _gap_end(wall: datetime, zone: ZoneInfo) -> datetime:
    before, after = _offset(wall, zone, fold=0), _offset(wall, zone, fold=1)
    # The change comes after `early`, by at most the length of the gap.
    early = (wall - after).replace(tzinfo=UTC)
    seconds = range((after - before) // _SECOND)

    def offset(second: int) -> timedelta:
        return (early + second * _SECOND).astimezone(zone).utcoffset() or timedelta(0)

    return early + bisect_right(seconds, before, key=offset) * _SECOND
