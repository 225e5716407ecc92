"""A person's hand on a campaign: pausing it, letting it go on, giving it up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.engine import Connection

from maintd.clock import Clock
from maintd.database import Database
from maintd.errors import MaintdError
from maintd.ledger import campaigns, deliveries
from maintd.ledger.campaigns import Campaign
from maintd.ledger.lines import Stretch
from maintd.ledger.states import CampaignState, DeliveryState

logger = logging.getLogger(__name__)

_SAID = {
    CampaignState.PAUSED: "is paused",
    CampaignState.SENDING: "goes on",
    CampaignState.CANCELLED: "is cancelled",
}

#: The reason for which people do something when they give none.
BY_HAND = "by hand"
#: Ordinals in one transaction of a cancellation: short enough that senders of other campaigns hardly wait.
_CHUNK = 2000


class NotPossible(MaintdError):
    """A campaign or a delivery is in a state in which that cannot be done."""


@dataclass(frozen=True, kw_only=True)
class Cancelled:
    """What a cancellation did.

    Attributes:
        campaign: As it is now.
        settled: Deliveries that were cancelled by this call.
        left: Deliveries that are not settled yet, because a sender holds their batch; it lets go within one window, or
            is found dead after its lease. The reconciler settles what is left of them then.
    """

    campaign: Campaign
    settled: int
    left: int


def pause(ledger: Database, name: str, *, reason: str | None, now: datetime) -> Campaign:
    """Lets no further window of a campaign go to the wire; what is on the wire is brought to its end.

    One that is paused already keeps its reason unless another one is given.

    Raises:
        UsageError: There is no such campaign.
        NotPossible: It is neither sending nor paused already.
    """
    why = reason or BY_HAND
    paused = _move(ledger, name, froms={CampaignState.SENDING}, to=CampaignState.PAUSED, reason=why, now=now)
    if reason is None or paused.reason == reason:
        return paused
    with ledger.write() as connection:
        campaigns.tell_why_paused(connection, paused.id, reason)
        return campaigns.get(connection, paused.id)


def resume(ledger: Database, name: str, *, now: datetime, refused: float | None = None) -> Campaign:
    """Lets a paused campaign go on. What is counted to stop it is counted from now.

    Args:
        ledger: Where it is.
        name: Its name, or its id.
        now: The present instant.
        refused: Takes the place of its `stop_at.refused`, from 0.0 to 1.0.

    Raises:
        UsageError: There is no such campaign.
        NotPossible: It is not paused.
    """

    def bear(connection: Connection, campaign: Campaign) -> None:
        stop_at = campaign.spec.get("stop_at", {}) | {"refused": refused}
        campaigns.keep_spec(connection, campaign.id, campaign.spec | {"stop_at": stop_at})

    return _move(
        ledger,
        name,
        froms={CampaignState.PAUSED},
        to=CampaignState.SENDING,
        reason=None,
        now=now,
        change=None if refused is None else bear,
    )


def cancel(ledger: Database, name: str, *, reason: str, clock: Clock) -> Cancelled:
    """Gives a campaign up: what was not sent never will be.

    May be called again, after it was cut off. Doubts stay what they are.

    Raises:
        UsageError: There is no such campaign.
        NotPossible: It has finished.
    """
    froms = {CampaignState.ENROLLING, CampaignState.SENDING, CampaignState.PAUSED}
    campaign = _move(ledger, name, froms=froms, to=CampaignState.CANCELLED, reason=reason, now=clock.now())
    settled, lo = 0, 0
    while lo < campaign.tail:
        with ledger.write() as connection:
            chunk = Stretch(campaign_id=campaign.id, lane=None, lo=lo, hi=lo + _CHUNK)
            settled += deliveries.cancel_range(
                connection, chunk, now=clock.now(), detail="the campaign was cancelled"
            )
            # The tail may have moved: what was deferred may just have been put back into the line.
            campaign = campaigns.get(connection, campaign.id)
        lo += _CHUNK
    with ledger.read() as connection:
        counts = deliveries.counts(connection, campaign.id)
    left = counts[DeliveryState.PENDING] + counts[DeliveryState.DEFERRED]
    return Cancelled(campaign=campaign, settled=settled, left=left)


def _move(
    ledger: Database,
    name: str,
    *,
    froms: Collection[CampaignState],
    to: CampaignState,
    reason: str | None,
    now: datetime,
    change: Callable[[Connection, Campaign], None] | None = None,
) -> Campaign:
    """Moves a campaign from one of these states; one that is there already is left alone, if there is no change."""
    with ledger.write() as connection:
        campaign = campaigns.lock(connection, campaigns.named(connection, name).id)
        if campaign.state is to and change is None:
            return campaign
        if campaign.state not in froms:
            raise NotPossible(
                f"campaign {campaign.name} is {campaign.state}; only one that is {_either(froms)} can become {to}"
            )
        if change is not None:
            change(connection, campaign)
        campaigns.move(connection, campaign.id, to=to, now=now, reason=reason)
        moved = campaigns.get(connection, campaign.id)
    why = f": {reason}" if reason else ""
    logger.info("campaign %s %s by hand%s", moved.name, _SAID[to], why, extra={"campaign": moved.name})
    return moved


def _either(states: Collection[CampaignState]) -> str:
    return " or ".join(sorted(states))
