"""Firing: due occurrences become runs, and the cursor moves, in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.engine import Connection

from maintd.database import Database
from maintd.errors import ClaimLost
from maintd.ledger import jobs, misses, runs
from maintd.ledger.jobs import StoredJob
from maintd.ledger.misses import Miss
from maintd.ledger.runs import NewRun
from maintd.ledger.states import RunState
from maintd.scheduling.calendar import Occurrence, When, next_occurrence
from maintd.scheduling.files import JobHeader
from maintd.scheduling.policy import Missed, catch_up

#: Jobs in one transaction: a thousand due at once are a few short transactions and never one long one.
CHUNK = 500
#: Occurrences of one job in one transaction, for those that catch up on all they missed.
MOST_RUNS = 100


@dataclass(frozen=True, kw_only=True)
class Fired:
    """What one firing did.

    Attributes:
        created: Runs that were queued.
        next_at: The next instant of every job that was looked at; None for those that are never due by themselves.
        queues: Names of the queues that have new work.
    """

    created: int
    next_at: dict[str, datetime | None]
    queues: set[str]


def fire(ledger: Database, names: Sequence[str], *, now: datetime, queue_of: Callable[[str], str]) -> Fired:
    """Makes the runs that are due for these jobs.

    Args:
        ledger: Where jobs and runs are.
        names: Jobs that may be due; the ledger decides whether they are.
        now: The present instant.
        queue_of: The queue of a kind.

    Raises:
        ClaimLost: Another beat moved a cursor meanwhile; that chunk was rolled back.
        Unavailable: The ledger does not answer; a chunk is recorded whole or not at all.
    """
    fired = Fired(created=0, next_at={}, queues=set())
    for start in range(0, len(names), CHUNK):
        with ledger.write() as connection:
            part = _fire_chunk(connection, names[start : start + CHUNK], now=now, queue_of=queue_of)
        fired = Fired(
            created=fired.created + part.created,
            next_at=fired.next_at | part.next_at,
            queues=fired.queues | part.queues,
        )
    return fired


def _fire_chunk(
    connection: Connection, names: Sequence[str], *, now: datetime, queue_of: Callable[[str], str]
) -> Fired:
    created, queues = 0, set[str]()
    next_at: dict[str, datetime | None] = dict.fromkeys(names)
    for job in jobs.some(connection, list(names)):
        if not is_scheduled(job):
            continue
        header = header_of(job)
        queue = queue_of(job.kind)
        queued = _fire_job(connection, job, header, now=now, queue=queue)
        if queued:
            created += queued
            queues.add(queue)
        moved = jobs.get(connection, job.name)
        next_at[job.name] = moved.next_at if moved else None
    return Fired(created=created, next_at=next_at, queues=queues)


def _fire_job(connection: Connection, job: StoredJob, header: JobHeader, *, now: datetime, queue: str) -> int:
    assert header.when is not None
    assert job.cursor_at is not None
    decided = catch_up(header.when, cursor=job.cursor_at, now=now, limit=MOST_RUNS)
    if decided.cursor == job.cursor_at:
        return 0
    created = sum(
        _create(connection, job, header, occurrence, now=now, queue=queue) for occurrence in decided.runs
    )
    for missed in decided.missed:
        misses.record(connection, _miss(job.name, missed), now=now)
    following = next_occurrence(header.when, after=decided.cursor)
    if not jobs.advance(
        connection,
        job.name,
        was=job.cursor_at,
        cursor_at=decided.cursor,
        next_at=following.at if following else None,
    ):
        raise ClaimLost(f'the cursor of job "{job.name}" was moved by another beat')
    return created


def _create(
    connection: Connection,
    job: StoredJob,
    header: JobHeader,
    occurrence: Occurrence,
    *,
    now: datetime,
    queue: str,
) -> bool:
    """Inserts the run of an occurrence; one that overlaps is written down as skipped. Whether it was queued."""
    overlaps = header.overlap == "skip" and runs.has_unfinished(connection, job.name)
    new = NewRun(
        job=job.name,
        kind=job.kind,
        occurrence=occurrence.label,
        cause="schedule",
        nominal_at=occurrence.at,
        options=options_of(header.when),
        state=RunState.SKIPPED if overlaps else RunState.QUEUED,
        queue=queue,
        due_at=now,
        reason="the run before it was still going" if overlaps else None,
    )
    return runs.create(connection, new, now=now) is not None and not overlaps


def _miss(job: str, missed: Missed) -> Miss:
    return Miss(
        job=job,
        first_at=missed.first.at,
        last_at=missed.last.at,
        count=missed.count,
        exact=missed.exact,
        reason=missed.reason.value,
    )


def is_scheduled(job: StoredJob) -> bool:
    """Whether a job becomes due by itself at present."""
    return job.enabled and job.paused_at is None and job.next_at is not None


def header_of(job: StoredJob) -> JobHeader:
    """The common keys of a stored job."""
    common = {key: value for key, value in job.spec.items() if key in JobHeader.model_fields}
    return JobHeader.model_validate(common)


def options_of(when: When | None) -> dict[str, Any]:
    """What a run has to know of its job's rule: the zone by whose calendar its periods are named."""
    return {"timezone": when.timezone if when else "UTC"}
