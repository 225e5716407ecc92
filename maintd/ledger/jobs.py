"""Applied jobs: their spec, their revision and their cursor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from maintd.errors import UsageError, did_you_mean
from maintd.ledger.tables import jobs, meta


@dataclass(frozen=True, kw_only=True)
class ListedJob:
    """A job as the ledger has it, without the files it depends on, which may be megabytes.

    Attributes:
        spec: Header and kind's keys, in the form of the job file.
        digest: Of spec and files.
        cursor_at: The last instant that was considered.
        next_at: The first instant after it; None if it is never due by itself.
    """

    name: str
    kind: str
    revision: int
    spec: dict[str, Any]
    digest: str
    enabled: bool
    applied_at: datetime
    cursor_at: datetime | None
    next_at: datetime | None
    paused_at: datetime | None
    pause_reason: str | None


@dataclass(frozen=True, kw_only=True)
class StoredJob(ListedJob):
    """A job as the ledger has it, whole.

    Attributes:
        files: What it depends on, by the name the job file gives it, frozen when it was applied.
    """

    files: dict[str, str]


_LISTED = [column for column in jobs.c if column.name != "files"]


def get(connection: Connection, name: str) -> StoredJob | None:
    """The job of that name, if it is applied."""
    row = connection.execute(sa.select(jobs).where(jobs.c.name == name)).mappings().first()
    return StoredJob(**row) if row else None


def require(connection: Connection, name: str) -> StoredJob:
    """The job of that name, which a person wrote.

    Raises:
        UsageError: No such job is applied; the nearest is named.
    """
    job = get(connection, name)
    if job is None:
        known = connection.scalars(sa.select(jobs.c.name)).all()
        hint = did_you_mean(name, known) or "no job is applied yet; run `maintd apply`"
        raise UsageError(f'there is no job "{name}"; {hint}')
    return job


def every(connection: Connection) -> list[ListedJob]:
    """All applied jobs, by name."""
    query = sa.select(*_LISTED).order_by(jobs.c.name)
    return [ListedJob(**row) for row in connection.execute(query).mappings()]


def some(connection: Connection, names: list[str]) -> list[ListedJob]:
    """The applied jobs among these names."""
    query = sa.select(*_LISTED).where(jobs.c.name.in_(names)).order_by(jobs.c.name)
    return [ListedJob(**row) for row in connection.execute(query).mappings()]


def due(connection: Connection, *, now: datetime, limit: int) -> list[str]:
    """Names of jobs whose next instant has come, the longest overdue first."""
    query = (
        sa.select(jobs.c.name)
        .where(jobs.c.next_at <= now, jobs.c.enabled, jobs.c.paused_at.is_(None))
        .order_by(jobs.c.next_at)
        .limit(limit)
    )
    return list(connection.scalars(query))


def insert(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds jobs; each row has a value for every column that is not left empty."""
    if rows:
        connection.execute(sa.insert(jobs), list(rows))


def update(connection: Connection, name: str, values: Mapping[str, Any]) -> None:
    """Changes columns of a job."""
    connection.execute(sa.update(jobs).where(jobs.c.name == name).values(**values))


def remove(connection: Connection, name: str) -> None:
    """Deletes a job; its runs stay, as history."""
    connection.execute(sa.delete(jobs).where(jobs.c.name == name))


@dataclass(frozen=True, kw_only=True)
class Advance:
    """A move of one job's cursor, to be made only if it still stands at `was`."""

    job: str
    was: datetime | None
    cursor_at: datetime
    next_at: datetime | None


def advance(connection: Connection, moves: Sequence[Advance]) -> bool:
    """Moves cursors, if each still stands where the caller saw it.

    Returns:
        False when somebody else moved one: whatever was inserted in this transaction must be rolled back.
    """
    if not moves:
        return True
    statement = (
        sa.update(jobs)
        .where(jobs.c.name == sa.bindparam("job"), jobs.c.cursor_at.is_not_distinct_from(sa.bindparam("was")))
        .values(cursor_at=sa.bindparam("to"), next_at=sa.bindparam("following"))
    )
    rows = [
        {"job": move.job, "was": move.was, "to": move.cursor_at, "following": move.next_at} for move in moves
    ]
    return connection.execute(statement, rows).rowcount == len(moves)


def set_paused(connection: Connection, name: str, *, paused_at: datetime | None, reason: str | None) -> None:
    """Pauses a job, or with None for both ends its pause; whoever mirrors the jobs has to be told besides."""
    connection.execute(
        sa.update(jobs).where(jobs.c.name == name).values(paused_at=paused_at, pause_reason=reason)
    )


def stamp(connection: Connection) -> int:
    """A number that every apply moves: whoever mirrors the jobs compares it."""
    return int(connection.scalars(sa.select(meta.c.value).where(meta.c.name == "jobs_stamp")).one())


def move_stamp(connection: Connection) -> None:
    """Tells every mirror of the jobs that it is out of date."""
    # In one statement, so that of two at once neither is lost.
    moved = sa.cast(sa.cast(meta.c.value, sa.Integer) + 1, sa.Text)
    connection.execute(sa.update(meta).where(meta.c.name == "jobs_stamp").values(value=moved))
