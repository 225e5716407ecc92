"""Acceptances: nearly all outcomes are such, and one statement writes those of a whole window."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection

from maintd.ledger.states import DELIVERY_MOVES, DeliveryState, sources
from maintd.ledger.tables import deliveries

if TYPE_CHECKING:
    from maintd.ledger.deliveries import Outcome

#: What is written of one, and by what its row is found.
_SAID = {
    "ordinal": sa.Integer, "key": sa.Text, "phase": sa.Text, "code": sa.SmallInteger, "enhanced": sa.Text,
    "detail": sa.Text,
}  # fmt: skip


def settle_accepted(
    connection: Connection, campaign_id: int, outcomes: Sequence[Outcome], *, now: datetime
) -> bool:
    """Writes acceptances of present attempts.

    Returns:
        Whether that were all of them. Else one belongs to an earlier attempt, or was known already.
    """
    on_postgresql = connection.dialect.name == "postgresql"
    said = (_said_on_postgresql if on_postgresql else _said_on_sqlite)(outcomes)
    key = deliveries.c.recipient_key
    ordinals = [outcome.ordinal for outcome in outcomes]
    statement = (
        sa.update(deliveries)
        .where(
            deliveries.c.campaign_id == campaign_id,
            deliveries.c.ordinal == said["ordinal"],
            (sa.func.encode(key, "hex") if on_postgresql else sa.func.lower(sa.func.hex(key))) == said["key"],
            # So that it walks through the window at most, whatever PostgreSQL believes of the table.
            deliveries.c.ordinal.between(min(ordinals), max(ordinals)),
            deliveries.c.state.in_(sources(DELIVERY_MOVES, DeliveryState.SENT)),
        )
        .values(
            state=DeliveryState.SENT,
            settled_at=now,
            due_at=None,
            **{name: said[name] for name in ("phase", "code", "enhanced", "detail")},
        )
    )
    return connection.execute(statement).rowcount == len(outcomes)


def _said_on_postgresql(outcomes: Sequence[Outcome]) -> Mapping[str, sa.ColumnElement[Any]]:
    """Outcomes as rows to join with, in one parameter."""
    columns: list[sa.ColumnClause[Any]] = [sa.column(name, type_) for name, type_ in _SAID.items()]
    record = sa.func.json_to_recordset(sa.cast(_json(outcomes), postgresql.JSON)).table_valued(*columns)
    return dict(record.render_derived(name="said", with_types=True).c)


def _said_on_sqlite(outcomes: Sequence[Outcome]) -> Mapping[str, sa.ColumnElement[Any]]:
    """Outcomes as rows to join with, in one parameter."""
    value = sa.func.json_each(_json(outcomes)).table_valued("value").c.value
    columns = [sa.func.json_extract(value, f"$.{name}").label(name) for name in _SAID]
    # With an offset SQLite reads them once, and not once for every row that they may belong to.
    return dict(sa.select(*columns).offset(0).subquery("said").c)


def _json(outcomes: Sequence[Outcome]) -> sa.BindParameter[str]:
    rows = [
        {name: getattr(outcome, name) for name in _SAID if name != "key"}
        | {"key": outcome.recipient_key.hex()}
        for outcome in outcomes
    ]
    return sa.literal(json.dumps(rows), sa.Text)
