"""Firing: due occurrences become runs, and the cursor moves, in one transaction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy.engine import Connection

from maintd.errors import JobFailed
from maintd.ledger import jobs, misses, runs
from maintd.ledger.jobs import ListedJob
from maintd.ledger.misses import Miss
from maintd.ledger.runs import NewRun
from maintd.ledger.states import Cause, RunState
from maintd.ledger.timeline import Timeline
from maintd.scheduling.calendar import When, next_occurrence
from maintd.scheduling.job import JobHeader
from maintd.scheduling.policy import CatchUp, Missed, catch_up

logger = logging.getLogger(__name__)

#: Jobs in one transaction: a thousand due at once are a few short transactions and never one long one.
CHUNK = 500
#: The queue of a job; None for one of a kind that this version does not know.
QueueOf = Callable[[ListedJob], str | None]
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


class _CursorMoved(Exception):
    """Somebody else moved a cursor of the chunk: nothing of it may be recorded."""


def fire(timeline: Timeline, names: Sequence[str], *, now: datetime, queue_of: QueueOf) -> Fired:
    """Makes the runs that are due for these jobs.

    A chunk in which a job was changed at the same moment, by an apply or another beat, is left for the next look.

    Args:
        timeline: Of the ledger, where jobs and runs are.
        names: Jobs that may be due; the ledger decides whether they are.
        now: The present instant.
        queue_of: Knows the kinds.

    Raises:
        LedgerHeld: Nothing may be fired.
        Unavailable: The ledger does not answer; a chunk is recorded whole or not at all.
    """
    fired = Fired(created=0, next_at={}, queues=set())
    for start in range(0, len(names), CHUNK):
        try:
            with timeline.forward() as connection:
                part = _fire_chunk(connection, names[start : start + CHUNK], now=now, queue_of=queue_of)
        except _CursorMoved:
            logger.info("a job was changed while it was looked at; it is looked at again")
            continue
        fired = Fired(
            created=fired.created + part.created,
            next_at=fired.next_at | part.next_at,
            queues=fired.queues | part.queues,
        )
    return fired


def _fire_chunk(connection: Connection, names: Sequence[str], *, now: datetime, queue_of: QueueOf) -> Fired:
    """Decides about every job first, then writes it all down: runs, misses and cursors in a few statements."""
    scheduled = [job for job in jobs.some(connection, list(names)) if is_scheduled(job)]
    decided = [
        one for job in scheduled if (one := _decide_or_pause(connection, job, now=now, queue_of=queue_of))
    ]
    busy = runs.unfinished_jobs(connection, names)
    new = [run for one in decided for run in _new_runs(one, busy, now=now)]
    created = runs.create_all(connection, new, now=now)
    misses.record(
        connection, [_miss(one.job.name, missed) for one in decided for missed in one.catch_up.missed]
    )
    moves = [
        jobs.Advance(
            job=one.job.name, was=one.job.cursor_at, cursor_at=one.catch_up.cursor, next_at=one.next_at
        )
        for one in decided
    ]
    if not jobs.advance(connection, moves):
        raise _CursorMoved
    queued = [run for run in new if run.state is RunState.QUEUED and (run.job, run.occurrence) in created]
    next_at = {one.job.name: one.next_at for one in decided}
    return Fired(
        created=len(queued),
        next_at=dict.fromkeys(names) | next_at,
        queues={run.queue for run in queued},
    )


@dataclass(frozen=True, kw_only=True)
class _Decision:
    """What to do about one job."""

    job: ListedJob
    header: JobHeader
    queue: str
    catch_up: CatchUp
    next_at: datetime | None


def _decide_or_pause(
    connection: Connection, job: ListedJob, *, now: datetime, queue_of: QueueOf
) -> _Decision | None:
    """A job that this version cannot read must not keep the others from firing, and must not fail unseen."""
    try:
        return _decide(job, now=now, queue_of=queue_of)
    except JobFailed as error:
        logger.error("job %s is paused: %s", job.name, error)
        jobs.set_paused(connection, job.name, paused_at=now, reason=str(error))
        return None


def _decide(job: ListedJob, *, now: datetime, queue_of: QueueOf) -> _Decision:
    header = header_of(job)
    queue = queue_of(job)
    if queue is None:
        raise JobFailed(f'this version of maintd knows no kind "{job.kind}"; use a newer one, then resume it')
    assert header.when is not None
    assert job.cursor_at is not None
    decided = catch_up(header.when, cursor=job.cursor_at, now=now, limit=MOST_RUNS)
    following = next_occurrence(header.when, after=decided.cursor)
    return _Decision(
        job=job,
        header=header,
        queue=queue,
        catch_up=decided,
        next_at=following.at if following else None,
    )


def _new_runs(decision: _Decision, busy: set[str], *, now: datetime) -> Iterator[NewRun]:
    """The runs of the occurrences that are due; one that overlaps is written down as skipped."""
    job, header = decision.job, decision.header
    for occurrence in decision.catch_up.runs:
        overlaps = header.overlap == "skip" and job.name in busy
        yield NewRun(
            job=job.name,
            kind=job.kind,
            occurrence=occurrence.label,
            cause=Cause.SCHEDULE,
            nominal_at=occurrence.at,
            options=options_of(header.when),
            state=RunState.SKIPPED if overlaps else RunState.QUEUED,
            queue=decision.queue,
            due_at=now,
            reason="the run before it was still going" if overlaps else None,
        )
        busy.add(job.name)


def _miss(job: str, missed: Missed) -> Miss:
    return Miss(
        job=job,
        first_at=missed.first.at,
        last_at=missed.last.at,
        count=missed.count,
        exact=missed.exact,
        reason=missed.reason.value,
    )


def is_scheduled(job: ListedJob) -> bool:
    """Whether a job becomes due by itself at present."""
    return job.enabled and job.paused_at is None and job.next_at is not None


def header_of(job: ListedJob) -> JobHeader:
    """The common keys of a stored job.

    Raises:
        JobFailed: It was stored by a version that knew other values.
    """
    common = {key: value for key, value in job.spec.items() if key in JobHeader.model_fields}
    try:
        return JobHeader.model_validate(common)
    except ValidationError as error:
        keys = ", ".join(".".join(str(part) for part in detail["loc"]) for detail in error.errors())
        raise JobFailed(
            f"this version of maintd cannot read how it was stored ({keys}); apply it again, then resume it"
        ) from None


def options_of(when: When | None) -> dict[str, Any]:
    """What a run has to know of its job's rule: the zone by whose calendar its periods are named."""
    return {"timezone": when.timezone if when else "UTC"}
