"""Where the scores differ from what the events say, and the statements that set them right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from maintd.database import Dialect
from maintd.ratings.columns import Columns
from maintd.ratings.formulas import Bayesian, Formula, score, score_sql, total_sql

_INSERT: dict[Dialect, Callable[[sa.Table], sqlite.Insert | postgresql.Insert]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}


def tallies(formula: Formula, columns: Columns, *, dialect: Dialect) -> sa.Select[Any]:
    """Each `item` that has events, the number of its `events`, and their `total` as the formula wants it."""
    item, value = columns.event_item, columns.event_value
    total = total_sql(formula, value, dialect=dialect)
    return (
        sa.select(item.label("item"), sa.func.count().label("events"), total.label("total"))
        .where(item.is_not(None), value.is_not(None))
        .group_by(item)
    )


@dataclass(frozen=True, kw_only=True)
class Totals:
    """The sums of all tallies.

    Attributes:
        items: How many items have events.
        events: How many events they have.
        mean: Of all events; None without any.
    """

    items: int
    events: int
    mean: float | None

    @classmethod
    def read(cls, connection: Connection, tallies: sa.FromClause) -> Totals:
        """Adds the tallies up."""
        counts = sa.func.count(), sa.func.sum(tallies.c.events)
        total = sa.cast(sa.func.sum(tallies.c.total), sa.Double)
        items, events, total_value = connection.execute(sa.select(*counts, total).select_from(tallies)).one()
        return cls(items=items, events=int(events or 0), mean=total_value / int(events) if events else None)


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Where the target differs from what the events say.

    Attributes:
        formula: How scores are made.
        columns: The job's columns.
        tallies: A table or CTE of what `tallies` selects.
        totals: Its sums.
    """

    formula: Formula
    columns: Columns
    tallies: sa.FromClause
    totals: Totals

    @property
    def prior_mean(self) -> float | None:
        """What `bayesian` draws to; fixed for the run, so that all its scores are of one measure."""
        given = self.formula.prior_mean if isinstance(self.formula, Bayesian) else None
        return self.totals.mean if given is None else given

    @property
    def empty_score(self) -> sa.ColumnElement[Any]:
        """The score of an item without events."""
        exact = score(self.formula, total=0, count=0, prior_mean=self.prior_mean)
        return self._as_kept(sa.literal(exact, sa.Double))

    @property
    def rescored(self) -> sa.Select[Any]:
        """Rows to write for items that have events: `item`, `old` and `new` score, number of `events`."""
        total, events = self.tallies.c.total, self.tallies.c.events
        exact = score_sql(self.formula, total=total, count=events, prior_mean=self.prior_mean)
        scored = sa.select(self.tallies.c.item, self._as_kept(exact).label("new"), events).subquery("scored")
        return (
            sa.select(scored.c.item, self.columns.score.label("old"), scored.c.new, scored.c.events)
            .select_from(scored.outerjoin(self.columns.target, self.columns.item == scored.c.item))
            .where(self._differs(score=scored.c.new, events=scored.c.events))
        )

    @property
    def emptied(self) -> sa.Select[Any]:
        """Rows to write for items that have no events any more, in the columns of `rescored`."""
        item, old, tallied = self.columns.item, self.columns.score, self.tallies.c.item
        new, events = self.empty_score, sa.literal(0)
        return (
            sa.select(item.label("item"), old.label("old"), new.label("new"), events.label("events"))
            .select_from(self.columns.target.outerjoin(self.tallies, item == tallied))
            .where(item.is_not(None), tallied.is_(None), self._differs(score=new, events=events))
        )

    def upsert(self, *, dialect: Dialect) -> sa.Insert:
        """Writes the rows of `rescored`."""
        # They are filtered before, because ON CONFLICT locks (and so writes) even a row that its WHERE leaves alone,
        # and uses up a number of the table's sequence. Its WHERE is for rows that somebody else wrote meanwhile.
        columns, rows = self.columns, self.rescored.subquery("rescored")
        # WHERE true: without it SQLite takes ON CONFLICT for the condition of a join.
        changed = sa.select(rows.c.item, rows.c.new, rows.c.events).where(sa.true())
        names = [columns.item.name, columns.score.name, columns.count.name]
        insert = _INSERT[dialect](columns.target).from_select(names, changed)
        score, events = insert.excluded[columns.score.name], insert.excluded[columns.count.name]
        return insert.on_conflict_do_update(
            index_elements=[columns.item],
            set_={columns.score.name: score, columns.count.name: events},
            where=self._differs(score=score, events=events),
        )

    def empty(self) -> sa.Update:
        """Writes the rows of `emptied`, after those of `rescored` were written."""
        # By then every item that has events has a row that is not empty. If no other row is, the join is spared.
        item, score, events = self.columns.item, self.empty_score, sa.literal(0)
        filled = sa.select(sa.func.count()).where(
            item.is_not(None), self._differs(score=score, events=events)
        )
        rows = self.emptied.subquery("emptied")
        return (
            sa.update(self.columns.target)
            .where(item.in_(sa.select(rows.c.item).where(filled.scalar_subquery() > self.totals.items)))
            .values({self.columns.score: score, self.columns.count: events})
        )

    def _differs(
        self, *, score: sa.ColumnElement[Any], events: sa.ColumnElement[int]
    ) -> sa.ColumnElement[bool]:
        return sa.or_(self.columns.score.is_distinct_from(score), self.columns.count.is_distinct_from(events))

    def _as_kept(self, exact: sa.ColumnElement[float]) -> sa.ColumnElement[Any]:
        # A NUMERIC column rounds: compared unrounded, its scores would be written anew in every run.
        return sa.type_coerce(sa.cast(exact, self.columns.score_type), self.columns.score.type)
