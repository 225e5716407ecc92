"""Which edition a run of a campaign works on, decided once."""

from __future__ import annotations

from dataclasses import replace

from maintd.database import Database
from maintd.execution import kinds
from maintd.execution.kinds import Work
from maintd.execution.runtime import Runtime
from maintd.ledger import runs
from maintd.mail.campaign import AudienceSpec, CampaignSpec
from maintd.scheduling.job import Job, JobHeader
from tests.ledgers import add_campaign, add_job, add_run, claim_run, run_of

SPEC = CampaignSpec(once_per="month", source="app", audience=AudienceSpec(sql="x.sql"), template="hello")


def edition_of(runtime: Runtime, run_id: int, claim: runs.Claim) -> str:
    work = Work(
        # The campaign's own run holds the job's place, so this one was made under another name.
        run=replace(run_of(runtime.ledger, run_id), job="hello"),
        job=Job(name="hello", header=JobHeader(kind="campaign"), spec=SPEC),
        files={},
        runtime=runtime,
        hold=lambda connection: runs.hold(connection, claim),
        stopping=lambda: False,
        progress=lambda _: None,
    )
    return kinds._edition(work, SPEC).name


def test_a_run_that_asked_for_another_edition_keeps_to_it_when_it_is_tried_again(
    runtime: Runtime, ledger: Database
) -> None:
    add_campaign(ledger, recipients=1, edition="2026-11")
    with ledger.write() as connection:
        add_job(connection, "hello", kind="campaign")
        run_id = add_run(connection, "again", options={"new_edition": True})
    _, claim = claim_run(ledger)

    first = edition_of(runtime, run_id, claim)
    # Somebody else's run has taken the edition up meanwhile.
    add_campaign(ledger, recipients=1, edition="2026-11+2")

    assert first == "2026-11+2"
    assert edition_of(runtime, run_id, claim) == first
