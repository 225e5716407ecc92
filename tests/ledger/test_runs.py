from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from maintd.database import Database
from maintd.errors import ClaimLost
from maintd.ledger import batches, deliveries, runs
from maintd.ledger.campaigns import Campaign
from maintd.ledger.deliveries import Outcome
from maintd.ledger.runs import Claim, NewRun, Run
from maintd.ledger.states import CampaignState, DeliveryState, RunState
from maintd.ledger.tables import campaigns as campaign_rows
from maintd.ledger.tables import runs as run_rows
from tests.ledgers import (
    MINUTE,
    NOW,
    add_campaign,
    add_job,
    add_run,
    claim_batch,
    claim_run,
    key_of,
    race,
    run_of,
)

QUEUE = "maintenance"


def claim(ledger: Database, *, token: str, queue: str = QUEUE) -> Run | None:
    with ledger.write() as connection:
        return runs.claim(connection, queue=queue, token=token, owner="host:1", now=NOW)


@pytest.fixture
def queued(ledger: Database) -> int:
    with ledger.write() as connection:
        add_job(connection)
        return add_run(connection)


def test_an_occurrence_has_one_run_however_many_ask_for_it(ledger: Database) -> None:
    new = NewRun(
        job="tidy",
        kind="test",
        occurrence="2026-11-20T08:00[UTC]",
        cause="schedule",
        nominal_at=NOW,
        options={},
        state=RunState.QUEUED,
        queue=QUEUE,
        due_at=NOW,
    )

    def create(_number: int) -> int | None:
        with ledger.write() as connection:
            return runs.create(connection, new, now=NOW)

    made = race(6, create)
    assert made.count(None) == 5
    with ledger.read() as connection:
        (run,) = runs.latest(connection, job="tidy", limit=10)
    assert run.name == "tidy@2026-11-20T08:00[UTC]"


def test_a_claim_takes_the_longest_due_run_and_says_who_has_it(ledger: Database) -> None:
    with ledger.write() as connection:
        for name in ("old", "new", "future"):
            add_job(connection, name, revision=4)
        add_run(connection, "new", due_at=NOW)
        old = add_run(connection, "old", due_at=NOW - MINUTE)
        add_run(connection, "future", due_at=NOW + MINUTE)
    run, _ = claim_run(ledger)
    assert (run.id, run.state, run.token, run.owner) == (old, RunState.RUNNING, "mine", "host:1")
    assert (run.revision, run.started_at, run.counter) == (4, NOW, 1)
    assert claim(ledger, token="second") is not None
    assert claim(ledger, token="third") is None


def test_a_queue_gives_only_its_own_runs(ledger: Database, queued: int) -> None:
    assert claim(ledger, token="t", queue="ratings") is None
    assert claim(ledger, token="t") is not None


def test_every_run_is_claimed_once_and_no_two_of_a_job_go_on_together(ledger: Database) -> None:
    jobs, each = 3, 4
    with ledger.write() as connection:
        for job in range(jobs):
            add_job(connection, f"job{job}")
        for _ in range(each):
            for job in range(jobs):
                add_run(connection, f"job{job}")
    taken: list[int] = []
    beside: list[int] = []

    def work(number: int) -> None:
        while len(taken) < jobs * each:
            token = f"{number} {len(taken)}"
            run = claim(ledger, token=token)
            if run is None:
                continue
            taken.append(run.id)
            with ledger.write() as connection:
                beside.extend(r.id for r in runs.running(connection) if r.job == run.job and r.id != run.id)
                mine = Claim(run_id=run.id, token=token)
                runs.finish(connection, mine, state=RunState.SUCCEEDED, now=NOW, result=None, reason=None)

    race(4, work)
    assert len(taken) == len(set(taken)) == jobs * each
    assert beside == []


def test_a_run_that_became_impossible_since_it_was_looked_for_is_not_taken(
    ledger: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ledger.write() as connection:
        for job in ("a", "b"):
            add_job(connection, job)
        add_run(connection, "a", state=RunState.RUNNING)
        late = add_run(connection, "a")
        possible = add_run(connection, "b")
    look = runs._longest_due
    out_of_date = iter([(late, "a", 1)])
    monkeypatch.setattr(runs, "_longest_due", lambda *at, **to: next(out_of_date, None) or look(*at, **to))
    run, _ = claim_run(ledger)
    assert run.id == possible
    assert run_of(ledger, late).state is RunState.QUEUED


# SQLite has one writer at a time.
@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_claim_waits_for_nobody_who_is_claiming_another_job(ledger: Database) -> None:
    with ledger.write() as connection:
        for job in ("a", "b"):
            add_job(connection, job)
            add_run(connection, job)
            add_run(connection, job)
    with ledger.write() as one, ledger.write() as other:
        claims = [
            runs.claim(connection, queue=QUEUE, token="t", owner="host:1", now=NOW)
            for connection in (one, other, other, one)
        ]
    assert [run and run.job for run in claims] == ["a", "b", None, None]


def test_racing_workers_take_one_run_of_each_job_and_none_goes_home_without(ledger: Database) -> None:
    with ledger.write() as connection:
        for job in ("a", "b", "c", "d"):
            add_job(connection, job)
            for _ in range(10):
                add_run(connection, job)
    claims = race(4, lambda number: claim(ledger, token=f"t{number}"))
    assert sorted(run.job for run in claims if run is not None) == ["a", "b", "c", "d"]
    assert claim(ledger, token="one more") is None


@pytest.mark.parametrize("state", [RunState.RUNNING, RunState.UNDERWAY])
def test_a_job_with_a_run_going_has_none_to_be_taken(ledger: Database, queued: int, state: RunState) -> None:
    with ledger.write() as connection:
        add_run(connection, state=state)
    assert claim(ledger, token="t") is None
    with ledger.read() as connection:
        assert runs.due_queues(connection, now=NOW) == set()


def test_a_run_of_a_removed_job_can_be_taken_and_has_no_revision(ledger: Database) -> None:
    with ledger.write() as connection:
        add_run(connection, "removed")
    run = claim(ledger, token="t")
    assert run is not None
    assert run.revision is None


ACTS: dict[str, Callable[[Connection, Claim], None]] = {
    "hold": lambda connection, claim: runs.hold(connection, claim, progress={"done": 1}),
    "finish": lambda connection, claim: runs.finish(
        connection, claim, state=RunState.SUCCEEDED, now=NOW, result={"done": 1}, reason=None
    ),
    "put back": lambda connection, claim: runs.put_back(
        connection, claim, due_at=NOW, reason="later", failed=True
    ),
    "hand over": lambda connection, claim: runs.hand_over(connection, claim, result={"done": 1}),
}


@pytest.mark.parametrize("act", ACTS)
def test_whoever_lost_the_claim_changes_nothing(ledger: Database, queued: int, act: str) -> None:
    seen, lost = claim_run(ledger, token="lost")
    with ledger.write() as connection:
        assert runs.take_from_the_dead(connection, seen, to=RunState.QUEUED, now=NOW, reason="gone")
    now_mine, _ = claim_run(ledger, token="mine")
    with pytest.raises(ClaimLost), ledger.write() as connection:
        ACTS[act](connection, lost)
    assert run_of(ledger, queued) == now_mine


@pytest.mark.parametrize("act", ACTS)
def test_a_claim_that_ended_is_lost_to_its_own_holder(ledger: Database, queued: int, act: str) -> None:
    _, mine = claim_run(ledger)
    with ledger.write() as connection:
        runs.finish(connection, mine, state=RunState.FAILED, now=NOW, result=None, reason="bad")
    ended = run_of(ledger, queued)
    with pytest.raises(ClaimLost), ledger.write() as connection:
        ACTS[act](connection, mine)
    assert run_of(ledger, queued) == ended


def test_what_rides_in_a_transaction_with_a_lost_claim_is_rolled_back(ledger: Database, queued: int) -> None:
    _, mine = claim_run(ledger)
    with pytest.raises(ClaimLost), ledger.write() as connection:
        add_job(connection, "rider")
        runs.hold(connection, Claim(run_id=mine.run_id, token="another's"))
    with ledger.read() as connection:
        assert runs.latest(connection, job="rider", limit=1) == []


def test_only_a_failure_counts_as_an_attempt(ledger: Database, queued: int) -> None:
    for failed, failures in ((False, 0), (True, 1), (True, 2), (False, 2)):
        _, mine = claim_run(ledger)
        with ledger.write() as connection:
            runs.put_back(connection, mine, due_at=NOW, reason="later", failed=failed)
        run = run_of(ledger, queued)
        assert (run.state, run.failures, run.token, run.reason) == (RunState.QUEUED, failures, None, "later")


def test_a_run_that_is_taken_up_again_keeps_when_it_began_first(ledger: Database, queued: int) -> None:
    _, mine = claim_run(ledger)
    with ledger.write() as connection:
        runs.put_back(connection, mine, due_at=NOW, reason="later", failed=True)
    again, _ = claim_run(ledger, now=NOW + MINUTE)
    assert again.started_at == NOW


def test_a_counter_that_moved_saves_its_claim(ledger: Database, queued: int) -> None:
    seen, mine = claim_run(ledger)
    with ledger.write() as connection:
        runs.hold(connection, mine)
        assert not runs.take_from_the_dead(connection, seen, to=RunState.QUEUED, now=NOW, reason="gone")
    assert run_of(ledger, queued).token == "mine"


def test_a_claim_is_taken_from_the_dead_by_one_of_many(ledger: Database, queued: int) -> None:
    seen, _ = claim_run(ledger)

    def take(_number: int) -> bool:
        with ledger.write() as connection:
            return runs.take_from_the_dead(connection, seen, to=RunState.QUEUED, now=NOW, reason="gone")

    assert sum(race(4, take)) == 1
    assert run_of(ledger, queued).losses == 1


def test_unfinished_is_whatever_may_still_do_something(ledger: Database) -> None:
    with ledger.write() as connection:
        for state in RunState:
            add_run(connection, state.value, state=state)
        unfinished = runs.unfinished_jobs(connection, [*RunState, "another"])
    assert unfinished == {
        RunState.WAITING,
        RunState.QUEUED,
        RunState.RUNNING,
        RunState.UNDERWAY,
        RunState.PARKED,
    }


def put_off(ledger: Database, campaign: Campaign, number: int) -> None:
    """The relay says "later" to one recipient."""
    later = Outcome(
        recipient_key=key_of(number), ordinal=number, state=DeliveryState.DEFERRED, fact=True, due_at=NOW
    )
    with ledger.write() as connection:
        deliveries.settle(connection, campaign.id, [later], now=NOW)


def try_all(ledger: Database, campaign: Campaign, *, lanes: int = 1) -> None:
    """Every recipient's mail is tried once; the first of each lane is put off."""
    for lane in range(lanes):
        put_off(ledger, campaign, lane)
        while (batch := claim_batch(ledger, campaign, lane=lane)) is not None:
            with ledger.write() as connection:
                deliveries.settle_range(
                    connection, batch.stretch, to=DeliveryState.REJECTED, now=NOW, detail="tried"
                )
                batches.done(connection, batch)


def makes_way(ledger: Database) -> bool:
    """Whether another run of the mailing's job is made, and taken: one is if and only if the other is."""
    with ledger.write() as connection:
        free = runs.unfinished_jobs(connection, ["hello"]) == set()
        run_id = add_run(connection, "hello")
        due = runs.due_queues(connection, now=NOW) == {QUEUE}
    taken = claim(ledger, token="t")
    with ledger.write() as connection:
        connection.execute(sa.delete(run_rows).where(run_rows.c.id == run_id))
    assert free is due is (taken is not None)
    return free


def test_a_mailing_makes_way_when_it_has_tried_everybody_once(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=25)
    assert not makes_way(ledger)
    try_all(ledger, campaign)
    assert makes_way(ledger)
    with ledger.write() as connection:
        assert deliveries.put_back_in_line(connection, campaign.id, now=NOW, limit=9) == 1
    assert makes_way(ledger)
    assert claim_batch(ledger, campaign) is not None
    assert makes_way(ledger)


def test_a_mailing_makes_no_way_while_a_batch_of_the_first_try_is_open(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=10)
    batch = claim_batch(ledger, campaign)
    assert batch is not None
    put_off(ledger, campaign, 0)
    assert not makes_way(ledger)
    with ledger.write() as connection:
        batches.release(connection, batch, wire_hi=0)
    assert not makes_way(ledger)


def test_a_mailing_makes_no_way_while_one_of_its_lanes_is_untried(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=25, lanes=2)
    try_all(ledger, campaign)
    assert not makes_way(ledger)
    try_all(ledger, campaign, lanes=2)
    assert makes_way(ledger)
    with ledger.write() as connection:
        assert deliveries.put_back_in_line(connection, campaign.id, now=NOW, limit=9) == 2
    assert makes_way(ledger)


@pytest.mark.parametrize("state", [CampaignState.PAUSED, CampaignState.ENROLLING, CampaignState.FINISHED])
def test_a_mailing_that_does_not_send_makes_no_way(ledger: Database, state: CampaignState) -> None:
    campaign = add_campaign(ledger, recipients=2)
    try_all(ledger, campaign)
    with ledger.write() as connection:
        connection.execute(sa.update(campaign_rows).values(state=state))
    assert not makes_way(ledger)


def test_a_mailing_makes_way_for_its_own_job_only(ledger: Database) -> None:
    """Its pipeline goes on until all is over, and so does another run of the job that has not come that far."""
    tried = add_campaign(ledger, recipients=2, edition="one")
    try_all(ledger, tried)
    with ledger.write() as connection:
        add_run(connection, "monday", state=RunState.UNDERWAY, kind="pipeline")
        assert runs.unfinished_jobs(connection, ["hello", "monday"]) == {"monday"}
    add_campaign(ledger, recipients=2, edition="two")
    assert not makes_way(ledger)


def test_whether_a_mailing_makes_way_is_found_without_a_look_at_its_deliveries(ledger: Database) -> None:
    add_campaign(ledger, recipients=2)
    asked: list[str] = []

    @sa.event.listens_for(ledger.engine, "before_cursor_execute")
    def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
        asked.append(statement)

    assert not makes_way(ledger)
    assert any("lines" in statement for statement in asked)
    assert not any("deliveries" in statement for statement in asked)


def test_only_runs_that_have_not_begun_are_cancelled_with_their_job(ledger: Database) -> None:
    with ledger.write() as connection:
        made = {state: add_run(connection, state=state) for state in RunState}
        other = add_run(connection, "other")
        assert runs.cancel_queued(connection, "tidy", now=NOW, reason="removed") == 2
    for state, run_id in made.items():
        begun = state not in (RunState.QUEUED, RunState.WAITING)
        assert run_of(ledger, run_id).state is (state if begun else RunState.CANCELLED)
    assert run_of(ledger, other).state is RunState.QUEUED


def test_due_queues_are_those_with_a_run_that_could_be_taken_now(ledger: Database) -> None:
    with ledger.write() as connection:
        add_run(connection, "a", queue="ratings")
        add_run(connection, "b", queue="control", due_at=NOW + MINUTE)
        add_run(connection, "c", queue="programs", state=RunState.WAITING)
        assert runs.due_queues(connection, now=NOW) == {"ratings"}
        assert runs.due_queues(connection, now=NOW + MINUTE) == {"ratings", "control"}


def test_the_newest_run_of_every_job_is_found(ledger: Database) -> None:
    with ledger.write() as connection:
        for job in ("a", "b", "a"):
            last = add_run(connection, job)
        newest = runs.last_of_each_job(connection)
    assert newest["a"].id == last
    assert newest.keys() == {"a", "b"}
