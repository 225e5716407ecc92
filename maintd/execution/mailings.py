"""The end of a mailing: a campaign that has finished ends the run that made it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy.engine import Connection

from maintd.database import Database
from maintd.execution import pipelines
from maintd.execution.queues import Queue
from maintd.ledger import campaigns, deliveries, runs
from maintd.ledger.campaigns import Campaign
from maintd.ledger.states import CampaignState, DeliveryState, RunState

_NOT_REACHED = frozenset({DeliveryState.REJECTED, DeliveryState.EXPIRED})


def conclude(ledger: Database, *, now: datetime) -> set[Queue]:
    """Ends the runs whose campaign has ended. Safe to call at any time, from anywhere, as often as one likes.

    Returns:
        Queues in which steps of a pipeline became ready.
    """
    with ledger.read() as connection:
        # Counted before anything is locked: of a million deliveries that takes a second.
        ended = [(one, mailed(connection, one)) for one in campaigns.ended_with_run_underway(connection)]
    ready: set[Queue] = set()
    for campaign, result in ended:
        with ledger.write() as connection:
            ready |= _end(connection, campaign, result, now=now)
    return ready


def _end(connection: Connection, campaign: Campaign, result: dict[str, Any], *, now: datetime) -> set[Queue]:
    reason = _what_went_wrong(campaign, result)
    to = RunState.FAILED if reason else RunState.SUCCEEDED
    ended = runs.move(connection, campaign.run_id, to=to, now=now, result=result, reason=reason)
    run = runs.get(connection, campaign.run_id)
    return pipelines.step_ended(connection, run, now=now) if ended and run is not None else set()


def _what_went_wrong(campaign: Campaign, result: dict[str, Any]) -> str | None:
    if campaign.state is not CampaignState.FINISHED:
        return f"campaign {campaign.name} was cancelled"
    if result.keys() & _NOT_REACHED and DeliveryState.SENT not in result:
        return f"nobody was mailed: `maintd deliveries list {campaign.name}` tells why"
    return None


def mailed(connection: Connection, campaign: Campaign) -> dict[str, Any]:
    """What a campaign came to, as its run keeps it."""
    counts = deliveries.counts(connection, campaign.id)
    return {
        "campaign": campaign.name,
        "audience": campaign.audience,
        "duplicates": campaign.duplicates,
        **{state.value: count for state, count in counts.items() if count},
    }
