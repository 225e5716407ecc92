"""Allowances: what was taken of each limit, one row a limit, counted in the transaction that uses it.

Rows are locked in the order of their names, late in a transaction, and nothing else is locked after them but by
statements that everybody ends with: so nobody waits in a ring.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from maintd.ledger.tables import allowances

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def of_campaign(campaign_id: int) -> str:
    """What the limits that hold for a campaign alone are called; behind it comes the stretch of time."""
    return f"campaign {campaign_id}"


def forget_campaign(connection: Connection, campaign_id: int) -> None:
    """Deletes what was taken of the limits of a campaign that is over."""
    own = allowances.c.name.startswith(f"{of_campaign(campaign_id)} ")
    connection.execute(sa.delete(allowances).where(own))


def read(connection: Connection, names: Collection[str]) -> dict[str, Any]:
    """What is kept under these names; a name that nobody used is not there."""
    return _found(connection, sa.select(allowances).where(allowances.c.name.in_(names)))


def lock(connection: Connection, names: Collection[str]) -> dict[str, Any]:
    """What is kept under these names, and stays so until the transaction ends; None where there is nothing yet."""
    # Made before any is locked: who waits for a row that another one is making must hold none that the other wants.
    missing = set(names) - read(connection, names).keys()
    if missing:
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        rows = [{"name": name, "used": None} for name in sorted(missing)]
        connection.execute(insert(allowances).values(rows).on_conflict_do_nothing())
    query = sa.select(allowances).where(allowances.c.name.in_(names)).order_by(allowances.c.name)
    return _found(connection, query.with_for_update())


def write(connection: Connection, kept: Mapping[str, Any]) -> None:
    """Keeps something under each of these names, which must be locked."""
    for name, used in sorted(kept.items()):
        connection.execute(sa.update(allowances).where(allowances.c.name == name).values(used=used))


def now_us(connection: Connection, *, host: datetime) -> int:
    """The time on the one clock that all who use this ledger share, in microseconds since 1970.

    On PostgreSQL it is the server's, as it is now and not as the transaction began; on SQLite there is one host.
    Asked for behind `lock`, it is not earlier than that of whoever had the rows before, unless the clock went back.

    Args:
        connection: Of the ledger.
        host: The time on the clock of this host.
    """
    if connection.dialect.name == "postgresql":
        host = connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
    return (host - _EPOCH) // _MICROSECOND


def _found(connection: Connection, query: sa.Select[Any]) -> dict[str, Any]:
    return {row.name: row.used for row in connection.execute(query)}
