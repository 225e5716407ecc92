"""Deliveries, the dedup record: one row for each recipient of a campaign, written once more with its outcome."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from maintd.database import insert_many
from maintd.ledger import lines
from maintd.ledger.acceptances import settle_accepted
from maintd.ledger.lines import OTHERS, Stretch
from maintd.ledger.states import DELIVERY_MOVES, BatchState, CampaignState, DeliveryState, sources
from maintd.ledger.tables import HAS_LANE, IS_OPEN, batches, campaigns, deliveries, suppressions


class Delivery(NamedTuple):
    """A delivery as the ledger has it; see `tables.deliveries` for what each column means.

    A tuple, because a row becomes one in no time, and every message is such a row.
    """

    campaign_id: int
    ordinal: int
    recipient_key: bytes
    address: str
    recipient: str | None
    lane: int
    fields: dict[str, Any]
    state: DeliveryState
    copies: int
    failures: int
    failure: str | None
    deferred_at: datetime | None
    due_at: datetime | None
    settled_at: datetime | None
    phase: str | None
    code: int | None
    enhanced: str | None
    detail: str | None


_KEY_OCTETS = 16
_ROWS = sa.select(*(deliveries.c[name] for name in Delivery._fields))


def _deliveries(connection: Connection, query: sa.Select[Any]) -> list[Delivery]:
    return list(map(Delivery._make, connection.execute(query).all()))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a delivery, as it is written into its row.

    Attributes:
        ordinal: The place in the line that the attempt had: sent again, a delivery has another one.
        state: The state it moves to.
        fact: A reply of the relay was read. A fact is merged into any state that allows the move; what is only
            inferred applies to a delivery that is still pending.
        failure: Of what type it is, if it is one.
        counted: Of a deferred one: whether that counts among its failures.
        due_at: Of a deferred one: when it comes back.
    """

    recipient_key: bytes
    ordinal: int
    state: DeliveryState
    fact: bool
    failure: str | None = None
    counted: bool = True
    phase: str | None = None
    code: int | None = None
    enhanced: str | None = None
    detail: str | None = None
    due_at: datetime | None = None


def enrolled_keys(connection: Connection, campaign_id: int, keys: Sequence[bytes]) -> set[bytes]:
    """Which of these recipients the campaign has already."""
    return _found(connection, deliveries.c.recipient_key, keys, _within_campaign(campaign_id))


def suppressed_keys(connection: Connection, keys: Sequence[bytes]) -> set[bytes]:
    """Which of these recipients are on the suppression list."""
    return _found(connection, suppressions.c.recipient_key, keys)


def _found(
    connection: Connection,
    column: sa.Column[bytes],
    keys: Sequence[bytes],
    *conditions: sa.ColumnElement[bool],
) -> set[bytes]:
    """Which of these keys a column has, by one look into its unique index for each."""
    key = _as_rows(keys)
    following = _following(column, key, *conditions).with_only_columns(column).scalar_subquery()
    return set(connection.scalars(sa.select(key).where(following == key)).all())


def _following(
    column: sa.Column[bytes], key: sa.ColumnElement[bytes], *conditions: sa.ColumnElement[bool]
) -> sa.Select[Any]:
    """The first row whose key is that one or comes after it: the row of that key, if there is one."""
    # No join, no IN, no equality: PostgreSQL may know next to nothing of a table that is being filled, and would answer
    # them by walking through a whole campaign. What comes next in the order of an index is found by that index.
    return sa.select(column.table).where(column >= key, *conditions).order_by(column).limit(1)


def _within_campaign(campaign_id: int) -> sa.ColumnElement[bool]:
    """A campaign in which recipients are looked up, each by the index of keys."""
    # Of a campaign that it has not heard of yet PostgreSQL believes that it has nobody, and walks through it as soon as
    # another index is the flatter one. What a query says may be any campaign to it, of average size.
    return deliveries.c.campaign_id == sa.select(sa.literal(campaign_id)).scalar_subquery()


def _as_rows(keys: Sequence[bytes]) -> sa.ColumnElement[bytes]:
    """Keys as rows, cut from one parameter: one parameter for each would take the drivers longer than the look-ups."""
    joined = sa.literal(b"".join(keys), sa.LargeBinary)
    first = sa.select(sa.literal(0).label("number")).cte("numbers", recursive=True)
    number = first.union_all(sa.select(first.c.number + 1).where(first.c.number + 1 < len(keys))).c.number
    return sa.func.substr(joined, number * _KEY_OCTETS + 1, _KEY_OCTETS, type_=sa.LargeBinary)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a recipient stands in one campaign."""

    recipient_key: bytes
    campaign_id: int
    ordinal: int
    state: DeliveryState


def places(connection: Connection, campaign_ids: Sequence[int], keys: Sequence[bytes]) -> list[Place]:
    """The deliveries of these campaigns to these recipients, the older campaign first."""
    return [place for one in sorted(campaign_ids) for place in _places(connection, one, keys)]


def states(connection: Connection, campaign_id: int, keys: Sequence[bytes]) -> dict[bytes, DeliveryState]:
    """How a campaign's deliveries to these recipients stand; who is not enrolled is left out."""
    return {place.recipient_key: place.state for place in _places(connection, campaign_id, keys)}


def _places(connection: Connection, campaign_id: int, keys: Sequence[bytes]) -> Iterator[Place]:
    key = _as_rows(list(set(keys)))
    following = _following(deliveries.c.recipient_key, key, _within_campaign(campaign_id))
    found, ordinal, state = (
        following.with_only_columns(deliveries.c[name]).scalar_subquery()
        for name in ("recipient_key", "ordinal", "state")
    )
    rows = connection.execute(sa.select(key, ordinal, state).where(found == key))
    return (Place(recipient_key=k, campaign_id=campaign_id, ordinal=at, state=was) for k, at, was in rows)


def insert(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Enrols a chunk of rows with the same columns; a recipient that the campaign has is an integrity error."""
    if rows:
        insert_many(connection, deliveries, rows)


def wipe(connection: Connection, campaign_id: int, *, lo: int, limit: int) -> int | None:
    """Deletes the next deliveries of an enrolment that was cut off before anything was sent.

    Args:
        connection: Of the ledger.
        campaign_id: The campaign, which must be enrolling.
        lo: Where to begin: what was deleted before that is not walked through again.
        limit: How many to delete.

    Returns:
        Where to go on; None when nothing is left, or it is no enrolment.
    """
    enrolling = sa.exists().where(campaigns.c.id == campaign_id, campaigns.c.state == CampaignState.ENROLLING)
    chunk = (
        sa.select(deliveries.c.ordinal)
        .where(deliveries.c.campaign_id == campaign_id, deliveries.c.ordinal >= lo, enrolling)
        .order_by(deliveries.c.ordinal)
        .limit(limit)
    )
    last = connection.scalar(sa.select(sa.func.max(chunk.subquery().c.ordinal)))
    if last is None:
        return None
    connection.execute(
        sa.delete(deliveries).where(
            deliveries.c.campaign_id == campaign_id,
            deliveries.c.ordinal.between(lo, last),
            enrolling,
        )
    )
    return int(last) + 1


def pending(connection: Connection, stretch: Stretch) -> list[Delivery]:
    """The unsettled deliveries of a stretch, in order."""
    return _deliveries(connection, _ROWS.where(_pending_in(stretch)).order_by(deliveries.c.ordinal))


def pending_keys(connection: Connection, stretch: Stretch) -> set[bytes]:
    """The recipients of a stretch whose deliveries are unsettled."""
    # In the order of the line, so that PostgreSQL reads this stretch of it and not the whole campaign.
    in_line = sa.select(deliveries.c.recipient_key).where(_pending_in(stretch)).order_by(deliveries.c.ordinal)
    return set(connection.scalars(in_line).all())


def suppress(connection: Connection, stretch: Stretch, *, now: datetime) -> set[bytes]:
    """Settles as suppressed whoever of a stretch came onto the suppression list since the enrolment.

    Returns:
        The recipients of the stretch whose deliveries are still unsettled.
    """
    keys = pending_keys(connection, stretch)
    listed = suppressed_keys(connection, list(keys))
    if listed:
        connection.execute(
            sa.update(deliveries)
            .where(_pending_in(stretch), deliveries.c.recipient_key.in_(listed))
            .values(state=DeliveryState.SUPPRESSED, settled_at=now, detail="suppressed after enrolment")
        )
    return keys - listed


def settle_range(
    connection: Connection, stretch: Stretch, *, to: DeliveryState, now: datetime, detail: str
) -> int:
    """Moves every unsettled delivery of a stretch; returns how many.

    What was refused before keeps the relay's last words behind the detail.
    """
    assert to in DELIVERY_MOVES[DeliveryState.PENDING]
    said_before = sa.literal(f"{detail}; before: ") + deliveries.c.detail
    changed = connection.execute(
        sa.update(deliveries)
        .where(_pending_in(stretch))
        .values(
            state=to,
            settled_at=now,
            detail=sa.case((deliveries.c.code.is_not(None), said_before), else_=detail),
        )
    )
    return changed.rowcount


def settle(connection: Connection, campaign_id: int, outcomes: Iterable[Outcome], *, now: datetime) -> None:
    """Writes outcomes. A row whose state does not allow the move is left as it is.

    An acceptance holds for the recipient, whichever attempt it answers. Anything else is said of one attempt only: it
    does not touch a delivery that has gone back into the line since, and so has another ordinal.
    """
    groups: dict[tuple[DeliveryState, bool], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.state, outcome.fact), []).append(outcome)
    for (state, fact), group in groups.items():
        accepted = fact and state is DeliveryState.SENT
        if accepted and settle_accepted(connection, campaign_id, group, now=now):
            continue
        allowed = sources(DELIVERY_MOVES, state) if fact else [DeliveryState.PENDING]
        attempt = sa.true() if accepted else deliveries.c.ordinal == sa.bindparam("at")
        statement = (
            sa.update(deliveries)
            .where(
                _within_campaign(campaign_id),
                deliveries.c.recipient_key == sa.bindparam("key"),
                # Spelled out, because an IN of several values cannot be executed for many rows at once.
                sa.or_(*(deliveries.c.state == state for state in allowed)),
                attempt,
            )
            .values(state=state, settled_at=now, **_failed(state, now=now), **_SETTLED)
        )
        connection.execute(statement, [_parameters(outcome) for outcome in group])


_SETTLED_WITH = ("phase", "code", "enhanced", "detail", "due_at")
_SETTLED: dict[str, Any] = {name: sa.bindparam(f"to_{name}") for name in _SETTLED_WITH}
_FAILED = (DeliveryState.DEFERRED, DeliveryState.REJECTED)


def _failed(state: DeliveryState, *, now: datetime) -> dict[str, Any]:
    """What a failure leaves in a row; it stays there when a later attempt succeeds."""
    if state not in _FAILED:
        return {}
    values: dict[str, Any] = {"failure": sa.bindparam("to_failure")}
    if state is DeliveryState.DEFERRED:
        first = sa.func.coalesce(deliveries.c.deferred_at, sa.literal(now, deliveries.c.deferred_at.type))
        values |= {"failures": deliveries.c.failures + sa.bindparam("counted"), "deferred_at": first}
    return values


def _parameters(outcome: Outcome) -> dict[str, Any]:
    parameters = {f"to_{name}": getattr(outcome, name) for name in _SETTLED_WITH}
    parameters |= {"key": outcome.recipient_key, "at": outcome.ordinal}
    if outcome.state in _FAILED:
        parameters["to_failure"] = outcome.failure
    if outcome.state is DeliveryState.DEFERRED:
        parameters["counted"] = int(outcome.counted)
    return parameters


def doubt(
    connection: Connection, campaign_id: int, keys: Sequence[bytes], *, now: datetime, detail: str
) -> int:
    """Settles as uncertain whoever of these recipients is not settled, in the line or to come back into it."""
    changed = connection.execute(
        sa.update(deliveries)
        .where(
            _within_campaign(campaign_id),
            deliveries.c.recipient_key.in_(keys),
            deliveries.c.state.in_(sources(DELIVERY_MOVES, DeliveryState.UNCERTAIN)),
        )
        .values(state=DeliveryState.UNCERTAIN, settled_at=now, due_at=None, phase="dot", detail=detail)
    )
    return changed.rowcount


def put_back_in_line(connection: Connection, campaign_id: int, *, now: datetime, limit: int) -> int:
    """Gives deferred deliveries whose time has come new ordinals at the tail, each in its own lane.

    Returns:
        How many came back.
    """
    tail = connection.scalars(
        # Not from being referred to: see `campaigns.lock_row`.
        sa.select(campaigns.c.tail).where(campaigns.c.id == campaign_id).with_for_update(key_share=True)
    ).one()
    due = connection.execute(
        sa.select(deliveries.c.recipient_key, deliveries.c.ordinal, deliveries.c.lane)
        .where(
            deliveries.c.campaign_id == campaign_id,
            IS_OPEN,
            deliveries.c.state == DeliveryState.DEFERRED,
            deliveries.c.due_at <= now,
        )
        .order_by(deliveries.c.due_at)
        .limit(limit)
    ).all()
    if not due:
        return 0
    connection.execute(
        sa.update(deliveries)
        .where(
            # Key and place, so that either index finds it in one step, whatever PostgreSQL believes of this campaign.
            deliveries.c.campaign_id == campaign_id,
            deliveries.c.recipient_key == sa.bindparam("key"),
            deliveries.c.ordinal == sa.bindparam("was_at"),
            # As a query, or it would walk through all that is open for each: it believes that to be next to nothing.
            deliveries.c.state == sa.select(sa.literal(DeliveryState.DEFERRED)).scalar_subquery(),
        )
        .values(state=DeliveryState.PENDING, ordinal=sa.bindparam("at"), due_at=None, settled_at=None),
        [
            {"key": one.recipient_key, "was_at": one.ordinal, "at": tail + place}
            for place, one in enumerate(due)
        ],
    )
    connection.execute(sa.update(campaigns).where(campaigns.c.id == campaign_id).values(tail=tail + len(due)))
    lines.extend(connection, campaign_id, {one.lane: tail + place for place, one in enumerate(due, start=1)})
    return len(due)


def cancel_deferred(connection: Connection, *, now: datetime, detail: str) -> int:
    """Settles what cancelled campaigns have deferred: it will not come back into a line."""
    cancelled = sa.select(campaigns.c.id).where(campaigns.c.state == CampaignState.CANCELLED)
    changed = connection.execute(
        sa.update(deliveries)
        .where(
            IS_OPEN,
            deliveries.c.state == DeliveryState.DEFERRED,
            deliveries.c.campaign_id.in_(cancelled),
        )
        .values(state=DeliveryState.CANCELLED, settled_at=now, detail=detail, due_at=None)
    )
    return changed.rowcount


def resend_doubtful(connection: Connection, stretch: Stretch, *, now: datetime, max_copies: int) -> int:
    """Policy `never_lose`: doubtful deliveries of a stretch go back into the line while copies are left."""
    changed = connection.execute(
        sa.update(deliveries)
        .where(
            _within(stretch),
            deliveries.c.state == DeliveryState.UNCERTAIN,
            # The first message is a copy too: max_copies = 3 allows two more.
            deliveries.c.copies + 1 < max_copies,
        )
        .values(state=DeliveryState.DEFERRED, due_at=now, copies=deliveries.c.copies + 1)
    )
    return changed.rowcount


def counts(connection: Connection, campaign_id: int) -> dict[DeliveryState, int]:
    """How many deliveries stand in each state; every state is there, and their sum is what was enrolled."""
    query = (
        sa.select(deliveries.c.state, sa.func.count())
        .where(deliveries.c.campaign_id == campaign_id)
        .group_by(deliveries.c.state)
    )
    found: dict[DeliveryState, int] = dict(connection.execute(query).all())
    return {state: found.get(state, 0) for state in DeliveryState}


def find(connection: Connection, recipient_key: bytes) -> list[Delivery]:
    """Every delivery to one recipient, the newest campaign first."""
    query = (
        _ROWS
        # By way of the campaigns, so that each look-up is one step in the index (campaign, recipient).
        .join(campaigns, campaigns.c.id == deliveries.c.campaign_id)
        .where(deliveries.c.recipient_key == recipient_key)
        .order_by(campaigns.c.id.desc())
    )
    return _deliveries(connection, query)


def uncertain(connection: Connection, *, campaign_id: int | None, limit: int) -> list[Delivery]:
    """The doubtful deliveries, of one campaign or of all."""
    query = (
        _ROWS.where(IS_OPEN, deliveries.c.state == DeliveryState.UNCERTAIN)
        # The sum keeps SQLite from walking the whole campaign for the sake of the order.
        .order_by(deliveries.c.campaign_id, deliveries.c.ordinal + 0)
        .limit(limit)
    )
    if campaign_id is not None:
        query = query.where(deliveries.c.campaign_id == campaign_id)
    return _deliveries(connection, query)


def of_campaign(
    connection: Connection, campaign_id: int, *, state: DeliveryState | None, limit: int
) -> list[Delivery]:
    """The first deliveries of a campaign's line, of one state or of all."""
    query = _ROWS.where(deliveries.c.campaign_id == campaign_id).order_by(deliveries.c.ordinal).limit(limit)
    if state is not None:
        query = query.where(deliveries.c.state == state)
    return _deliveries(connection, query)


def cancel_range(connection: Connection, stretch: Stretch, *, now: datetime, detail: str) -> int:
    """Settles as cancelled what a stretch has unsettled, but nothing of a batch that a sender holds.

    The campaign must have been cancelled in an earlier transaction: then nobody can put a delivery of a batch that
    is not held on the wire any more, while of a held one some may just be there.

    Returns:
        How many were cancelled.
    """
    held = sa.exists().where(
        batches.c.campaign_id == stretch.campaign_id,
        batches.c.lane == deliveries.c.lane,
        batches.c.state == BatchState.OPEN,
        batches.c.token.is_not(None),
        batches.c.lo <= deliveries.c.ordinal,
        deliveries.c.ordinal < batches.c.hi,
    )
    changed = connection.execute(
        sa.update(deliveries)
        .where(
            _within(stretch),
            sa.or_(
                deliveries.c.state == DeliveryState.DEFERRED,
                sa.and_(deliveries.c.state == DeliveryState.PENDING, ~held),
            ),
        )
        .values(
            state=DeliveryState.CANCELLED,
            settled_at=now,
            due_at=None,
            detail=sa.case(
                (deliveries.c.copies > 0, f"{detail}; an earlier copy may have arrived"), else_=detail
            ),
        )
    )
    return changed.rowcount


def resolve(
    connection: Connection,
    campaign_id: int,
    recipient_key: bytes,
    *,
    to: DeliveryState,
    now: datetime,
    detail: str,
) -> bool:
    """A person's word on a doubtful delivery; False when it is not doubtful (any more).

    One that is to be sent again is deferred until now: it comes back into the line with a new ordinal.
    """
    one = deliveries.c.recipient_key == recipient_key
    return _resolve(connection, campaign_id, one, to=to, now=now, detail=detail) == 1


def resolve_range(
    connection: Connection,
    campaign_id: int,
    *,
    lo: int,
    hi: int,
    to: DeliveryState,
    now: datetime,
    detail: str,
) -> int:
    """A person's word on every doubtful delivery of a range of ordinals; returns how many there were."""
    some = sa.and_(deliveries.c.ordinal >= lo, deliveries.c.ordinal < hi)
    return _resolve(connection, campaign_id, some, to=to, now=now, detail=detail)


def _resolve(
    connection: Connection,
    campaign_id: int,
    which: sa.ColumnElement[bool],
    *,
    to: DeliveryState,
    now: datetime,
    detail: str,
) -> int:
    assert to in DELIVERY_MOVES[DeliveryState.UNCERTAIN]
    values: dict[str, Any] = {"state": to, "settled_at": now, "detail": detail}
    if to is DeliveryState.DEFERRED:
        values |= {"due_at": now, "deferred_at": None, "copies": deliveries.c.copies + 1}
    changed = connection.execute(
        sa.update(deliveries)
        .where(deliveries.c.campaign_id == campaign_id, which, deliveries.c.state == DeliveryState.UNCERTAIN)
        .values(**values)
    )
    return changed.rowcount


def _pending_in(stretch: Stretch) -> sa.ColumnElement[bool]:
    return sa.and_(_within(stretch), deliveries.c.state == DeliveryState.PENDING)


def _within(stretch: Stretch) -> sa.ColumnElement[bool]:
    inside = sa.and_(
        deliveries.c.campaign_id == stretch.campaign_id,
        deliveries.c.ordinal >= stretch.lo,
        deliveries.c.ordinal < stretch.hi,
    )
    if stretch.lane is None:
        return inside
    of_lane = sa.and_(inside, deliveries.c.lane == stretch.lane)
    return of_lane if stretch.lane == OTHERS else sa.and_(of_lane, HAS_LANE)
