"""The end of a mailing: a campaign that has finished ends the run that made it."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.engine import Connection

from maintd.execution import pipelines
from maintd.execution.kinds import mailed
from maintd.execution.queues import Queue
from maintd.ledger import campaigns, runs
from maintd.ledger.states import CampaignState, RunState


def conclude(connection: Connection, *, now: datetime) -> set[Queue]:
    """Ends the runs whose campaign has ended. Safe to call at any time, from anywhere, as often as one likes.

    Returns:
        Queues in which steps of a pipeline became ready.
    """
    ready: set[Queue] = set()
    for campaign in campaigns.ended_with_run_underway(connection):
        finished = campaign.state is CampaignState.FINISHED
        ended = runs.move(
            connection,
            campaign.run_id,
            to=RunState.SUCCEEDED if finished else RunState.FAILED,
            now=now,
            result=mailed(connection, campaign.id),
            reason=None if finished else f"campaign {campaign.name} was cancelled",
        )
        run = runs.get(connection, campaign.run_id)
        if ended and run is not None and run.parent_id is not None:
            ready |= pipelines.advance(connection, run.parent_id, now=now)
    return ready
