"""A person's word on doubtful messages: they arrived, they are to be sent again, or they are let go."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum

from sqlalchemy.engine import Connection

from maintd.database import Database
from maintd.ledger import campaigns, deliveries
from maintd.ledger.campaigns import Campaign
from maintd.ledger.states import CampaignState, DeliveryState
from maintd.mail.address import Address
from maintd.mail.control import NotPossible
from maintd.mail.recipients import key_of

logger = logging.getLogger(__name__)

#: Ordinals in one transaction, and so the most deliveries that one of them changes.
_CHUNK = 2000


class Word(StrEnum):
    """What a person says of a doubtful message."""

    SENT = "sent"  #: it was found to have arrived, or counts as such
    RESEND = "resend"  #: it is sent again, at the risk of arriving twice
    DROP = "drop"  #: it is not sent again, whether it arrived or not


_STATES = {
    Word.SENT: DeliveryState.SENT,
    Word.RESEND: DeliveryState.DEFERRED,
    Word.DROP: DeliveryState.CANCELLED,
}
_DETAILS = {
    Word.SENT: "resolved by hand: sent",
    Word.RESEND: "resolved by hand: sent again",
    Word.DROP: "resolved by hand: dropped",
}


def resolve_one(ledger: Database, name: str, address: Address, word: Word, *, now: datetime) -> None:
    """Settles the doubt about one recipient of a campaign.

    Args:
        ledger: Where the doubt is.
        name: Of the campaign, or its id.
        address: The recipient.
        word: What to do. A message that is sent again goes to the end of the campaign's line at once; a campaign
            that had finished sends again until it has gone out, while its run stays what it is.
        now: The present instant.

    Raises:
        UsageError: There is no such campaign.
        NotPossible: The delivery is not doubtful, or the campaign does not send any more.
    """
    with ledger.read() as connection:
        campaign = campaigns.named(connection, name)
        key = key_of(connection, address)

    def settle(connection: Connection) -> int:
        return deliveries.resolve(
            connection, campaign.id, key, to=_STATES[word], now=now, detail=_DETAILS[word]
        )

    if not _carry_out(ledger, campaign, word, settle, now=now):
        raise NotPossible(f"no message to {address.mailbox} is uncertain in campaign {campaign.name}")


def resolve_all(ledger: Database, name: str, word: Word, *, now: datetime) -> int:
    """Settles every doubt of a campaign that is there now; see `resolve_one`.

    Returns:
        How many there were.

    Raises:
        UsageError: There is no such campaign.
        NotPossible: The campaign does not send any more and they were to be sent again.
    """
    with ledger.read() as connection:
        campaign = campaigns.named(connection, name)
    # What is sent again moves beyond this tail: a doubt that comes of it is a new one, for another word.
    return sum(_resolve_chunk(ledger, campaign, lo, word, now=now) for lo in range(0, campaign.tail, _CHUNK))


def _resolve_chunk(ledger: Database, campaign: Campaign, lo: int, word: Word, *, now: datetime) -> int:
    hi = min(lo + _CHUNK, campaign.tail)

    def settle(connection: Connection) -> int:
        return deliveries.resolve_range(
            connection, campaign.id, lo=lo, hi=hi, to=_STATES[word], now=now, detail=_DETAILS[word]
        )

    return _carry_out(ledger, campaign, word, settle, now=now)


def _carry_out(
    ledger: Database,
    campaign: Campaign,
    word: Word,
    settle: Callable[[Connection], int],
    *,
    now: datetime,
) -> int:
    with ledger.write() as connection:
        if word is not Word.RESEND:
            return settle(connection)
        # Locked, so that it cannot finish between the question and what depends on the answer.
        campaign = campaigns.lock(connection, campaign.id)
        _check_sends(campaign, now=now)
        settled = settle(connection)
        begins_again = settled > 0 and campaign.state is CampaignState.FINISHED
        if begins_again:
            campaigns.move(connection, campaign.id, to=CampaignState.SENDING, now=now)
        deliveries.put_back_in_line(connection, campaign.id, now=now, limit=_CHUNK)
    if begins_again:
        logger.info(
            "campaign %s sends again what was doubtful of it, by hand",
            campaign.name,
            extra={"campaign": campaign.name},
        )
    return settled


def _check_sends(campaign: Campaign, *, now: datetime) -> None:
    if campaign.state is CampaignState.CANCELLED:
        raise NotPossible(f"campaign {campaign.name} was cancelled: nothing of it is sent again")
    if campaign.expires_at is not None and campaign.expires_at <= now:
        raise NotPossible(
            f"campaign {campaign.name} expired at {campaign.expires_at:%Y-%m-%d %H:%M} UTC: nothing of it is sent "
            "again; settle its doubts with --sent or --drop"
        )
