"""Batches: a claimed range of a campaign's ordinals is one row, however many deliveries it spans."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from maintd.errors import ClaimLost
from maintd.ledger.states import BatchState, CampaignState
from maintd.ledger.tables import batches, campaigns


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A range of ordinals and who holds it.

    Attributes:
        lane: Of the campaign's lines, the one it is cut from.
        lo: First ordinal.
        hi: Ordinal after the last.
        wire_hi: A dot may have been written for any unsettled ordinal below this one.
        token: The holder's; None when nobody holds it.
        counter: Moved by the living holder; a judge watches whether it stops.
        recorder: The flight recorder of the last holder: what it says of this batch is evidence.
    """

    id: int
    campaign_id: int
    lane: int
    lo: int
    hi: int
    wire_hi: int
    state: BatchState
    token: str | None
    counter: int
    owner: str | None
    recorder: str | None


class NotSending(ClaimLost):
    """The campaign was paused, cancelled or finished: no further window may go to the wire."""


def claim(
    connection: Connection,
    campaign_id: int,
    *,
    size: int,
    token: str,
    owner: str,
    recorder: str | None = None,
) -> Batch | None:
    """Takes a range that its holder left, else cuts the next one from the line.

    Returns:
        None when there is nothing to take.
    """
    return _claim_left(connection, campaign_id, token=token, owner=owner, recorder=recorder) or _cut(
        connection, campaign_id, size=size, token=token, owner=owner, recorder=recorder
    )


def _claim_left(
    connection: Connection, campaign_id: int, *, token: str, owner: str, recorder: str | None
) -> Batch | None:
    left = sa.and_(
        batches.c.campaign_id == campaign_id, batches.c.state == BatchState.OPEN, batches.c.token.is_(None)
    )
    candidate = connection.scalars(
        # Those that others are about to take are passed over, so that a loser looks no further in vain.
        sa.select(batches.c.id).where(left).order_by(batches.c.id).limit(1).with_for_update(skip_locked=True)
    ).first()
    if candidate is None:
        return None
    taken = connection.execute(
        sa.update(batches)
        .where(batches.c.id == candidate, left)
        .values(token=token, owner=owner, recorder=recorder, counter=batches.c.counter + 1)
    )
    return get(connection, candidate) if taken.rowcount == 1 else None


def _cut(
    connection: Connection, campaign_id: int, *, size: int, token: str, owner: str, recorder: str | None
) -> Batch | None:
    line = connection.execute(
        # Locked, so that whoever cuts at the same time cuts the next range and does not go home with none.
        sa.select(campaigns.c.cut, campaigns.c.tail)
        .where(campaigns.c.id == campaign_id, campaigns.c.state == CampaignState.SENDING)
        .with_for_update()
    ).first()
    if line is None or line.cut >= line.tail:
        return None
    hi = min(line.cut + size, line.tail)
    moved = connection.execute(
        sa.update(campaigns)
        .where(
            campaigns.c.id == campaign_id,
            campaigns.c.cut == line.cut,
            campaigns.c.state == CampaignState.SENDING,
        )
        .values(cut=hi)
    )
    if moved.rowcount != 1:
        return None
    values = {
        "campaign_id": campaign_id,
        "lo": line.cut,
        "hi": hi,
        "wire_hi": line.cut,
        "state": BatchState.OPEN,
        "token": token,
        "owner": owner,
        "recorder": recorder,
    }
    return get(
        connection, connection.scalars(sa.insert(batches).values(values).returning(batches.c.id)).one()
    )


def find(connection: Connection, batch_id: int) -> Batch | None:
    """The batch with that id, if there is one."""
    row = connection.execute(sa.select(batches).where(batches.c.id == batch_id)).mappings().first()
    return Batch(**row) if row else None


def get(connection: Connection, batch_id: int) -> Batch:
    """The batch with that id, which must exist."""
    batch = find(connection, batch_id)
    assert batch is not None, f"batch {batch_id} does not exist"
    return batch


def mark(connection: Connection, batch: Batch, *, wire_hi: int) -> None:
    """Says, before any dot of a window is written, that dots below `wire_hi` may be on the wire.

    Raises:
        ClaimLost: Somebody else took the batch over.
        NotSending: The campaign does not send (any more).
    """
    _hold(connection, batch, sending=True, wire_hi=wire_hi)


def beat(connection: Connection, batch: Batch) -> None:
    """Moves the counter, which says that the holder lives.

    Raises:
        ClaimLost: Somebody else took the batch over.
    """
    _hold(connection, batch, sending=False)


def done(connection: Connection, batch: Batch) -> None:
    """Closes a batch of which every delivery is settled.

    Raises:
        ClaimLost: Somebody else took the batch over.
        NotSending: The campaign does not send (any more); what is deferred must not be forgotten with the batch.
    """
    _hold(connection, batch, sending=True, state=BatchState.DONE, token=None)


def release(connection: Connection, batch: Batch, *, wire_hi: int) -> None:
    """Leaves a batch for anybody to take.

    Args:
        connection: Of the ledger.
        batch: The batch held.
        wire_hi: The holder knows that no unsettled delivery from here on has had its dot written.

    Raises:
        ClaimLost: Somebody else took the batch over.
    """
    _hold(connection, batch, sending=False, wire_hi=wire_hi, token=None)


def _hold(connection: Connection, batch: Batch, *, sending: bool, **values: object) -> None:
    conditions = [
        batches.c.id == batch.id,
        batches.c.token == batch.token,
        batches.c.state == BatchState.OPEN,
    ]
    if sending:
        conditions.append(
            sa.exists().where(campaigns.c.id == batch.campaign_id, campaigns.c.state == CampaignState.SENDING)
        )
    held = connection.execute(
        sa.update(batches).where(*conditions).values(counter=batches.c.counter + 1, **values)
    )
    if held.rowcount == 1:
        return
    if get(connection, batch.id).token == batch.token:
        raise NotSending(f"campaign {batch.campaign_id} does not send any more")
    raise ClaimLost(f"batch {batch.id} is no longer held by this process")


def held(connection: Connection) -> list[Batch]:
    """Every batch that somebody holds: what a judge of liveness looks at."""
    query = (
        sa.select(batches)
        .where(batches.c.state == BatchState.OPEN, batches.c.token.is_not(None))
        .order_by(batches.c.id)
    )
    return [Batch(**row) for row in connection.execute(query).mappings()]


def held_with(connection: Connection, recorder: str) -> list[Batch]:
    """The batches that are held by whoever writes that flight recorder."""
    return [batch for batch in held(connection) if batch.recorder == recorder]


def take_from_the_dead(connection: Connection, batch: Batch) -> bool:
    """Ends the claim of a holder whose counter stopped; False when it moved after all.

    The caller settles, in the same transaction, what may have been on the wire: what is not settled then was certainly
    not sent, and the mark goes back to the beginning.
    """
    taken = connection.execute(
        sa.update(batches)
        .where(
            batches.c.id == batch.id,
            batches.c.state == BatchState.OPEN,
            batches.c.token == batch.token,
            batches.c.counter == batch.counter,
        )
        .values(token=None, owner=None, wire_hi=batches.c.lo)
    )
    return taken.rowcount == 1


def left_by_cancelled(connection: Connection, *, limit: int) -> list[Batch]:
    """Open batches of cancelled campaigns that nobody holds."""
    query = (
        sa.select(batches)
        .join(campaigns, campaigns.c.id == batches.c.campaign_id)
        .where(
            campaigns.c.state == CampaignState.CANCELLED,
            batches.c.state == BatchState.OPEN,
            batches.c.token.is_(None),
        )
        .order_by(batches.c.id)
        .limit(limit)
    )
    return [Batch(**row) for row in connection.execute(query).mappings()]


def close_left(connection: Connection, batch: Batch) -> None:
    """Closes a batch that nobody holds and of which every delivery is settled."""
    connection.execute(
        sa.update(batches)
        .where(batches.c.id == batch.id, batches.c.token.is_(None))
        .values(state=BatchState.DONE)
    )


def ready(connection: Connection, *, urgent: bool) -> list[int]:
    """The sending campaigns of that urgency of which a range could be claimed now, the oldest first."""
    left = sa.exists().where(
        batches.c.campaign_id == campaigns.c.id, batches.c.state == BatchState.OPEN, batches.c.token.is_(None)
    )
    query = (
        sa.select(campaigns.c.id)
        .where(
            campaigns.c.state == CampaignState.SENDING,
            campaigns.c.urgent.is_(urgent),
            sa.or_(campaigns.c.cut < campaigns.c.tail, left),
        )
        .order_by(campaigns.c.id)
    )
    return list(connection.scalars(query))
