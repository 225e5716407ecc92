"""Batches: a claimed range of ordinals of one lane of a campaign is one row, however many deliveries it spans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from maintd.errors import ClaimLost
from maintd.ledger.lines import OTHERS, Stretch
from maintd.ledger.states import BatchState, CampaignState
from maintd.ledger.tables import HAS_LANE, batches, campaigns, deliveries, lines


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A range of ordinals and who holds it. It speaks of the deliveries of its lane only.

    Attributes:
        lane: Of the campaign's lines, the one it is cut from.
        lo: First ordinal.
        hi: Ordinal after the last.
        wire_hi: A dot may have been written for any unsettled ordinal below this one.
        token: The holder's; None when nobody holds it.
        counter: Moved by the living holder; a judge watches whether it stops.
        recorder: The flight recorder of the last holder: what it says of this batch is evidence.
        losses: How many of its holders vanished.
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
    losses: int

    @property
    def stretch(self) -> Stretch:
        """All of its deliveries."""
        return Stretch(campaign_id=self.campaign_id, lane=self.lane, lo=self.lo, hi=self.hi)

    @property
    def marked(self) -> Stretch:
        """Those below its mark."""
        return Stretch(campaign_id=self.campaign_id, lane=self.lane, lo=self.lo, hi=self.wire_hi)


class NotSending(ClaimLost):
    """The campaign was paused, cancelled or finished: no further window may go to the wire."""


def claim(
    connection: Connection,
    campaign_id: int,
    *,
    lane: int = OTHERS,
    size: int,
    token: str,
    owner: str,
    recorder: str | None = None,
) -> Batch | None:
    """Takes a range of a lane that its holder left, else cuts the next one from the line.

    Returns:
        None when there is nothing to take.
    """
    holder = {"token": token, "owner": owner, "recorder": recorder}
    return _claim_left(connection, campaign_id, lane, holder) or _cut(
        connection, campaign_id, lane, holder, size=size
    )


def _claim_left(
    connection: Connection, campaign_id: int, lane: int, holder: Mapping[str, str | None]
) -> Batch | None:
    left = sa.and_(
        batches.c.campaign_id == campaign_id,
        batches.c.lane == lane,
        batches.c.state == BatchState.OPEN,
        batches.c.token.is_(None),
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
        .values(**holder, counter=batches.c.counter + 1)
    )
    return get(connection, candidate) if taken.rowcount == 1 else None


def _cut(
    connection: Connection, campaign_id: int, lane: int, holder: Mapping[str, str | None], *, size: int
) -> Batch | None:
    one_line = sa.and_(lines.c.campaign_id == campaign_id, lines.c.lane == lane)
    sends = sa.exists().where(campaigns.c.id == campaign_id, campaigns.c.state == CampaignState.SENDING)
    line = connection.execute(
        # Locked, so that whoever cuts at the same time cuts the next range and does not go home with none.
        sa.select(lines.c.cut, lines.c.tail).where(one_line, sends).with_for_update()
    ).first()
    if line is None or line.cut >= line.tail:
        return None
    rest = Stretch(campaign_id=campaign_id, lane=lane, lo=line.cut, hi=line.tail)
    hi = _end_of_next(connection, rest, size=size)
    moved = connection.execute(
        sa.update(lines).where(one_line, lines.c.cut == line.cut, sends).values(cut=hi)
    )
    if moved.rowcount != 1:
        return None
    values = {
        "campaign_id": campaign_id,
        "lane": lane,
        "lo": line.cut,
        "hi": hi,
        "wire_hi": line.cut,
        "state": BatchState.OPEN,
        **holder,
    }
    return get(
        connection, connection.scalars(sa.insert(batches).values(values).returning(batches.c.id)).one()
    )


def _end_of_next(connection: Connection, rest: Stretch, *, size: int) -> int:
    """Where the next range ends. What a lane of its own has may stand far apart, and is counted one by one."""
    if rest.lane == OTHERS:
        return min(rest.lo + size, rest.hi)
    ordinals = connection.scalars(
        sa.select(deliveries.c.ordinal)
        .where(
            deliveries.c.campaign_id == rest.campaign_id,
            deliveries.c.lane == rest.lane,
            HAS_LANE,
            deliveries.c.ordinal >= rest.lo,
            deliveries.c.ordinal < rest.hi,
        )
        .order_by(deliveries.c.ordinal)
        .limit(size)
    ).all()
    return ordinals[-1] + 1 if len(ordinals) == size else rest.hi


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
    found = find(connection, batch.id)
    if found is not None and found.token == batch.token:
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
        .values(token=None, owner=None, wire_hi=batches.c.lo, losses=batches.c.losses + 1)
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


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A line of which a range could be claimed now.

    Attributes:
        campaign: What people call its campaign.
        lane: Of the campaign's lines, which it is.
        name: Of the lane.
        urgent: Whether its campaign is.
        limit: The campaign's own, as its job file writes it.
        expires_at: Of the campaign: what was not sent by then never is.
    """

    campaign_id: int
    campaign: str
    lane: int
    name: str
    urgent: bool
    limit: str | None
    expires_at: datetime | None

    @property
    def place(self) -> tuple[int, int]:
        """Campaign and lane: what tells lines apart, and orders them."""
        return self.campaign_id, self.lane

    def has_expired(self, now: datetime) -> bool:
        """Whether nothing of it is to be sent any more."""
        return self.expires_at is not None and self.expires_at <= now


def ready(connection: Connection, *, urgent: bool) -> list[Ready]:
    """The lines of sending campaigns of that urgency of which a range could be claimed now, the oldest first."""
    left = sa.exists().where(
        batches.c.campaign_id == lines.c.campaign_id,
        batches.c.lane == lines.c.lane,
        batches.c.state == BatchState.OPEN,
        batches.c.token.is_(None),
    )
    query = (
        sa.select(
            *(lines.c.campaign_id, lines.c.lane, lines.c.name, campaigns.c.urgent, campaigns.c.expires_at),
            (campaigns.c.job + "/" + campaigns.c.edition).label("campaign"),
            campaigns.c.spec["limit"].as_string().label("limit"),
        )
        .join(campaigns, campaigns.c.id == lines.c.campaign_id)
        .where(
            campaigns.c.state == CampaignState.SENDING,
            campaigns.c.urgent.is_(urgent),
            sa.or_(lines.c.cut < lines.c.tail, left),
        )
        .order_by(lines.c.campaign_id, lines.c.lane)
    )
    return [Ready(**row) for row in connection.execute(query).mappings()]
