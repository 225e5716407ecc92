"""A person's word on a run: take it back, or let a parked one go on."""

from __future__ import annotations

from sqlalchemy.engine import Connection

from maintd.errors import MaintdError, UsageError
from maintd.execution import pipelines
from maintd.execution.queues import Queue
from maintd.execution.runtime import Runtime
from maintd.ledger import campaigns, runs
from maintd.ledger.runs import Run
from maintd.ledger.states import CampaignState, RunState

_REASON = "cancelled by a person"


def cancel(run_id: int, runtime: Runtime) -> set[Queue]:
    """Takes back a run that no worker holds; of a pipeline, the steps that have not begun.

    Returns:
        Queues in which other steps became ready.

    Raises:
        UsageError: There is no such run.
        MaintdError: A worker holds it, it is over, or it is a mailing, which is cancelled as a campaign.
    """
    now = runtime.clock.now()
    with runtime.ledger.write() as connection:
        run = _locked(connection, run_id)
        if run.state is RunState.UNDERWAY and run.kind == "pipeline":
            for step in runs.steps(connection, run_id):
                if step.state is not RunState.UNDERWAY and not _mails(connection, step.id):
                    runs.move(connection, step.id, to=RunState.CANCELLED, now=now, reason=_REASON)
            return pipelines.advance(connection, run_id, now=now)
        if run.state is RunState.UNDERWAY or _mails(connection, run_id):
            raise MaintdError(
                f"run {run_id} ({run.name}) is a mailing under way; {_campaign_hint(connection, run_id)}"
            )
        if not runs.move(connection, run_id, to=RunState.CANCELLED, now=now, reason=_REASON):
            held = "a worker carries it out" if run.state is RunState.RUNNING else f"it is over ({run.state})"
            raise MaintdError(f"run {run_id} ({run.name}) cannot be cancelled: {held}")
        return pipelines.step_ended(connection, run, now=now)


def retry(run_id: int, runtime: Runtime) -> set[Queue]:
    """Queues a parked run again.

    Returns:
        The queue that has new work.

    Raises:
        UsageError: There is no such run.
        MaintdError: It is not parked.
    """
    with runtime.ledger.write() as connection:
        run = _locked(connection, run_id)
        if run.state is not RunState.PARKED:
            raise MaintdError(
                f"run {run_id} ({run.name}) is {run.state}; only a parked run is tried again, "
                f"and `maintd run {run.job}` begins a new one"
            )
        runs.move(
            connection, run_id, to=RunState.QUEUED, now=runtime.clock.now(), reason="tried again by a person"
        )
    return {Queue(run.queue)}


def _locked(connection: Connection, run_id: int) -> Run:
    run = runs.lock(connection, run_id)
    if run is None:
        raise UsageError(f"there is no run {run_id}; `maintd runs` lists the newest")
    return run


def _mails(connection: Connection, run_id: int) -> bool:
    """Whether the campaign of a run sends already, although no worker has told the run so yet."""
    campaign = campaigns.of_runs(connection, [run_id]).get(run_id)
    return campaign is not None and campaign.state in (CampaignState.SENDING, CampaignState.PAUSED)


def _campaign_hint(connection: Connection, run_id: int) -> str:
    campaign = campaigns.of_runs(connection, [run_id]).get(run_id)
    return (
        f"`maintd campaigns cancel {campaign.name}` ends it"
        if campaign
        else "another run goes on with its campaign"
    )
