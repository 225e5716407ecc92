"""Editions that a ledger has forgotten which went back in time: they are closed, so that nobody is mailed again."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.engine import Connection

from maintd.clock import Clock
from maintd.database import Database
from maintd.ledger import campaigns, jobs, runs
from maintd.ledger.campaigns import Campaign
from maintd.ledger.runs import NewRun
from maintd.ledger.states import CampaignState, Cause, RunState
from maintd.mail import control
from maintd.mail.recording.entries import Binding

#: In the place of the digest of a template that nobody has.
_NO_TEMPLATE = "0" * 64


@dataclass(kw_only=True)
class Forgotten:
    """An edition of which recordings know more recipients than the ledger.

    Attributes:
        binding: Which one.
        mailed: Recipients whose mail was accepted and whom the edition in the ledger does not have.
        doubtful: Of whom nobody knows, likewise.
    """

    binding: Binding
    mailed: int = 0
    doubtful: int = 0

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.binding.job}/{self.binding.edition}"

    @property
    def reason(self) -> str:
        """Why its job is paused."""
        return (
            f"the ledger went back in time and has forgotten edition {self.binding.edition}, of which {self.mailed:,} "
            f"were mailed and {self.doubtful:,} perhaps; it is closed, and whoever of it was not mailed is not"
        )


def close(ledger: Database, forgotten: Forgotten, *, clock: Clock) -> None:
    """Closes an edition under its name, so that no run can begin it again, and pauses its job.

    One whose enrolment is in the ledger is cancelled: enrolled anew it would mail everybody. One that is not there at
    all is written down as cancelled.
    """
    job, edition = forgotten.binding.job, forgotten.binding.edition
    with ledger.read() as connection:
        found = campaigns.find(connection, job=job, edition=edition)
    if found is not None and found.state is CampaignState.ENROLLING:
        control.cancel(ledger, found.name, reason=forgotten.reason, clock=clock)
    now = clock.now()
    with ledger.write() as connection:
        if found is None:
            _write_down(connection, forgotten, clock=clock)
        runs.cancel_queued(connection, job, now=now, reason=forgotten.reason)
        jobs.set_paused(connection, job, paused_at=now, reason=forgotten.reason)
        jobs.move_stamp(connection)


def is_forgotten(campaign: Campaign | None) -> bool:
    """Whether the ledger is from before the edition was enrolled."""
    return campaign is None or campaign.state is CampaignState.ENROLLING


def _write_down(connection: Connection, forgotten: Forgotten, *, clock: Clock) -> None:
    now, binding = clock.now(), forgotten.binding
    campaigns.store_template(connection, digest=_NO_TEMPLATE, name="forgotten", files={}, now=now)
    values = {
        "uid": binding.uid,
        "job": binding.job,
        "edition": binding.edition,
        "run_id": _run_of(connection, forgotten, clock=clock),
        "spec": {"uncertain": "never_duplicate", "max_copies": 1},
        "template": _NO_TEMPLATE,
        "shared": {},
        "content": "",
        "dated_at": now,
        "created_at": now,
    }
    campaign_id = campaigns.create(connection, values)
    campaigns.move(connection, campaign_id, to=CampaignState.CANCELLED, now=now, reason=forgotten.reason)


def _run_of(connection: Connection, forgotten: Forgotten, *, clock: Clock) -> int:
    now = clock.now()
    new = NewRun(
        job=forgotten.binding.job,
        kind="campaign",
        occurrence=f"forgotten#{forgotten.binding.uid}",
        cause=Cause.MANUAL,
        nominal_at=now,
        options={"edition": forgotten.binding.edition},
        state=RunState.CANCELLED,
        queue="",
        due_at=now,
        reason=forgotten.reason,
    )
    runs.create(connection, new, now=now)
    return runs.of_occurrence(connection, job=new.job, occurrence=new.occurrence).id
