"""Recomputes the scores of all items inside the application's database, and writes only those that changed.

One statement adds up the events, so the scores of a run are of one snapshot; one transaction writes them, so a reader
sees the old scores or the new ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from maintd.database import Database, Dialect, first_line
from maintd.errors import JobFailed
from maintd.ratings.columns import Columns, plain_type
from maintd.ratings.formulas import Bayesian, score, score_sql, summand
from maintd.ratings.spec import RatingsSpec

__all__ = ["Change", "Plan", "RatingsSpec", "Recomputed", "dry_run", "examine", "recompute"]

_SAMPLES = 5
_INSERT: dict[Dialect, Callable[[sa.Table], sqlite.Insert | postgresql.Insert]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}


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
        tallies = _tallies(spec, columns, source=source).cte("tallies")
        totals = _totals(connection, tallies)
        drift = _Drift(spec=spec, columns=columns, tallies=tallies, totals=totals)
        rescored, emptied = drift.rescored(), drift.emptied()
        emptied_rows = _count(connection, emptied)
        return Plan(
            items=totals.items,
            events=totals.events,
            changed=_count(connection, rescored) + emptied_rows,
            emptied=emptied_rows,
            samples=_samples(connection, sa.union_all(rescored, emptied)),
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
        tally = _tallies(spec, columns, source=source).into("maintd_tallies", temporary=True)
        connection.execute(tally)
        totals = _totals(connection, tally.table)
        drift = _Drift(spec=spec, columns=columns, tallies=tally.table, totals=totals)
        rescored_rows = _rows_written(connection, _upsert(drift, source=source))
        emptied_rows = _rows_written(connection, _empty(drift))
        tally.table.drop(connection)
    return Recomputed(
        items=totals.items,
        events=totals.events,
        changed=rescored_rows + emptied_rows,
        emptied=emptied_rows,
    )


@contextlib.contextmanager
def _explaining(spec: RatingsSpec, source: Database) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        tables = f'from table "{spec.events.table}" to table "{spec.target.table}"'
        raise JobFailed(f"ratings {tables} of the {source.name}: {first_line(error)}") from error


def _tallies(spec: RatingsSpec, columns: Columns, *, source: Database) -> sa.Select[Any]:
    """Each `item` that has events, the number of its `events`, and their `total` as the formula wants it."""
    item, value = columns.event_item, columns.event_value
    addend = summand(spec.formula, sa.type_coerce(value, plain_type(value)))
    if source.dialect == "postgresql" and isinstance(addend.type, sa.Float):
        # Parallel workers add in any order, and a sum of floats would differ in its last bits from run to run.
        addend = sa.cast(addend, sa.Numeric)
    return (
        sa.select(item.label("item"), sa.func.count().label("events"), sa.func.sum(addend).label("total"))
        .where(item.is_not(None), value.is_not(None))
        .group_by(item)
    )


@dataclass(frozen=True, kw_only=True)
class _Totals:
    items: int
    events: int
    mean: float | None  #: of all events; None without any


def _totals(connection: Connection, tallies: sa.FromClause) -> _Totals:
    columns = sa.func.count(), sa.func.sum(tallies.c.events), sa.cast(sa.func.sum(tallies.c.total), sa.Double)
    items, events, total = connection.execute(sa.select(*columns).select_from(tallies)).one()
    return _Totals(items=items, events=int(events or 0), mean=total / int(events) if events else None)


@dataclass(frozen=True, kw_only=True)
class _Drift:
    """Where the target differs from what the events say."""

    spec: RatingsSpec
    columns: Columns
    tallies: sa.FromClause
    totals: _Totals

    @property
    def prior_mean(self) -> float | None:
        """Fixed for the run, else every score that is written would move the next."""
        formula = self.spec.formula
        given = formula.prior_mean if isinstance(formula, Bayesian) else None
        return self.totals.mean if given is None else given

    @property
    def empty_score(self) -> sa.ColumnElement[Any]:
        """The score of an item without events."""
        exact = score(self.spec.formula, total=0, count=0, prior_mean=self.prior_mean)
        return self._as_kept(sa.literal(exact, sa.Double))

    def rescored(self) -> sa.Select[Any]:
        """Rows to write for items that have events: `item`, `old` and `new` score, number of `events`."""
        tallies, prior_mean = self.tallies, self.prior_mean
        exact = score_sql(
            self.spec.formula, total=tallies.c.total, count=tallies.c.events, prior_mean=prior_mean
        )
        scored = sa.select(tallies.c.item, self._as_kept(exact).label("new"), tallies.c.events).subquery(
            "scored"
        )
        item, new, events = scored.c.item, scored.c.new, scored.c.events
        return (
            sa.select(item, self.columns.score.label("old"), new, events)
            .select_from(scored.outerjoin(self.columns.target, self.columns.item == item))
            .where(self.differs(score=new, events=events))
        )

    def emptied(self) -> sa.Select[Any]:
        """Rows to write for items that have no events any more, in the columns of `rescored`."""
        columns, tallies = self.columns, self.tallies
        new, events = self.empty_score, sa.literal(0)
        return (
            sa.select(
                columns.item.label("item"),
                columns.score.label("old"),
                new.label("new"),
                events.label("events"),
            )
            .select_from(columns.target.outerjoin(tallies, columns.item == tallies.c.item))
            .where(columns.item.is_not(None), tallies.c.item.is_(None))
            .where(self.differs(score=new, events=events))
        )

    def differs(
        self, *, score: sa.ColumnElement[Any], events: sa.ColumnElement[int]
    ) -> sa.ColumnElement[bool]:
        """Whether a row of the target holds something else."""
        return sa.or_(self.columns.score.is_distinct_from(score), self.columns.count.is_distinct_from(events))

    def _as_kept(self, exact: sa.ColumnElement[float]) -> sa.ColumnElement[Any]:
        # A NUMERIC column rounds: compared unrounded, its scores would be written anew in every run.
        return sa.cast(exact, plain_type(self.columns.score))


def _upsert(drift: _Drift, *, source: Database) -> sa.Insert:
    # The rows are filtered before, because ON CONFLICT locks (and so writes) even a row that its WHERE leaves alone,
    # and uses up a number of the table's sequence. Its WHERE is for rows that somebody else wrote meanwhile.
    columns, rows = drift.columns, drift.rescored().subquery("rescored")
    # WHERE true: without it SQLite takes ON CONFLICT for the condition of a join.
    changed = sa.select(rows.c.item, rows.c.new, rows.c.events).where(sa.true())
    names = [columns.item.name, columns.score.name, columns.count.name]
    insert = _INSERT[source.dialect](columns.target).from_select(names, changed)
    score, events = insert.excluded[columns.score.name], insert.excluded[columns.count.name]
    return insert.on_conflict_do_update(
        index_elements=[columns.item],
        set_={columns.score.name: score, columns.count.name: events},
        where=drift.differs(score=score, events=events),
    )


def _empty(drift: _Drift) -> sa.Update:
    columns, rows = drift.columns, drift.emptied().correlate(None).subquery("emptied")
    return (
        sa.update(columns.target)
        .where(columns.item.in_(sa.select(rows.c.item)))
        .values({columns.score: drift.empty_score, columns.count: 0})
    )


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
