"""The suppression list: who is never mailed. Addresses are kept as keyed digests only."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from maintd.ledger.tables import suppressions


def add(connection: Connection, recipient_key: bytes, *, reason: str, now: datetime) -> bool:
    """Lists a recipient; False when it was listed already."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    values = {"recipient_key": recipient_key, "reason": reason, "added_at": now}
    statement = insert(suppressions).values(values).on_conflict_do_nothing()
    # Not by the row count, which is not kept for an INSERT on PostgreSQL.
    return connection.execute(statement.returning(suppressions.c.recipient_key)).first() is not None


def remove(connection: Connection, recipient_key: bytes) -> bool:
    """Takes a recipient off the list; False when it was not on it."""
    gone = connection.execute(sa.delete(suppressions).where(suppressions.c.recipient_key == recipient_key))
    return gone.rowcount == 1


def find(connection: Connection, recipient_key: bytes) -> tuple[str, datetime] | None:
    """Why and since when a recipient is listed; None when it is not."""
    row = connection.execute(
        sa.select(suppressions.c.reason, suppressions.c.added_at).where(
            suppressions.c.recipient_key == recipient_key
        )
    ).first()
    return (row.reason, row.added_at) if row else None
