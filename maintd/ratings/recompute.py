"""Recomputes the scores of all items inside the application's database, and writes only those that changed.

One statement adds up the events, so the scores of a run are of one snapshot; one transaction writes them, so a reader
sees the old scores or the new ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from maintd.database import Database, first_line
from maintd.errors import JobFailed
from maintd.ratings.columns import Columns
from maintd.ratings.drift import Drift, Totals, tallies
from maintd.ratings.spec import RatingsSpec

_SAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class Change:
    """One row of the target as it is and as it would become.

    Attributes:
        item: The item, as text.
        old: Its score now; None if it has no row or no score.
        new: Its score after the run.
        events: Its number of events.
    """

    item: str
    old: float | None
    new: float | None
    events: int


@dataclass(frozen=True, kw_only=True)
class Recomputed:
    """What a run did.

    Attributes:
        items: How many items have events.
        events: How many events they have.
        changed: How many rows of the target were written, `emptied` included.
        emptied: How many of these got the score of an item without events.
    """

    items: int
    events: int
    changed: int
    emptied: int


@dataclass(frozen=True, kw_only=True)
class Plan(Recomputed):
    """What a run would do: its counts, and up to five of its changes as `samples`."""

    samples: tuple[Change, ...]


def examine(spec: RatingsSpec, source: Database) -> None:
    """Checks that the job's tables and columns exist and can do their part.

    Raises:
        JobFailed: They cannot; the key at fault is named.
        Unavailable: The source does not answer.
    """
    with _explaining(spec, source), source.read() as connection:
        Columns.find(spec, connection)


def dry_run(spec: RatingsSpec, source: Database) -> Plan:
    """Counts what `recompute` would write now, and writes nothing.

    Raises:
        JobFailed: The tables do not fit the job, or the database refused.
        Unavailable: The source does not answer.
    """
    with _explaining(spec, source), source.read() as connection:
        if source.dialect == "postgresql":  # SQLite reads one snapshot anyhow
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        columns = Columns.find(spec, connection)
        tallied = tallies(spec.formula, columns, dialect=source.dialect).cte("tallies")
        totals = Totals.read(connection, tallied)
        drift = Drift(formula=spec.formula, columns=columns, tallies=tallied, totals=totals)
        emptied = _count(connection, drift.emptied)
        return Plan(
            items=totals.items,
            events=totals.events,
            changed=_count(connection, drift.rescored) + emptied,
            emptied=emptied,
            samples=_samples(connection, sa.union_all(drift.rescored, drift.emptied)),
        )


def recompute(spec: RatingsSpec, source: Database) -> Recomputed:
    """Brings the score and the count of every item up to date, in one transaction.

    Safe to repeat: without new events nothing is written.

    Raises:
        JobFailed: The tables do not fit the job, or the database refused; nothing was written.
        Unavailable: The source does not answer; nothing was written.
    """
    with _explaining(spec, source), source.write() as connection:
        columns = Columns.find(spec, connection)
        # Into a table of its own: PostgreSQL aggregates in parallel for that, but never for an INSERT.
        tallied = tallies(spec.formula, columns, dialect=source.dialect).into(
            "maintd_tallies", temporary=True
        )
        connection.execute(tallied)
        totals = Totals.read(connection, tallied.table)
        drift = Drift(formula=spec.formula, columns=columns, tallies=tallied.table, totals=totals)
        rescored = _rows_written(connection, drift.upsert(dialect=source.dialect))
        emptied = _rows_written(connection, drift.empty())
        tallied.table.drop(connection)
    return Recomputed(items=totals.items, events=totals.events, changed=rescored + emptied, emptied=emptied)


@contextlib.contextmanager
def _explaining(spec: RatingsSpec, source: Database) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        tables = f'from table "{spec.events.table}" to table "{spec.target.table}"'
        raise JobFailed(f"ratings {tables} of the {source.name}: {first_line(error)}") from error


def _rows_written(connection: Connection, statement: sa.Insert | sa.Update) -> int:
    return connection.execute(statement, execution_options={"preserve_rowcount": True}).rowcount


def _count(connection: Connection, rows: sa.Select[Any]) -> int:
    return connection.execute(sa.select(sa.func.count()).select_from(rows.subquery())).scalar_one()


def _samples(connection: Connection, changes: sa.CompoundSelect[Any]) -> tuple[Change, ...]:
    rows = changes.subquery("changes")
    old, new = (sa.cast(column, sa.Double).label(column.name) for column in (rows.c.old, rows.c.new))
    some = sa.select(rows.c.item, old, new, rows.c.events).order_by(rows.c.item).limit(_SAMPLES)
    found = connection.execute(some)
    return tuple(Change(item=str(row.item), old=row.old, new=row.new, events=row.events) for row in found)
