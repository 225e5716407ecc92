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
from maintd.ledger.states import CampaignState, RunState


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
    finished = campaign.state is CampaignState.FINISHED
    ended = runs.move(
        connection,
        campaign.run_id,
        to=RunState.SUCCEEDED if finished else RunState.FAILED,
        now=now,
        result=result,
        reason=None if finished else f"campaign {campaign.name} was cancelled",
    )
    run = runs.get(connection, campaign.run_id)
    return pipelines.step_ended(connection, run, now=now) if ended and run is not None else set()


def mailed(connection: Connection, campaign: Campaign) -> dict[str, Any]:
    """What a campaign came to, as its run keeps it."""
    counts = deliveries.counts(connection, campaign.id)
    return {
        "campaign": campaign.name,
        "audience": campaign.audience,
        "duplicates": campaign.duplicates,
        **{state.value: count for state, count in counts.items() if count},
    }
