"""The columns that a rating job names, as the database describes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection
from sqlalchemy.schema import ColumnCollectionConstraint
from sqlalchemy.types import TypeEngine

from maintd.errors import JobFailed
from maintd.ratings.formulas import Mean
from maintd.ratings.spec import RatingsSpec
from maintd.sources import reflect

_FRACTIONS = (sa.Numeric, sa.Float)
_NUMBERS = (sa.Integer, *_FRACTIONS)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The two columns of the events and the three of the target; they exist and fit the job.

    A column of a domain has the type that the domain is made of, which says what can be done with it. A score is still
    kept as `score_type`: only the domain itself knows its precision.
    """

    event_item: sa.Column[Any]
    event_value: sa.Column[Any]
    target: sa.Table
    item: sa.Column[Any]
    score: sa.Column[Any]
    score_type: TypeEngine[Any]
    count: sa.Column[Any]

    @classmethod
    def find(cls, spec: RatingsSpec, connection: Connection) -> Columns:
        """Looks the job's tables and columns up.

        Raises:
            JobFailed: One does not exist or cannot do its part; the key at fault is named.
        """
        events = reflect.table(connection, spec.events.table, key="events.table")
        target = reflect.table(connection, spec.target.table, key="target.table")
        score = reflect.column(target, spec.target.score, key="target.score")
        columns = cls(
            event_item=reflect.column(events, spec.events.item, key="events.item"),
            event_value=reflect.column(events, spec.events.value, key="events.value"),
            target=target,
            item=reflect.column(target, spec.target.item, key="target.item"),
            score=score,
            score_type=score.type,
            count=reflect.column(target, spec.target.count, key="target.count"),
        )
        for column in (*events.columns, *target.columns):
            while isinstance(column.type, postgresql.DOMAIN):
                column.type = column.type.data_type
        columns._check(spec)
        return columns

    def _check(self, spec: RatingsSpec) -> None:
        if len({self.item, self.score, self.count}) < 3:
            raise JobFailed("target: item, score and count must be three different columns")
        _check_type(self.event_value, _NUMBERS, "a number", key="events.value")
        _check_type(self.score, _FRACTIONS, "REAL, DOUBLE PRECISION or NUMERIC", key="target.score")
        _check_type(self.count, _NUMBERS, "a number", key="target.count")
        if not _is_unique(self.item):
            raise JobFailed(
                f"target.item: {_named(self.item)} is neither the primary key nor unique by itself; "
                "add a unique index, so that an item has one score"
            )
        if isinstance(spec.formula, Mean) and not self.score.nullable:
            raise JobFailed(
                f"target.score: {_named(self.score)} is NOT NULL, but an item that lost its last event has no mean; "
                "allow NULL, or use the formula bayesian"
            )


def _check_type(column: sa.Column[Any], types: tuple[type, ...], wanted: str, *, key: str) -> None:
    if not isinstance(column.type, types):
        raise JobFailed(f"{key}: {_named(column)} must be {wanted}, but its type is {column.type}")


def _named(column: sa.Column[Any]) -> str:
    return f'column "{column.name}" of table "{column.table.name}"'


def _is_unique(column: sa.Column[Any]) -> bool:
    table = column.table
    keys: list[ColumnCollectionConstraint | sa.Index] = [table.primary_key]
    keys += [each for each in table.constraints if isinstance(each, sa.UniqueConstraint)]
    keys += [each for each in table.indexes if each.unique and not _is_partial(each)]
    return any(each.columns.keys() == [column.key] for each in keys)


def _is_partial(index: sa.Index) -> bool:
    options = index.dialect_options
    return any(options[dialect]["where"] is not None for dialect in ("sqlite", "postgresql"))
