"""The end of a campaign of which nothing is left to send."""

from __future__ import annotations

import logging
from datetime import datetime

from maintd.database import Database
from maintd.errors import Unavailable
from maintd.ledger import campaigns, deliveries
from maintd.ledger.campaigns import Campaign
from maintd.ledger.states import DeliveryState

logger = logging.getLogger(__name__)


def finish_if_done(ledger: Database, campaign: Campaign, *, now: datetime) -> bool:
    """Finishes a sending campaign that has nothing left, and says so; whether it did."""
    with ledger.write() as connection:
        finished = campaigns.finish_if_done(connection, campaign.id, now=now)
    if finished:
        _say(campaign, _counts(ledger, campaign))
    return finished


def _counts(ledger: Database, campaign: Campaign) -> dict[DeliveryState, int] | None:
    try:
        with ledger.read() as connection:
            return deliveries.counts(connection, campaign.id)
    except Unavailable:  # it has finished all the same
        return None


def _say(campaign: Campaign, counts: dict[DeliveryState, int] | None) -> None:
    level = logging.WARNING if counts and counts[DeliveryState.UNCERTAIN] else logging.INFO
    came_to = _came_to(counts)
    logger.log(
        level, "campaign %s has finished: %s", campaign.name, came_to, extra={"campaign": campaign.name}
    )


def _came_to(counts: dict[DeliveryState, int] | None) -> str:
    if counts is None:
        return "the ledger does not answer what it came to"
    some = ", ".join(f"{count:,} {state}" for state, count in counts.items() if count)
    return some or "nobody was to be mailed"
