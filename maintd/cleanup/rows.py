"""Clean-up of rows by age: `cleanup.rows`.

Counted first, stopped by a cap, then removed in short transactions that walk an index. A row goes only if it is older
than the cutoff at the very moment it is deleted.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import sqlalchemy as sa
from pydantic import Field
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from maintd.cleanup.due import Counts, DueRows, due_rows
from maintd.clock import Clock
from maintd.database import Database, first_line
from maintd.errors import CapReached, Interrupted, JobFailed, Unavailable
from maintd.spec import Duration, Spec
from maintd.units import format_duration

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TINY = 100  # below so many rows a fraction says nothing

# A batch steers towards the aim, which leaves room below 100 ms: nobody notices waiting so long for a lock.
_AIM_S = 0.07
_FEWEST, _MOST = 100, 10_000
# SQLite takes at most 32,766 parameters in a statement, PostgreSQL 65,535.
_MOST_PARAMETERS = 30_000
# Whoever waits for SQLite's write lock polls for it, and starves when batches follow each other without a gap.
_PAUSE_S = 0.02
# Less than PostgreSQL's deadlock_timeout (1 s), so that it is maintd that steps back and not the application.
_LOCK_TIMEOUT = "500ms"

_ADVICE = "Look at a dry run; if they may all go, raise the limit"
_LOCK_NOT_AVAILABLE = "55P03"
_CURES = {
    "42501": "its role needs SELECT, UPDATE (to lock the rows it chose) and DELETE on the table",
    "57014": "an index that leads with older_than.column makes it quicker; else raise the statement timeout",
}


class OlderThan(Spec):
    """Which rows have had their time."""

    column: str
    """The column that says how old a row is: a timestamp with or without time zone (without one it is taken as
    UTC), a date (in UTC; the whole day must have passed), or a number of seconds since 1970. Rows in which it is NULL
    are never touched; nor are, in SQLite, rows whose value is no date at all. An index that leads with this column
    makes cleaning up much cheaper."""

    age: Duration
    """Rows go when the column is further back than this, counted from the nominal time of the run. A row of exactly
    this age stays."""


class StopAt(Spec):
    """When there is so much to remove that something must be wrong: nothing is removed, and the run fails."""

    rows: int | None = Field(default=None, ge=1)
    """The most rows that one run may remove. No limit unless given."""

    fraction: float = Field(default=0.9, gt=0, le=1)
    """The most that one run may remove, as a part of the whole table: `0.9` lets it remove nine rows in ten. Up to 99
    rows may always go, because in so small a number a fraction says nothing. `1` switches this limit off."""


class RowsSpec(Spec):
    """Deletes rows that have expired, in batches short enough not to be noticed."""

    source: str
    """The database, by the name of its setting: `app` stands for `MAINTD_SOURCE_APP_URL`. In PostgreSQL the role needs
    SELECT, UPDATE (to lock the rows it chose) and DELETE on the table."""

    table: str
    """The table, or `schema.table`. It must have a primary key. Rows of other tables that go with a removed row by
    `ON DELETE CASCADE` are not counted: clean the referring tables first."""

    older_than: OlderThan
    """Which rows go."""

    stop_at: StopAt = StopAt()
    """The limits above which nothing is removed at all."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run would do.

    Attributes:
        matching: Rows that would be removed.
        total: Rows of the whole table.
        samples: Up to five of them, in the order in which they would go: key and age columns by name, as text.
        would_stop: Why `stop_at` would stop the run; empty when it would not.
        cutoff_at: Rows strictly older than this match.
        order: The columns whose index the batches would walk.
    """

    matching: int
    total: int
    samples: tuple[Mapping[str, str], ...]
    would_stop: str
    cutoff_at: datetime
    order: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """What a run did.

    Attributes:
        removed: Rows deleted.
        batches: Transactions it took.
        matching: Rows that were due when the run began.
        total: Rows of the whole table when the run began.
        left: Rows that are still due, because somebody kept them locked. The next run takes them.
    """

    removed: int
    batches: int
    matching: int
    total: int
    left: int = 0


def examine(spec: RowsSpec, source: Database) -> None:
    """Checks a job against its database without looking at a row.

    Raises:
        JobFailed: The table or column does not exist, the table has no primary key, or the column cannot be compared
            with a time.
        Unavailable: The source does not answer.
    """
    with _explained(spec), source.read() as connection:
        _due(spec, source, connection, cutoff_at=_EPOCH)  # any instant will do


def dry_run(spec: RowsSpec, source: Database, *, cutoff_at: datetime) -> Plan:
    """Counts what `clean` would remove, in a transaction that cannot write.

    Args:
        spec: The job.
        source: Its database.
        cutoff_at: Rows strictly older than this are due.

    Raises:
        JobFailed: As `examine`, or the database refuses.
        Unavailable: The source does not answer.
    """
    with _explained(spec), source.read() as connection:
        due = _due(spec, source, connection, cutoff_at=cutoff_at)
        counts = due.count(connection)
        samples = due.samples(connection)
    return Plan(
        matching=counts.matching,
        total=counts.total,
        samples=samples,
        would_stop=_objection(spec, counts=counts, cutoff_at=cutoff_at),
        cutoff_at=cutoff_at,
        order=tuple(column.name for column in due.order),
    )


def clean(
    spec: RowsSpec,
    source: Database,
    *,
    cutoff_at: datetime,
    clock: Clock,
    stopping: Callable[[], bool],
    progress: Callable[[int], None],
    pause: Callable[[float], None],
) -> Cleaned:
    """Removes the rows that are due, unless there are more than `stop_at` allows.

    On PostgreSQL locked rows are passed over; if some were, a second pass waits for them shortly.

    Args:
        spec: The job.
        source: Its database.
        cutoff_at: Rows strictly older than this are due. The same in every attempt of a run.
        clock: Measures the batches.
        stopping: Asked before each batch; once true, the run ends in order.
        progress: Told after each batch how many rows this call has removed so far.
        pause: Waits so many seconds; called between batches on SQLite, to let other writers in.

    Raises:
        CapReached: More is due than `stop_at` allows. Nothing was removed, unless the rows appeared meanwhile.
        Interrupted: `stopping()` was true. What is removed stays removed.
        JobFailed: As `examine`, or the database refuses, as for a row that others refer to.
        Unavailable: The source does not answer.
    """
    with _explained(spec):
        with source.read() as connection:
            due = _due(spec, source, connection, cutoff_at=cutoff_at)
            counts = due.count(connection)
        if objection := _objection(spec, counts=counts, cutoff_at=cutoff_at):
            raise CapReached(f"{objection}. Nothing was removed. {_ADVICE}")
        sweep = _Sweep(
            due=due, source=source, cap=_cap(spec.stop_at, total=counts.total),
            clock=clock, stopping=stopping, progress=progress, pause=pause,
        )  # fmt: skip
        sweep.walk()
        left = sweep.take_locked() if sweep.removed < counts.matching else 0
    return Cleaned(
        removed=sweep.removed,
        batches=sweep.batches,
        matching=counts.matching,
        total=counts.total,
        left=left,
    )


@dataclass(frozen=True, kw_only=True)
class _Cap:
    rows: int
    setting: str


def _cap(stop_at: StopAt, *, total: int) -> _Cap:
    # Exact: in floating point 0.29 of 100 is less than 29.
    part = math.floor(Fraction(str(stop_at.fraction)) * total)
    by_fraction = sys.maxsize if stop_at.fraction == 1 else max(part, _TINY - 1)
    if stop_at.rows is not None and stop_at.rows <= by_fraction:
        return _Cap(rows=stop_at.rows, setting=f"stop_at.rows = {stop_at.rows}")
    return _Cap(rows=by_fraction, setting=f"stop_at.fraction = {stop_at.fraction:g}")


def _objection(spec: RowsSpec, *, counts: Counts, cutoff_at: datetime) -> str:
    cap = _cap(spec.stop_at, total=counts.total)
    if counts.matching <= cap.rows:
        return ""
    age = format_duration(spec.older_than.age)
    return (
        f'table "{spec.table}": {counts.matching:,} of {counts.total:,} rows are older than {age} (before '
        f"{cutoff_at.isoformat()}), and {cap.setting} allows {cap.rows:,}"
    )


@dataclass(kw_only=True)
class _Sweep:
    """The batches of one call: where it is, and what it did."""

    due: DueRows
    source: Database
    cap: _Cap
    clock: Clock
    stopping: Callable[[], bool]
    progress: Callable[[int], None]
    pause: Callable[[float], None]
    removed: int = 0
    batches: int = 0
    size: int = _FEWEST

    def walk(self, *, wait: bool = False) -> None:
        """One pass from the first due row to the last; `wait` for locked rows, or else pass them over."""
        after = None
        while True:
            self._go_on_or_stop()
            limit = min(self.size, self.cap.rows - self.removed + 1)
            chosen = self._timed_batch(after=after, limit=limit, wait=wait)
            if len(chosen) < limit:
                return
            after = chosen[-1]
            if self.source.dialect == "sqlite":
                self.pause(_PAUSE_S)

    def take_locked(self) -> int:
        """A second pass, which waits for the rows that were locked; returns how many it had to leave."""
        if self.source.dialect == "sqlite":
            return 0
        self.size = _FEWEST  # few are left, and while it waits for one it holds the others
        try:
            self.walk(wait=True)
        except OperationalError as error:
            if _state(error) != _LOCK_NOT_AVAILABLE:
                raise
            with self.source.read() as connection:
                return self.due.count(connection).matching
        return 0

    def _go_on_or_stop(self) -> None:
        if self.stopping():
            raise Interrupted(
                f'table "{self.due.table.name}": stopped after {self.removed:,} rows; '
                "the rest follows when the run resumes"
            )

    def _timed_batch(self, *, after: sa.Row[Any] | None, limit: int, wait: bool) -> Sequence[sa.Row[Any]]:
        began_s = self.clock.monotonic_s()
        chosen, removed = self._batch(after=after, limit=limit, wait=wait)
        took_s = self.clock.monotonic_s() - began_s
        if chosen:
            self.removed += removed
            self.batches += 1
            self.progress(self.removed)
            self.size = next_size(self.size, took_s=took_s, most=_MOST_PARAMETERS // len(self.due.key))
        return chosen

    def _batch(
        self, *, after: sa.Row[Any] | None, limit: int, wait: bool
    ) -> tuple[Sequence[sa.Row[Any]], int]:
        if self.source.dialect == "sqlite":
            # Its one writer keeps all others out; whoever is still looking for rows should not be that writer.
            with self.source.read() as connection:
                chosen = self.due.choose(connection, after=after, limit=limit, wait=wait)
            with self.source.write() as connection:
                return chosen, self._delete(connection, chosen)
        with self.source.write() as connection:
            if wait:
                connection.execute(sa.select(sa.func.set_config("lock_timeout", _LOCK_TIMEOUT, sa.true())))
            chosen = self.due.choose(connection, after=after, limit=limit, wait=wait)
            return chosen, self._delete(connection, chosen)

    def _delete(self, connection: Connection, chosen: Sequence[sa.Row[Any]]) -> int:
        if self.removed + len(chosen) > self.cap.rows:
            raise CapReached(
                f'table "{self.due.table.name}": {self.removed:,} rows are removed, and so many '
                f"became due meanwhile that more would exceed the {self.cap.rows:,} of {self.cap.setting}. {_ADVICE}"
            )
        return self.due.delete(connection, chosen) if chosen else 0


def next_size(size: int, *, took_s: float, most: int = _MOST) -> int:
    """How many rows the next batch takes, steered by how long the last one took.

    Args:
        size: Rows of the last batch.
        took_s: Seconds that it took, commit included.
        most: Never more than this.

    Returns:
        As many as should take 70 ms, at most double, between 100 and 10,000.
    """
    fitting = size * _AIM_S / took_s if took_s > 0 else math.inf
    return int(max(min(fitting, size * 2, most, _MOST), _FEWEST))


def _due(spec: RowsSpec, source: Database, connection: Connection, *, cutoff_at: datetime) -> DueRows:
    return due_rows(
        connection,
        table=spec.table,
        column=spec.older_than.column,
        cutoff_at=cutoff_at,
        dialect=source.dialect,
    )


@contextlib.contextmanager
def _explained(spec: RowsSpec) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        said = f'table "{spec.table}": {first_line(error)}'
        if _state(error) == _LOCK_NOT_AVAILABLE:
            raise Unavailable(f"{said}; that passes, and the run can be tried again") from error
        cure = _CURES.get(_state(error), "")
        if isinstance(error, IntegrityError):
            cure = "other rows refer to these: clean them up first"
        raise JobFailed(f"{said}; {cure}" if cure else said) from error


def _state(error: SQLAlchemyError) -> str:
    return str(getattr(getattr(error, "orig", None), "sqlstate", None) or "")
