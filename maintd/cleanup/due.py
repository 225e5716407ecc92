"""Which rows of a table have had their time, and the statements that find and delete them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from maintd.database import Dialect
from maintd.errors import JobFailed
from maintd.sources import reflect

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Rows of one table at one moment.

    Attributes:
        matching: Rows that are due.
        total: All of them.
    """

    matching: int
    total: int


@dataclass(frozen=True, kw_only=True)
class DueRows:
    """The rows of one table that are due, and the statements about them.

    Attributes:
        key: The columns of the primary key.
        age: The column that says how old a row is.
        order: The columns by which a pass walks; unique together.
        condition: What makes a row due.
    """

    table: sa.TableClause
    key: tuple[sa.ColumnClause[Any], ...]
    age: sa.ColumnClause[Any]
    order: tuple[sa.ColumnClause[Any], ...]
    condition: sa.ColumnElement[bool]

    def count(self, connection: Connection) -> Counts:
        every = sa.func.count()
        statement = sa.select(every.filter(self.condition), every).select_from(self.table)
        matching, total = connection.execute(statement).one()
        return Counts(matching=matching, total=total)

    def samples(self, connection: Connection) -> tuple[Mapping[str, str], ...]:
        columns = dict.fromkeys((*self.key, self.age))
        statement = sa.select(*columns).where(self.condition).order_by(*self.order).limit(_SAMPLES)
        return tuple(
            {name: str(value) for name, value in row.items()}
            for row in connection.execute(statement).mappings()
        )

    def choose(
        self, connection: Connection, *, after: sa.Row[Any] | None, limit: int, wait: bool
    ) -> Sequence[sa.Row[Any]]:
        """The next rows behind `after`, each as its `order` columns; locked, where the database can lock rows."""
        statement = sa.select(*self.order).where(self.condition).order_by(*self.order).limit(limit)
        if after is not None:
            reached = (
                sa.literal(value, column.type) for column, value in zip(self.order, after, strict=True)
            )
            statement = statement.where(sa.tuple_(*self.order) > sa.tuple_(*reached))
        return connection.execute(statement.with_for_update(skip_locked=not wait)).all()

    def delete(self, connection: Connection, chosen: Sequence[sa.Row[Any]]) -> int:
        """Deletes those of the chosen rows that are due even now; returns how many."""
        statement = sa.delete(self.table).where(self._is_one_of(chosen), self.condition)
        return connection.execute(statement).rowcount

    def _is_one_of(self, chosen: Sequence[sa.Row[Any]]) -> sa.ColumnElement[bool]:
        keys = [tuple(row._mapping[column] for column in self.key) for row in chosen]
        if len(self.key) == 1:
            return self.key[0].in_([key for (key,) in keys])
        return sa.tuple_(*self.key).in_(keys)


def due_rows(
    connection: Connection, *, table: str, column: str, cutoff_at: datetime, dialect: Dialect
) -> DueRows:
    """Looks a table up and says which of its rows are due.

    Args:
        connection: Of the source.
        table: Its table, or `schema.table`.
        column: The column that says how old a row is.
        cutoff_at: Rows strictly older than this are due.
        dialect: Of the source.

    Raises:
        JobFailed: No such table or column, no primary key, or a column that cannot be compared with a time.
    """
    reflected = reflect.table(connection, table, key="table")
    dated = reflect.column(reflected, column, key="older_than.column")
    if not reflected.primary_key.columns:
        raise JobFailed(f'table: "{table}" has no primary key; without one no row can be told from another')
    stored = _as_stored(reflected, dialect=dialect)
    age = stored.c[dated.name]
    older = _older(age, kind=dated.type, cutoff_at=cutoff_at, dialect=dialect)
    key = tuple(stored.c[each.name] for each in reflected.primary_key.columns)
    return DueRows(
        table=stored,
        key=key,
        age=age,
        order=tuple(dict.fromkeys((age, *key))) if _leads_an_index(dated) else key,
        # SQLite lets most primary keys be NULL; such a row cannot be addressed.
        condition=sa.and_(older, *(each.is_not(None) for each in key)),
    )


def _as_stored(table: sa.Table, *, dialect: Dialect) -> sa.TableClause:
    """The table with the types of its columns; on SQLite with none, so that values come as they are and match again.

    SQLite stores an instant as text of any form; read as a datetime and written back it need not be the same text.
    """
    columns = (sa.column(each.name, None if dialect == "sqlite" else each.type) for each in table.columns)
    return sa.table(table.name, *columns, schema=table.schema)


def _leads_an_index(column: sa.Column[Any]) -> bool:
    """Whether an index exists that can be walked in the order of this column, and holds every row."""
    table = column.table
    assert isinstance(table, sa.Table)
    unique = (sa.PrimaryKeyConstraint, sa.UniqueConstraint)
    walkable = [
        *(list(each.columns) for each in table.constraints if isinstance(each, unique)),
        *(each.expressions for each in table.indexes if _is_walkable(each)),
    ]
    return any(columns and columns[0] is column for columns in walkable)


def _is_walkable(index: sa.Index) -> bool:
    options = index.dialect_kwargs
    partial = options.get("postgresql_where") is not None or options.get("sqlite_where") is not None
    return not partial and options.get("postgresql_using") in (None, False, "", "btree")


def _older(
    age: sa.ColumnElement[Any], *, kind: sa.types.TypeEngine[Any], cutoff_at: datetime, dialect: Dialect
) -> sa.ColumnElement[bool]:
    """Strictly older than the cutoff; never true of NULL.

    Raises:
        JobFailed: A column of this type cannot be compared with a time.
    """
    cutoff_at = cutoff_at.astimezone(UTC)
    match kind:
        case sa.Date() | sa.DateTime() if dialect == "sqlite":
            return _older_text(age, cutoff_at=cutoff_at, whole_days=isinstance(kind, sa.Date))
        case sa.Date():
            return sa.and_(age >= date.min, age < cutoff_at.date())
        case sa.DateTime():
            zone = UTC if kind.timezone else None
            # Python knows no instant before the year 1, such as PostgreSQL's -infinity.
            return sa.and_(age >= datetime.min.replace(tzinfo=zone), age < cutoff_at.replace(tzinfo=zone))
        case sa.Integer() if dialect == "postgresql":
            # The same whole numbers lie below the next whole number, and only against one is an index of use.
            return age < sa.literal(-((_EPOCH - cutoff_at) // timedelta(seconds=1)), sa.BigInteger())
        case sa.Integer() | sa.Float() | sa.Numeric():
            return age < sa.literal((cutoff_at - _EPOCH).total_seconds(), sa.Double())
    raise JobFailed(
        f'older_than.column: "{age}" is of type {kind}, which cannot be compared with a time; '
        "name a timestamp, a date or a number of seconds since 1970"
    )


def _older_text(
    age: sa.ColumnElement[Any], *, cutoff_at: datetime, whole_days: bool
) -> sa.ColumnElement[bool]:
    """The same of SQLite's text, in any form that its date functions read (to the millisecond).

    Numbers and other text, all of which SQLite would sort somewhere, are not older than anything.
    """
    cutoff = cutoff_at.date().isoformat() if whole_days else cutoff_at.replace(tzinfo=None).isoformat(" ")
    # For an index: no zone of the world makes a date of two days later an earlier instant.
    bound = (cutoff_at + timedelta(days=2)).date().isoformat()
    is_date = sa.cast(age, sa.Text()).like("____-__-__%")
    return sa.and_(age < bound, is_date, sa.func.julianday(age) < sa.func.julianday(cutoff))
