"""Which occurrences run after nothing was there to run them, and which are written down as missed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import chain, islice, takewhile

from maintd.scheduling.calendar import Occurrence, When, next_occurrence, occurrences

GRACE = timedelta(seconds=60)
"""How late an occurrence may be and still count as on time: a change of leader takes up to 15 s and a tick a few more,
and neither is a failure that anybody should read about."""

COUNTED_AT_MOST = 1000
"""Beyond this a range of missed occurrences is counted as "at least": 10 ms a job, however long the absence was."""

_NEXT = timedelta.resolution
_FEW = 32


class MissedReason(StrEnum):
    """Why an occurrence did not run."""

    SKIPPED = "skipped"  #: it was late, and the job says `missed = "skip"`
    SUPERSEDED = "superseded"  #: it was late, and a later one ran for it, as `missed = "once"` says
    TOO_OLD = "too_old"  #: it was later than the job's `within`
    PAUSED = "paused"  #: the job was paused


@dataclass(frozen=True, kw_only=True)
class Missed:
    """Consecutive occurrences that do not run, all for one reason.

    Attributes:
        first: The first of them.
        last: The last of them.
        count: How many there are, `first` and `last` included.
        exact: False if there are more than `count`.
        reason: Why they do not run.
    """

    first: Occurrence
    last: Occurrence
    count: int
    exact: bool
    reason: MissedReason


@dataclass(frozen=True, kw_only=True)
class CatchUp:
    """What to do about the time between a cursor and now.

    Attributes:
        runs: The occurrences that run, oldest first.
        missed: The ranges of those that do not, oldest first; none of them overlaps another or contains a run.
        cursor: The new cursor: every occurrence up to it is in `runs`, in `missed`, or was there before.
    """

    runs: tuple[Occurrence, ...]
    missed: tuple[Missed, ...]
    cursor: datetime


def catch_up(when: When, *, cursor: datetime, now: datetime, limit: int) -> CatchUp:
    """Decides about every occurrence after a cursor and not after now.

    An occurrence at most `GRACE` old is on time and runs. Of the late ones those older than `when.within` are missed,
    and `when.missed` decides about the others.

    Args:
        when: The job's rule.
        cursor: The last instant considered, aware.
        now: The present instant, aware; before the cursor, as after a step of the clock, nothing is due.
        limit: The most occurrences to run, at least 1. What exceeds it is left for the next call.
    """
    if now <= cursor:
        return CatchUp(runs=(), missed=(), cursor=cursor)
    late_until = max(cursor, now - GRACE - _NEXT)
    old_until = cursor if when.within is None else min(late_until, max(cursor, now - when.within - _NEXT))
    too_old = _missed(when, after=cursor, until=old_until, reason=MissedReason.TOO_OLD)
    late, lost = _choose(when, after=old_until, until=late_until)
    runs = tuple(islice(chain(late, _between(when, after=late_until, until=now)), limit))
    return CatchUp(
        runs=runs,
        missed=tuple(missed for missed in (too_old, lost) if missed),
        cursor=runs[-1].at if len(runs) == limit else now,
    )


def paused_over(when: When, *, cursor: datetime, now: datetime) -> Missed | None:
    """The occurrences after a cursor and not after now, none of which runs because the job was paused."""
    return _missed(when, after=cursor, until=now, reason=MissedReason.PAUSED)


def _choose(when: When, *, after: datetime, until: datetime) -> tuple[Iterator[Occurrence], Missed | None]:
    """The late occurrences that run, and those that do not."""
    if when.missed == "all":
        return _between(when, after=after, until=until), None
    if when.missed == "skip":
        return iter(()), _missed(when, after=after, until=until, reason=MissedReason.SKIPPED)
    latest = _latest(when, after=after, until=until)
    if latest is None:
        return iter(()), None
    earlier = _missed(when, after=after, until=latest.at - _NEXT, reason=MissedReason.SUPERSEDED)
    return iter((latest,)), earlier


def _between(when: When, *, after: datetime, until: datetime) -> Iterator[Occurrence]:
    return takewhile(lambda occurrence: occurrence.at <= until, occurrences(when, after=after))


def _missed(when: When, *, after: datetime, until: datetime, reason: MissedReason) -> Missed | None:
    counted = list(islice(_between(when, after=after, until=until), COUNTED_AT_MOST))
    if not counted:
        return None
    last = _latest(when, after=counted[-1].at, until=until)
    return Missed(
        first=counted[0], last=last or counted[-1], count=len(counted), exact=last is None, reason=reason
    )


def _latest(when: When, *, after: datetime, until: datetime) -> Occurrence | None:
    """The last occurrence of a span: of a few the last, of many found by halving, some forty look-ups."""
    few = list(islice(_between(when, after=after, until=until), _FEW))
    if len(few) < _FEW:
        return few[-1] if few else None
    latest, none_after = few[-1], until
    while none_after > latest.at:
        middle = latest.at + (none_after - latest.at) // 2
        later = next_occurrence(when, after=middle)
        if later is not None and later.at <= until:
            latest = later
        else:
            none_after = middle
    return latest
