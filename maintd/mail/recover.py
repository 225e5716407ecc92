"""Taking over a batch whose sender vanished: what was on the wire becomes doubtful, the rest is free again."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.engine import Connection

from maintd.ledger import batches, campaigns, deliveries
from maintd.ledger.batches import Batch
from maintd.ledger.campaigns import Campaign
from maintd.ledger.states import DeliveryState

_CANCELLED = "the campaign was cancelled"


def recover(connection: Connection, batch: Batch, *, now: datetime) -> int | None:
    """Ends the claim of a vanished sender and names what nobody can know.

    Below the mark and unsettled means: its dot may have been written. Above the mark means: it certainly was not.

    Args:
        connection: Of the ledger; everything happens in its transaction.
        batch: As it was last seen, its counter standing still.
        now: When the doubts are dated.

    Returns:
        How many deliveries became doubtful; None when the sender turned out to be alive.
    """
    if not batches.take_from_the_dead(connection, batch):
        return None
    # `batch.wire_hi` is up to date: the mark moves together with the counter, which the line above compared.
    doubtful = deliveries.settle_range(
        connection,
        batch.campaign_id,
        lo=batch.lo,
        hi=batch.wire_hi,
        to=DeliveryState.UNCERTAIN,
        now=now,
        detail=f"its sender ({batch.owner}) vanished while the message may have been handed over",
    )
    if doubtful:
        campaign = campaigns.get(connection, batch.campaign_id)
        resend_as_allowed(connection, campaign, lo=batch.lo, hi=batch.wire_hi, now=now)
    return doubtful


def resend_as_allowed(connection: Connection, campaign: Campaign, *, lo: int, hi: int, now: datetime) -> None:
    """Puts doubtful deliveries of a range back into the line, if the campaign's policy is to lose none."""
    if campaign.spec["uncertain"] == "never_lose":
        copies = campaign.spec["max_copies"]
        deliveries.resend_doubtful(connection, campaign.id, lo=lo, hi=hi, now=now, max_copies=copies)


def settle_cancelled(connection: Connection, *, now: datetime, limit: int) -> int:
    """Settles what cancelled campaigns had with a sender, now that it let go or was found dead.

    Args:
        connection: Of the ledger.
        now: When the cancellations are dated.
        limit: Batches to look at.

    Returns:
        How many deliveries were cancelled.
    """
    settled = 0
    for batch in batches.left_by_cancelled(connection, limit=limit):
        settled += deliveries.cancel_range(
            connection,
            batch.campaign_id,
            lo=batch.lo,
            hi=batch.hi,
            now=now,
            detail=_CANCELLED,
        )
        batches.close_left(connection, batch)
    return settled + deliveries.cancel_deferred(connection, now=now, detail=_CANCELLED)


def put_back_in_line(connection: Connection, *, now: datetime, limit: int) -> int:
    """Brings deferred deliveries of every sending campaign whose time has come back into its line.

    Returns:
        How many came back.
    """
    return sum(
        deliveries.put_back_in_line(connection, campaign.id, now=now, limit=limit)
        for campaign in campaigns.sending(connection)
    )
