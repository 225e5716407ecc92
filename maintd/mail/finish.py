"""The end of a campaign of which nothing is left to send."""

from __future__ import annotations

import logging
from datetime import datetime

from maintd.database import Database
from maintd.ledger import campaigns, deliveries
from maintd.ledger.campaigns import Campaign
from maintd.ledger.states import DeliveryState

logger = logging.getLogger(__name__)


def finish_if_done(ledger: Database, campaign: Campaign, *, now: datetime) -> bool:
    """Finishes a sending campaign that has nothing left, and says so; whether it did."""
    with ledger.write() as connection:
        finished = campaigns.finish_if_done(connection, campaign.id, now=now)
    if finished:
        with ledger.read() as connection:
            _say(campaign, deliveries.counts(connection, campaign.id))
    return finished


def _say(campaign: Campaign, counts: dict[DeliveryState, int]) -> None:
    came_to = ", ".join(f"{count:,} {state}" for state, count in counts.items() if count)
    level = logging.WARNING if counts[DeliveryState.UNCERTAIN] else logging.INFO
    logger.log(
        level,
        "campaign %s has finished: %s",
        campaign.name,
        came_to or "nobody was to be mailed",
        extra={"campaign": campaign.name},
    )
