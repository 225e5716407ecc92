"""What is long over is forgotten, a small piece at a time, and nothing that is still needed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa

from maintd.database import Database
from maintd.execution import retention
from maintd.execution.retention import Retention
from maintd.ledger import allowances, misses
from maintd.ledger.misses import Miss
from maintd.ledger.states import CampaignState, DeliveryState, RunState
from maintd.ledger.tables import allowances as allowance_rows
from maintd.ledger.tables import batches, campaigns, deliveries, runs, templates
from maintd.ledger.tables import misses as miss_rows
from tests.ledgers import NOW, HandClock, add_campaign, add_run, claim_batch, tallied

KEEP = timedelta(days=400)
LONG_AGO, LATELY = NOW - KEEP - timedelta(days=1), NOW - KEEP + timedelta(days=1)
ROUNDS = 40


@pytest.fixture
def forget(ledger: Database, clock: HandClock) -> Callable[[], None]:
    """As the reconciler does within an hour or two."""
    keeper = Retention(ledger, keep=KEEP, clock=clock)

    def forget() -> None:
        for _ in range(2):
            for _ in range(ROUNDS):
                keeper.run_once()
            clock.turn(timedelta(hours=1))
            clock.leap(-timedelta(hours=1))

    return forget


def ended(
    ledger: Database,
    job: str,
    *,
    at: datetime,
    state: RunState = RunState.SUCCEEDED,
    begun: bool = True,
    **fields: int,
) -> int:
    """A run that was over at that time."""
    over = state not in (RunState.QUEUED, RunState.RUNNING, RunState.UNDERWAY)
    with ledger.write() as connection:
        run_id = add_run(connection, job, state=state, **fields)
        times = {"created_at": at, "finished_at": at if over else None, "started_at": at if begun else None}
        connection.execute(sa.update(runs).where(runs.c.id == run_id).values(**times))
    return run_id


def mailed(
    ledger: Database,
    edition: str,
    *,
    at: datetime,
    state: CampaignState = CampaignState.FINISHED,
    recipients: int = 3,
) -> int:
    """A campaign that ended at that time, and its run."""
    campaign = add_campaign(ledger, recipients=recipients, edition=edition)
    assert claim_batch(ledger, campaign) is not None or not recipients
    over = state in (CampaignState.FINISHED, CampaignState.CANCELLED)
    with ledger.write() as connection:
        connection.execute(
            sa.update(campaigns)
            .where(campaigns.c.id == campaign.id)
            .values(state=state, finished_at=at if over else None)
        )
        connection.execute(
            sa.update(runs)
            .where(runs.c.id == campaign.run_id)
            .values(state=RunState.SUCCEEDED, created_at=at, finished_at=at)
        )
    return campaign.id


def left(ledger: Database, column: sa.Column[int]) -> list[int]:
    with ledger.read() as connection:
        return list(connection.scalars(sa.select(column).distinct().order_by(column)))


def test_old_runs_go_and_young_ones_stay(ledger: Database, forget: Callable[[], None]) -> None:
    for state in (RunState.SUCCEEDED, RunState.FAILED, RunState.SKIPPED, RunState.DEAD, RunState.CANCELLED):
        ended(ledger, "tidy", at=LONG_AGO, state=state)
    young = ended(ledger, "tidy", at=LATELY)
    forget()
    assert left(ledger, runs.c.id) == [young]


def test_the_newest_run_of_a_job_stays_and_the_newest_that_was_begun(
    ledger: Database, forget: Callable[[], None]
) -> None:
    ended(ledger, "tidy", at=LONG_AGO)
    begun = ended(ledger, "tidy", at=LONG_AGO)
    ended(ledger, "tidy", at=LONG_AGO, state=RunState.SKIPPED, begun=False)
    newest = ended(ledger, "tidy", at=LONG_AGO, state=RunState.SKIPPED, begun=False)
    forget()
    assert left(ledger, runs.c.id) == [begun, newest]


@pytest.mark.parametrize("state", [RunState.QUEUED, RunState.RUNNING, RunState.UNDERWAY, RunState.PARKED])
def test_a_run_that_is_not_over_stays_however_old(
    ledger: Database, forget: Callable[[], None], state: RunState
) -> None:
    old = ended(ledger, "tidy", at=LONG_AGO, state=state)
    newest = ended(ledger, "tidy", at=LATELY)
    forget()
    assert left(ledger, runs.c.id) == [old, newest]


def test_a_pipeline_goes_after_its_steps(ledger: Database, forget: Callable[[], None]) -> None:
    parent = ended(ledger, "night", at=LONG_AGO)
    ended(ledger, "tidy", at=LONG_AGO, parent_id=parent)
    newest = [ended(ledger, job, at=LATELY) for job in ("night", "tidy")]
    forget()
    assert left(ledger, runs.c.id) == newest


def test_old_misses_go(ledger: Database, forget: Callable[[], None]) -> None:
    ranges = [
        Miss(job="tidy", first_at=LONG_AGO, last_at=last_at, count=1, exact=True, reason="paused")
        for last_at in (LONG_AGO, LATELY)
    ]
    with ledger.write() as connection:
        misses.record(connection, ranges)
    forget()
    assert left(ledger, miss_rows.c.id) == [2]


@pytest.mark.parametrize("state", [CampaignState.FINISHED, CampaignState.CANCELLED])
def test_an_old_mailing_goes_with_all_that_is_of_it(
    ledger: Database, forget: Callable[[], None], state: CampaignState
) -> None:
    mailed(ledger, "old", at=LONG_AGO, state=state)
    young = mailed(ledger, "young", at=LATELY)
    forget()
    assert left(ledger, campaigns.c.id) == [young]
    assert left(ledger, deliveries.c.campaign_id) == left(ledger, batches.c.campaign_id) == [young]
    assert len(left(ledger, runs.c.id)) == len(left(ledger, templates.c.digest)) == 1


def test_what_was_taken_of_the_limit_of_an_old_mailing_goes_with_it(
    ledger: Database, forget: Callable[[], None]
) -> None:
    old = mailed(ledger, "old", at=LONG_AGO)
    young = mailed(ledger, "young", at=LATELY)
    begins_alike = f"{allowances.of_campaign(old)}0 per day"
    rows = [f"{allowances.of_campaign(one)} per {unit}" for one in (old, young) for unit in ("h", "day")]
    with ledger.write() as connection:
        allowances.lock(connection, [*rows, begins_alike, "all mail per day"])
    forget()
    with ledger.read() as connection:
        kept = connection.scalars(sa.select(allowance_rows.c.name))
        assert set(kept) == {*rows[2:], begins_alike, "all mail per day"}


@pytest.mark.parametrize("state", [CampaignState.SENDING, CampaignState.PAUSED, CampaignState.ENROLLING])
def test_a_mailing_that_has_not_ended_stays_however_old(
    ledger: Database, forget: Callable[[], None], state: CampaignState
) -> None:
    old = mailed(ledger, "old", at=LONG_AGO, state=state)
    young = mailed(ledger, "young", at=LATELY)
    forget()
    assert left(ledger, campaigns.c.id) == [old, young]
    assert tallied(ledger, old) == {DeliveryState.PENDING: 3}


def test_the_newest_mailing_with_recipients_stays_to_measure_growth_by(
    ledger: Database, forget: Callable[[], None]
) -> None:
    mailed(ledger, "oldest", at=LONG_AGO)
    measure = mailed(ledger, "old", at=LONG_AGO)
    empty = mailed(ledger, "nobody", at=LONG_AGO, recipients=0)
    forget()
    assert left(ledger, campaigns.c.id) == [measure, empty]


def test_what_is_once_for_ever_is_never_forgotten(ledger: Database, forget: Callable[[], None]) -> None:
    kept = [mailed(ledger, edition, at=LONG_AGO) for edition in ("ever", "ever+2", "ever+3")]
    forget()
    assert left(ledger, campaigns.c.id) == kept


def test_a_large_mailing_goes_in_pieces(
    ledger: Database, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_PIECE", 4)
    old = mailed(ledger, "old", at=LONG_AGO, recipients=10)
    mailed(ledger, "young", at=LATELY)
    keeper = Retention(ledger, keep=KEEP, clock=clock)
    keeper.run_once()  # there are no misses
    sizes = []
    while old in left(ledger, campaigns.c.id):
        sizes.append(sum(tallied_rows(ledger, old)))
        keeper.run_once()
    assert sizes == [10, 6, 2, 0, 0]


def tallied_rows(ledger: Database, campaign_id: int) -> list[int]:
    with ledger.read() as connection:
        query = sa.select(sa.func.count()).where(deliveries.c.campaign_id == campaign_id)
        return list(connection.scalars(query))


def test_a_walk_passes_what_stays_and_rests_at_its_end(
    ledger: Database, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_PIECE", 2)
    for number in range(5):
        ended(ledger, f"single{number}", at=LONG_AGO)
    for _ in range(3):
        ended(ledger, "tidy", at=LONG_AGO)
    keeper = Retention(ledger, keep=KEEP, clock=clock)
    for _ in range(10):
        keeper.run_once()
    assert len(left(ledger, runs.c.id)) == 6
    ended(ledger, "tidy", at=LONG_AGO)
    keeper.run_once()
    assert len(left(ledger, runs.c.id)) == 7
