"""Pausing a job: what is due meanwhile never runs, and is written down."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.engine import Connection

from maintd.database import Database
from maintd.errors import ClaimLost
from maintd.ledger import jobs, misses
from maintd.ledger.jobs import ListedJob
from maintd.ledger.misses import Miss
from maintd.scheduling.calendar import When, next_occurrence
from maintd.scheduling.occurrences import header_of
from maintd.scheduling.policy import paused_over


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """The end of a pause.

    Attributes:
        paused_at: When it began.
        missed: The instants that did not run because of it; None if there were none.
        next_at: The next instant; None if the job is never due by itself.
    """

    paused_at: datetime
    missed: Miss | None
    next_at: datetime | None


def pause(ledger: Database, name: str, *, reason: str, now: datetime) -> datetime:
    """Keeps a job from becoming due until it is resumed. Paused again, it only gets the new reason.

    Returns:
        Since when it is paused.

    Raises:
        UsageError: No such job is applied.
    """
    with ledger.write() as connection:
        since = jobs.require(connection, name).paused_at or now
        jobs.set_paused(connection, name, paused_at=since, reason=reason)
        jobs.move_stamp(connection)
    return since


def resume(ledger: Database, name: str, *, now: datetime) -> Resumed | None:
    """Ends a pause. The job counts from now: nothing that was due meanwhile is caught up.

    Returns:
        None when the job was not paused.

    Raises:
        UsageError: No such job is applied.
        ClaimLost: Somebody applied the job at the same moment; nothing was changed.
    """
    with ledger.write() as connection:
        job = jobs.require(connection, name)
        if job.paused_at is None:
            return None
        when = header_of(job).when
        missed = _record_missed(connection, job, when, now=now) if when and job.enabled else None
        next_at = _move_cursor(connection, job, when, now=now)
        jobs.set_paused(connection, name, paused_at=None, reason=None)
        jobs.move_stamp(connection)
    return Resumed(paused_at=job.paused_at, missed=missed, next_at=next_at)


def _record_missed(connection: Connection, job: ListedJob, when: When, *, now: datetime) -> Miss | None:
    assert job.cursor_at is not None, "a job has a cursor from the moment it is applied"
    missed = paused_over(when, cursor=job.cursor_at, now=now)
    if missed is None:
        return None
    miss = Miss(
        job=job.name,
        first_at=missed.first.at,
        last_at=missed.last.at,
        count=missed.count,
        exact=missed.exact,
        reason=f"{missed.reason}: {job.pause_reason}",
    )
    misses.record(connection, [miss])
    return miss


def _move_cursor(
    connection: Connection, job: ListedJob, when: When | None, *, now: datetime
) -> datetime | None:
    # Never backwards, also when the clock was.
    cursor_at = max(now, job.cursor_at or now)
    following = next_occurrence(when, after=cursor_at) if when else None
    next_at = following.at if following else None
    move = jobs.Advance(job=job.name, was=job.cursor_at, cursor_at=cursor_at, next_at=next_at)
    if not jobs.advance(connection, [move]):
        raise ClaimLost(f'job "{job.name}" was changed at this moment; resume it again')
    return next_at
