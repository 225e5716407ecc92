"""Instants that were due and did not run, as ranges with their reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from maintd.ledger.tables import misses


@dataclass(frozen=True, kw_only=True)
class Miss:
    """A range of a job's instants that did not run.

    Attributes:
        exact: False when there are at least `count` of them.
    """

    job: str
    first_at: datetime
    last_at: datetime
    count: int
    exact: bool
    reason: str


def record(connection: Connection, ranges: Sequence[Miss]) -> None:
    """Writes ranges down."""
    if ranges:
        connection.execute(sa.insert(misses), [miss.__dict__ for miss in ranges])


def latest(connection: Connection, *, job: str | None, limit: int) -> list[Miss]:
    """The newest ranges, of one job or of all, newest first."""
    columns = [misses.c[name] for name in Miss.__dataclass_fields__]
    query = sa.select(*columns).order_by(misses.c.last_at.desc()).limit(limit)
    if job is not None:
        query = query.where(misses.c.job == job)
    return [Miss(**row) for row in connection.execute(query).mappings()]
