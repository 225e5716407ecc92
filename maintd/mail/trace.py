"""What became of the mail to one recipient, and of single deliveries, as people ask for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.engine import Connection

from maintd.ledger import campaigns, deliveries, suppressions
from maintd.ledger.campaigns import Campaign
from maintd.ledger.deliveries import Delivery
from maintd.mail.address import Address
from maintd.mail.campaign import CampaignSpec
from maintd.mail.compose import message_id, sender_of
from maintd.mail.recipients import key_of


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A delivery with what it is called outside of the ledger.

    Attributes:
        campaign: The name of its campaign.
        message_id: Of its message, whether or not it was ever made.
    """

    campaign: str
    message_id: str
    delivery: Delivery


@dataclass(frozen=True, kw_only=True)
class Trace:
    """All that is known about one recipient.

    Attributes:
        deliveries: The newest first.
        suppressed: Why and since when the recipient is never mailed; None: is mailed.
    """

    deliveries: list[Traced]
    suppressed: tuple[str, datetime] | None


def trace(connection: Connection, address: Address) -> Trace:
    """Every delivery to an address, however it was written, in every campaign.

    Args:
        connection: Of the ledger.
        address: The recipient.
    """
    key = key_of(connection, address)
    return Trace(
        deliveries=with_names(connection, deliveries.find(connection, key)),
        suppressed=suppressions.find(connection, key),
    )


def with_names(connection: Connection, found: Iterable[Delivery]) -> list[Traced]:
    """Gives deliveries the names of their campaigns and their Message-IDs."""
    known: dict[int, tuple[Campaign, str]] = {}
    traced = []
    for delivery in found:
        if delivery.campaign_id not in known:
            campaign = campaigns.get(connection, delivery.campaign_id)
            known[campaign.id] = campaign, _domain(campaign)
        campaign, domain = known[delivery.campaign_id]
        identifier = message_id(campaign.uid, delivery.recipient_key, domain=domain)
        traced.append(Traced(campaign=campaign.name, message_id=identifier, delivery=delivery))
    return traced


def _domain(campaign: Campaign) -> str:
    return sender_of(CampaignSpec.model_validate(campaign.spec))[1].domain
