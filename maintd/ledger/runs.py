"""Runs: created once for each occurrence, claimed by at most one worker, ended by the holder of the token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from maintd.errors import ClaimLost
from maintd.ledger.states import (
    ENDED_RUNS,
    RUN_MOVES,
    UNFINISHED_RUNS,
    BatchState,
    CampaignState,
    Cause,
    RunState,
    is_final,
    sources,
)
from maintd.ledger.tables import batches, campaigns, jobs, lines, runs


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as the ledger has it; see `tables.runs` for what each column means."""

    id: int
    job: str
    kind: str
    occurrence: str
    cause: Cause
    nominal_at: datetime
    options: dict[str, Any]
    state: RunState
    queue: str
    due_at: datetime
    failures: int
    losses: int
    revision: int | None
    token: str | None
    counter: int
    owner: str | None
    parent_id: int | None
    after: list[str] | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    result: dict[str, Any] | None
    reason: str | None

    @property
    def name(self) -> str:
        """What people call it: `weekly-digest@2026-11-23T08:00[Europe/Berlin]`."""
        return f"{self.job}@{self.occurrence}"


@dataclass(frozen=True, kw_only=True)
class NewRun:
    """What a run starts from."""

    job: str
    kind: str
    occurrence: str
    cause: Cause
    nominal_at: datetime
    options: dict[str, Any]
    state: RunState
    queue: str
    due_at: datetime
    parent_id: int | None = None
    after: list[str] | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A worker's hold on a run: worth something only while the token is still in the row."""

    run_id: int
    token: str


def create(connection: Connection, new: NewRun, *, now: datetime) -> int | None:
    """Inserts a run.

    Returns:
        Its id, or None when this occurrence of the job already has one.
    """
    return create_all(connection, [new], now=now).get((new.job, new.occurrence))


def create_all(
    connection: Connection, news: Sequence[NewRun], *, now: datetime
) -> dict[tuple[str, str], int]:
    """Inserts runs, in a few statements however many they are.

    Returns:
        The ids of those inserted, by job and occurrence; an occurrence that has a run already is left out.
    """
    if not news:
        return {}
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = (
        insert(runs)
        .on_conflict_do_nothing(index_elements=["job", "occurrence"])
        .returning(runs.c.id, runs.c.job, runs.c.occurrence)
    )
    rows = [
        {**new.__dict__, "created_at": now, "finished_at": now if is_final(RUN_MOVES, new.state) else None}
        for new in news
    ]
    return {(row.job, row.occurrence): row.id for row in connection.execute(statement, rows)}


def get(connection: Connection, run_id: int) -> Run | None:
    """The run with that id."""
    row = connection.execute(sa.select(runs).where(runs.c.id == run_id)).mappings().first()
    return Run(**row) if row else None


def of_occurrence(connection: Connection, *, job: str, occurrence: str) -> Run:
    """The run of an occurrence, which must exist."""
    (run,) = _select(connection, sa.and_(runs.c.job == job, runs.c.occurrence == occurrence))
    return run


def claim(connection: Connection, *, queue: str, token: str, owner: str, now: datetime) -> Run | None:
    """Takes the longest due run of a queue, if there is one whose job has no other run going.

    The row of the job is locked first, so that two workers cannot each take a run of the same job.
    """
    while (candidate := _longest_due(connection, queue=queue, now=now)) is not None:
        run_id, job, revision = candidate
        taken = connection.execute(
            sa.update(runs)
            .where(runs.c.id == run_id, runs.c.state == RunState.QUEUED, ~_going(job))
            .values(
                state=RunState.RUNNING,
                token=token,
                owner=owner,
                revision=revision,
                counter=runs.c.counter + 1,
                started_at=sa.func.coalesce(runs.c.started_at, sa.literal(now, runs.c.started_at.type)),
            )
        )
        if taken.rowcount == 1:
            return get(connection, run_id)
    return None


def _going(job: str | sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    other = runs.alias()
    return sa.exists().where(
        other.c.job == job,
        other.c.state.in_([RunState.RUNNING, RunState.UNDERWAY]),
        ~_only_tries_again(other.c),
    )


def _only_tries_again(run: sa.ColumnCollection[str, sa.Column[Any]]) -> sa.ColumnElement[bool]:
    """Whether a run is a mailing that has tried everybody once and comes back to whom it put off, for days perhaps.

    It keeps no other run of its job away. One that is paused does: nobody knows yet what becomes of it.
    """
    uncut = sa.exists().where(lines.c.campaign_id == campaigns.c.id, lines.c.cut < lines.c.enrolled)
    on_the_wire = sa.exists().where(
        batches.c.campaign_id == campaigns.c.id,
        batches.c.state == BatchState.OPEN,
        lines.c.campaign_id == batches.c.campaign_id,
        lines.c.lane == batches.c.lane,
        batches.c.lo < lines.c.enrolled,
    )
    # Asked of the few campaigns that send, once for each statement, and not of every run.
    tried = sa.select(campaigns.c.run_id).where(
        campaigns.c.state == CampaignState.SENDING, ~uncut, ~on_the_wire
    )
    return sa.and_(run.state == RunState.UNDERWAY, run.id.in_(tried))


def _due(now: datetime) -> sa.ColumnElement[bool]:
    return sa.and_(runs.c.state == RunState.QUEUED, runs.c.due_at <= now, ~_going(runs.c.job))


def _longest_due(connection: Connection, *, queue: str, now: datetime) -> sa.Row[int, str, int | None] | None:
    """Id, job and revision of the next run to be taken; its job is locked, unless it was removed."""
    due = (
        sa.select(runs.c.id, runs.c.job, jobs.c.revision)
        .where(_due(now), runs.c.queue == queue)
        .order_by(runs.c.due_at, runs.c.id)
        .limit(1)
    )
    # A job that somebody else has locked is passed over: whoever waits for one and holds another deadlocks.
    applied = due.join_from(runs, jobs, jobs.c.name == runs.c.job).with_for_update(of=jobs, skip_locked=True)
    removed = due.join_from(runs, jobs, jobs.c.name == runs.c.job, isouter=True).where(jobs.c.name.is_(None))
    return connection.execute(applied).first() or connection.execute(removed).first()


def due_queues(connection: Connection, *, now: datetime) -> set[str]:
    """The queues that have a run to be taken now."""
    return set(connection.scalars(sa.select(runs.c.queue).where(_due(now)).distinct()))


def hold(connection: Connection, claim: Claim, *, progress: dict[str, Any] | None = None) -> None:
    """Moves the counter of a claim, which says that its holder lives.

    Args:
        connection: Of the ledger.
        claim: What is held.
        progress: What is counted so far, if there is something to show.

    Raises:
        ClaimLost: Somebody else has taken the run over, or ended it.
    """
    held = connection.execute(
        sa.update(runs)
        .where(runs.c.id == claim.run_id, runs.c.token == claim.token, runs.c.state == RunState.RUNNING)
        .values(counter=runs.c.counter + 1, **({} if progress is None else {"result": progress}))
    )
    if held.rowcount != 1:
        raise ClaimLost(f"run {claim.run_id} is no longer held by this worker")


def _leave(connection: Connection, claim: Claim, **values: Any) -> None:
    """Ends a claim with a move out of `running`; checks the token and the move."""
    to = values["state"]
    assert RunState.RUNNING in sources(RUN_MOVES, to)
    left = connection.execute(
        sa.update(runs)
        .where(runs.c.id == claim.run_id, runs.c.token == claim.token, runs.c.state == RunState.RUNNING)
        .values(token=None, owner=None, **values)
    )
    if left.rowcount != 1:
        raise ClaimLost(f"run {claim.run_id} is no longer held by this worker")


def finish(
    connection: Connection,
    claim: Claim,
    *,
    state: RunState,
    now: datetime,
    result: dict[str, Any] | None,
    reason: str | None,
) -> None:
    """Ends a claimed run for good.

    Raises:
        ClaimLost: Somebody else has taken the run over.
    """
    _leave(connection, claim, state=state, finished_at=now, result=result, reason=reason)


def hand_over(connection: Connection, claim: Claim, *, result: dict[str, Any] | None) -> None:
    """Leaves a claimed run underway: its work goes on in rows of its own and no worker holds it.

    Raises:
        ClaimLost: Somebody else has taken the run over.
    """
    _leave(connection, claim, state=RunState.UNDERWAY, result=result, reason=None)


def put_back(connection: Connection, claim: Claim, *, due_at: datetime, reason: str, failed: bool) -> None:
    """Queues a claimed run again, for `due_at`; only a failure counts as an attempt.

    Raises:
        ClaimLost: Somebody else has taken the run over.
    """
    _leave(
        connection,
        claim,
        state=RunState.QUEUED,
        due_at=due_at,
        reason=reason,
        failures=runs.c.failures + int(failed),
    )


def keep_options(connection: Connection, run_id: int, options: dict[str, Any]) -> None:
    """Writes down what a run decided once and must keep to; its holder calls this, in a transaction that holds."""
    connection.execute(sa.update(runs).where(runs.c.id == run_id).values(options=options))


def move(
    connection: Connection,
    run_id: int,
    *,
    to: RunState,
    now: datetime,
    result: dict[str, Any] | None = None,
    reason: str | None = None,
) -> bool:
    """Moves a run that no worker holds; False when it was not in a state that allows the move."""
    allowed = [state for state in sources(RUN_MOVES, to) if state is not RunState.RUNNING]
    values: dict[str, Any] = {"state": to, "reason": reason}
    if result is not None:
        values["result"] = result
    if not RUN_MOVES[to]:
        values["finished_at"] = now
    if to is RunState.QUEUED:
        values["due_at"] = now
    changed = connection.execute(
        sa.update(runs).where(runs.c.id == run_id, runs.c.state.in_(allowed)).values(**values)
    )
    return changed.rowcount == 1


def running(connection: Connection) -> list[Run]:
    """Every claimed run: what a judge of liveness looks at."""
    return _select(connection, runs.c.state == RunState.RUNNING)


def take_from_the_dead(connection: Connection, run: Run, *, to: RunState, now: datetime, reason: str) -> bool:
    """Ends the claim of a worker whose counter stopped; False when it moved after all."""
    assert to in RUN_MOVES[RunState.RUNNING]
    values: dict[str, Any] = {"state": to, "token": None, "owner": None, "reason": reason}
    values["losses"] = runs.c.losses + 1
    values |= {"due_at": now} if to is RunState.QUEUED else {}
    values |= {"finished_at": now} if to is RunState.DEAD else {}
    taken = connection.execute(
        sa.update(runs)
        .where(
            runs.c.id == run.id,
            runs.c.state == RunState.RUNNING,
            runs.c.token == run.token,
            runs.c.counter == run.counter,
        )
        .values(**values)
    )
    return taken.rowcount == 1


def underway(connection: Connection, *, kind: str) -> list[Run]:
    """Runs of a kind whose work goes on in rows of its own."""
    return _select(connection, sa.and_(runs.c.state == RunState.UNDERWAY, runs.c.kind == kind))


def steps(connection: Connection, parent_id: int) -> list[Run]:
    """The step runs of a pipeline's run, in the order they were made."""
    return _select(connection, runs.c.parent_id == parent_id)


def lock(connection: Connection, run_id: int) -> Run | None:
    """The run, its row locked until the transaction ends."""
    query = sa.select(runs).where(runs.c.id == run_id).with_for_update()
    row = connection.execute(query).mappings().first()
    return Run(**row) if row else None


def skip_orphans(connection: Connection, *, now: datetime) -> int:
    """Skips steps that wait although their pipeline is over, so that they keep no later run of their job away."""
    parent = runs.alias()
    orphaned = sa.exists().where(parent.c.id == runs.c.parent_id, parent.c.state.in_(ENDED_RUNS))
    changed = connection.execute(
        sa.update(runs)
        .where(runs.c.state == RunState.WAITING, orphaned)
        .values(state=RunState.SKIPPED, finished_at=now, reason="its pipeline was over before it could begin")
    )
    return changed.rowcount


def unfinished_jobs(connection: Connection, names: Sequence[str]) -> set[str]:
    """Which of these jobs have a run that is not over yet; mailings that only try some again are left out."""
    query = (
        sa.select(runs.c.job)
        .where(runs.c.job.in_(names), runs.c.state.in_(UNFINISHED_RUNS), ~_only_tries_again(runs.c))
        .distinct()
    )
    return set(connection.scalars(query))


def cancel_queued(connection: Connection, job: str, *, now: datetime, reason: str) -> int:
    """Cancels the runs of a job that have not begun; returns how many."""
    waiting = runs.c.state.in_([RunState.QUEUED, RunState.WAITING])
    changed = connection.execute(
        sa.update(runs)
        .where(runs.c.job == job, waiting)
        .values(state=RunState.CANCELLED, finished_at=now, reason=reason)
    )
    return changed.rowcount


def latest(connection: Connection, *, job: str | None, limit: int) -> list[Run]:
    """The newest runs, of one job or of all, newest first."""
    query = sa.select(runs).order_by(runs.c.id.desc()).limit(limit)
    if job is not None:
        query = query.where(runs.c.job == job)
    return [Run(**row) for row in connection.execute(query).mappings()]


def last_of_each_job(connection: Connection) -> dict[str, Run]:
    """The newest run of every job that has one."""
    newest = sa.select(sa.func.max(runs.c.id)).group_by(runs.c.job)
    rows = connection.execute(sa.select(runs).where(runs.c.id.in_(newest))).mappings()
    return {row["job"]: Run(**row) for row in rows}


def last_started_of_each_job(connection: Connection) -> dict[str, Run]:
    """The newest run of every job that a worker has begun."""
    newest = sa.select(sa.func.max(runs.c.id)).where(runs.c.started_at.is_not(None)).group_by(runs.c.job)
    return {run.job: run for run in _select(connection, runs.c.id.in_(newest))}


def unfinished(connection: Connection) -> list[Run]:
    """Every run that is not over, in the order they were made."""
    return _select(connection, runs.c.state.in_(UNFINISHED_RUNS))


def _select(connection: Connection, condition: sa.ColumnElement[bool]) -> list[Run]:
    rows = connection.execute(sa.select(runs).where(condition).order_by(runs.c.id)).mappings()
    return [Run(**row) for row in rows]
