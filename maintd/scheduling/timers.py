"""When every job runs next, when it last began, and why it may not run at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from sqlalchemy.engine import Connection

from maintd.ledger import jobs, runs
from maintd.ledger.jobs import ListedJob
from maintd.ledger.runs import Run
from maintd.ledger.states import RunState
from maintd.scheduling.occurrences import header_of, is_scheduled

#: A leading beat fires within a tick and a takeover takes some fifteen seconds: later than this, somebody should look.
_LATE = timedelta(seconds=20)
_BY_HAND_LAST = datetime.max.replace(tzinfo=UTC)


class TimerState(StrEnum):
    """What a job is about to do, or what keeps it from doing it."""

    RUNNING = "running"  #: a run is being carried out
    QUEUED = "queued"  #: a run waits for a worker
    PARKED = "parked"  #: a run waits for a person
    PAUSED = "paused"  #: a person paused it
    DISABLED = "disabled"  #: its job file says so
    OVERDUE = "overdue"  #: its instant has passed and no beat has seen it
    DUE = "due"  #: its instant has come just now
    WAITING = "waiting"  #: for its next instant
    BY_HAND = "by hand"  #: it has no instants: it runs by hand or as a step


_OF_RUN = {RunState.RUNNING: TimerState.RUNNING, RunState.UNDERWAY: TimerState.RUNNING,
           RunState.QUEUED: TimerState.QUEUED, RunState.WAITING: TimerState.QUEUED,
           RunState.PARKED: TimerState.PARKED}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Timer:
    """One job and its times.

    Attributes:
        next_at: When it is due next; None when it will not be by itself, paused and disabled ones included.
        timezone: The zone that its rule speaks of.
        last_at: When its last run began.
        note: Why it is paused, and whose step it is.
    """

    job: str
    kind: str
    next_at: datetime | None
    timezone: str
    last_at: datetime | None
    state: TimerState
    note: str


def timers(connection: Connection, *, now: datetime) -> list[Timer]:
    """All applied jobs, the next due one first, those that are never due by themselves last."""
    every = jobs.every(connection)
    last = runs.last_started_of_each_job(connection)
    going: dict[str, list[Run]] = {}
    for run in runs.unfinished(connection):
        going.setdefault(run.job, []).append(run)
    pipelines = _pipelines_of(every)
    found = [
        _timer(job, last.get(job.name), going.get(job.name, []), pipelines.get(job.name, []), now=now)
        for job in every
    ]
    return sorted(found, key=lambda timer: (timer.next_at or _BY_HAND_LAST, timer.job))


def _timer(
    job: ListedJob, last: Run | None, going: Sequence[Run], pipelines: Sequence[str], *, now: datetime
) -> Timer:
    when = header_of(job).when
    notes = [f"step of {', '.join(pipelines)}"] if pipelines else []
    if job.paused_at is not None and job.pause_reason:
        notes.insert(0, job.pause_reason)
    return Timer(
        job=job.name,
        kind=job.kind,
        next_at=job.next_at if is_scheduled(job) else None,
        timezone=when.timezone if when else "UTC",
        last_at=last.started_at if last else None,
        state=_state(job, going, now=now),
        note="; ".join(notes),
    )


def _state(job: ListedJob, going: Sequence[Run], *, now: datetime) -> TimerState:
    of_runs = {_OF_RUN[run.state] for run in going}
    if of_runs:
        return next(state for state in TimerState if state in of_runs)
    if job.paused_at is not None:
        return TimerState.PAUSED
    if not job.enabled:
        return TimerState.DISABLED
    if job.next_at is None:
        return TimerState.BY_HAND
    if job.next_at > now:
        return TimerState.WAITING
    return TimerState.OVERDUE if now - job.next_at > _LATE else TimerState.DUE


def _pipelines_of(every: Sequence[ListedJob]) -> Mapping[str, list[str]]:
    pipelines: dict[str, list[str]] = {}
    for job in every:
        for step in job.spec.get("steps", ()):
            pipelines.setdefault(step, []).append(job.name)
    return pipelines
