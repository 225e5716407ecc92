from __future__ import annotations

from datetime import timedelta

import pytest

from maintd.database import Database
from maintd.execution.queues import Queue
from maintd.execution.reconcile import MOST_LOSSES, Reconciler
from maintd.execution.runtime import Runtime
from maintd.ledger import batches, campaigns, deliveries, runs
from maintd.ledger.deliveries import Outcome
from maintd.ledger.states import CampaignState, DeliveryState, RunState
from tests.ledgers import (
    MINUTE,
    NOW,
    HandClock,
    add_campaign,
    add_job,
    add_run,
    campaign_of,
    claim_batch,
    claim_run,
    key_of,
    run_of,
    tallied,
)

LEASE = timedelta(seconds=30)


@pytest.fixture
def reconciler(runtime: Runtime) -> Reconciler:
    return Reconciler(runtime)


def claimed(ledger: Database, *, on_lost: str = "retry") -> runs.Claim:
    with ledger.write() as connection:
        add_job(connection, spec={"kind": "test", "on_lost": on_lost})
        add_run(connection)
    return claim_run(ledger)[1]


def finish(ledger: Database, claim: runs.Claim) -> None:
    with ledger.write() as connection:
        runs.finish(connection, claim, state=RunState.SUCCEEDED, now=NOW, result=None, reason=None)


def test_a_run_whose_worker_vanished_is_queued_again_after_a_lease(
    reconciler: Reconciler, ledger: Database, clock: HandClock
) -> None:
    claim = claimed(ledger)
    assert reconciler.run_once().freed == 0
    clock.turn(LEASE - timedelta(seconds=1))
    assert reconciler.run_once().freed == 0
    clock.turn(timedelta(seconds=1))
    done = reconciler.run_once()
    assert (done.freed, done.queues) == (1, frozenset({Queue.MAINTENANCE}))
    run = run_of(ledger, claim.run_id)
    assert (run.state, run.losses, run.failures, run.due_at) == (RunState.QUEUED, 1, 0, clock.now())
    assert "host:1" in str(run.reason)
    again, _ = claim_run(ledger, token="other", now=clock.now())
    assert again.id == claim.run_id


def test_a_worker_whose_counter_moves_is_never_taken_for_dead(
    reconciler: Reconciler, ledger: Database, clock: HandClock
) -> None:
    claim = claimed(ledger)
    for _ in range(10):
        assert reconciler.run_once().freed == 0
        clock.turn(LEASE - timedelta(seconds=1))
        with ledger.write() as connection:
            runs.hold(connection, claim)
    finish(ledger, claim)


def test_a_wall_clock_that_leaps_kills_nobody(
    reconciler: Reconciler, ledger: Database, clock: HandClock
) -> None:
    claimed(ledger)
    reconciler.run_once()
    clock.leap(timedelta(days=400))
    assert reconciler.run_once().freed == 0


def test_a_judge_that_has_just_begun_waits_a_lease(
    runtime: Runtime, ledger: Database, clock: HandClock
) -> None:
    claimed(ledger)
    Reconciler(runtime).run_once()
    clock.turn(LEASE * 10)
    assert Reconciler(runtime).run_once().freed == 0


def test_a_worker_that_moves_between_the_look_and_the_verdict_keeps_its_run(
    reconciler: Reconciler, ledger: Database, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = claimed(ledger)
    reconciler.run_once()
    clock.turn(LEASE)
    take = runs.take_from_the_dead

    def at_the_last_moment(connection: object, *args: object, **options: object) -> bool:
        runs.hold(connection, claim)  # type: ignore[arg-type]
        return take(connection, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(runs, "take_from_the_dead", at_the_last_moment)
    assert reconciler.run_once().freed == 0
    finish(ledger, claim)


def test_a_run_that_must_not_be_repeated_is_parked(
    reconciler: Reconciler, ledger: Database, clock: HandClock
) -> None:
    claim = claimed(ledger, on_lost="park")
    reconciler.run_once()
    clock.turn(LEASE)
    done = reconciler.run_once()
    assert (done.freed, done.queues) == (1, frozenset())
    assert run_of(ledger, claim.run_id).state is RunState.PARKED


def test_a_run_that_kills_every_worker_is_dead_in_the_end(
    reconciler: Reconciler, ledger: Database, clock: HandClock
) -> None:
    claim = claimed(ledger)
    for loss in range(1, MOST_LOSSES + 1):
        reconciler.run_once()
        clock.turn(LEASE)
        assert reconciler.run_once().freed == 1
        assert run_of(ledger, claim.run_id).losses == loss
        if loss < MOST_LOSSES:
            claim_run(ledger, token=f"t{loss}", now=clock.now())
    run = run_of(ledger, claim.run_id)
    assert (run.state, run.finished_at) == (RunState.DEAD, clock.now())


def test_the_steps_behind_a_dead_one_are_skipped(
    reconciler: Reconciler, ledger: Database, clock: HandClock
) -> None:
    with ledger.write() as connection:
        parent = add_run(connection, "monday", kind="pipeline", state=RunState.UNDERWAY)
        for name, after in (("first", []), ("second", ["first"])):
            add_job(connection, name)
            add_run(connection, name, state=RunState.WAITING, parent_id=parent, after=after)
    assert reconciler.run_once().queues == {Queue.MAINTENANCE}  # readied though nobody else did
    for number in range(MOST_LOSSES):
        claim_run(ledger, token=f"t{number}", now=clock.now())
        reconciler.run_once()
        clock.turn(LEASE)
        reconciler.run_once()
    assert run_of(ledger, parent).reason == 'steps: "first" dead, "second" skipped'


def test_queues_with_due_work_are_named_and_no_others(
    reconciler: Reconciler, ledger: Database, clock: HandClock
) -> None:
    assert reconciler.run_once().queues == frozenset()
    with ledger.write() as connection:
        for name in ("a", "b", "c"):
            add_job(connection, name)
        add_run(connection, "a", queue="ratings")
        add_run(connection, "b", queue="control", due_at=NOW + MINUTE)
        add_run(connection, "c", queue="programs", state=RunState.RUNNING)
        add_run(connection, "c", queue="programs")  # its job has a run going
    assert reconciler.run_once().queues == {Queue.RATINGS}
    clock.turn(MINUTE / 4)
    assert reconciler.run_once().queues == {Queue.RATINGS}
    clock.turn(MINUTE)
    assert Queue.CONTROL in reconciler.run_once().queues


def test_what_a_vanished_sender_had_on_the_wire_is_doubtful_and_the_rest_is_to_be_sent(
    reconciler: Reconciler, ledger: Database, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=20)
    batch = claim_batch(ledger, campaign)
    assert batch is not None
    with ledger.write() as connection:
        batches.mark(connection, batch, wire_hi=4)
    assert reconciler.run_once().freed == 0
    clock.turn(LEASE)
    done = reconciler.run_once()
    assert (done.freed, done.doubtful, done.queues) == (1, 4, frozenset({Queue.MAIL_BULK}))
    assert tallied(ledger, campaign.id) == {DeliveryState.UNCERTAIN: 4, DeliveryState.PENDING: 16}


@pytest.mark.parametrize(("urgent", "queue"), [(True, Queue.MAIL_URGENT), (False, Queue.MAIL_BULK)])
def test_those_are_woken_who_send_campaigns_of_that_urgency(
    reconciler: Reconciler, ledger: Database, urgent: bool, queue: Queue
) -> None:
    add_campaign(ledger, recipients=1, urgent=urgent)
    assert reconciler.run_once().queues == {queue}


def test_a_sender_whose_counter_moves_keeps_its_batch(
    reconciler: Reconciler, ledger: Database, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=10)
    batch = claim_batch(ledger, campaign)
    assert batch is not None
    for _ in range(5):
        assert reconciler.run_once().freed == 0
        clock.turn(LEASE - timedelta(seconds=1))
        with ledger.write() as connection:
            batches.beat(connection, batch)


def test_deferred_deliveries_come_back_when_their_time_has_come(
    reconciler: Reconciler, ledger: Database, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=1)
    batch = claim_batch(ledger, campaign)
    assert batch is not None
    later = Outcome(
        recipient_key=key_of(0), ordinal=0, state=DeliveryState.DEFERRED, fact=True, due_at=NOW + MINUTE
    )
    with ledger.write() as connection:
        batches.done(connection, batch)
        deliveries.settle(connection, campaign.id, [later], now=NOW)
    waiting = reconciler.run_once()
    assert (waiting.back_in_line, waiting.queues) == (0, frozenset())
    assert campaign_of(ledger, campaign.id).state is CampaignState.SENDING
    clock.turn(MINUTE)
    back = reconciler.run_once()
    assert (back.back_in_line, back.queues) == (1, frozenset({Queue.MAIL_BULK}))


def test_a_campaign_of_which_nothing_is_left_ends_its_run(reconciler: Reconciler, ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=3)
    batch = claim_batch(ledger, campaign)
    assert batch is not None
    assert reconciler.run_once().queues == frozenset()
    assert run_of(ledger, campaign.run_id).state is RunState.UNDERWAY
    with ledger.write() as connection:
        batches.done(connection, batch)
        sent = [
            Outcome(recipient_key=key_of(n), ordinal=n, state=DeliveryState.SENT, fact=True) for n in range(2)
        ]
        doubt = Outcome(recipient_key=key_of(2), ordinal=2, state=DeliveryState.UNCERTAIN, fact=False)
        deliveries.settle(connection, campaign.id, [*sent, doubt], now=NOW)
    reconciler.run_once()
    assert campaign_of(ledger, campaign.id).state is CampaignState.FINISHED
    run = run_of(ledger, campaign.run_id)
    assert run.state is RunState.SUCCEEDED
    assert run.result == {
        "campaign": "hello/one",
        "audience": 3,
        "duplicates": 0,
        "sent": 2,
        "uncertain": 1,
    }


def test_a_campaign_that_was_cancelled_fails_its_run(reconciler: Reconciler, ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=3)
    with ledger.write() as connection:
        campaigns.move(connection, campaign.id, to=CampaignState.CANCELLED, now=NOW)
    reconciler.run_once()
    run = run_of(ledger, campaign.run_id)
    assert (run.state, run.reason) == (RunState.FAILED, "campaign hello/one was cancelled")


def test_a_paused_campaign_keeps_its_run_and_wakes_nobody(reconciler: Reconciler, ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=3, state=CampaignState.PAUSED)
    assert reconciler.run_once().queues == frozenset()
    assert run_of(ledger, campaign.run_id).state is RunState.UNDERWAY


def test_the_end_of_a_mailing_readies_the_step_behind_it(reconciler: Reconciler, ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=0)
    with ledger.write() as connection:
        parent = add_run(connection, "monday", kind="pipeline", state=RunState.UNDERWAY)
        add_job(connection, "after")
        step = add_run(connection, "after", state=RunState.WAITING, parent_id=parent, after=["mailing"])
        mailing = add_run(
            connection, "mailing", kind="campaign", state=RunState.UNDERWAY, parent_id=parent, after=[]
        )
        runs.move(connection, campaign.run_id, to=RunState.CANCELLED, now=NOW)
        campaigns.adopt(connection, campaign.id, run_id=mailing)
    assert reconciler.run_once().queues == {Queue.MAINTENANCE}
    assert run_of(ledger, mailing).state is RunState.SUCCEEDED
    assert run_of(ledger, step).state is RunState.QUEUED


def test_two_reconcilers_free_a_run_once(runtime: Runtime, ledger: Database, clock: HandClock) -> None:
    claim = claimed(ledger)
    judges = [Reconciler(runtime), Reconciler(runtime)]
    for judge in judges:
        judge.run_once()
    clock.turn(LEASE)
    assert sum(judge.run_once().freed for judge in judges) == 1
    assert run_of(ledger, claim.run_id).losses == 1


def test_steps_of_a_pipeline_that_is_over_do_not_wait_for_ever(
    reconciler: Reconciler, ledger: Database
) -> None:
    with ledger.write() as connection:
        add_job(connection)
        parent = add_run(connection, "monday", state=RunState.CANCELLED, kind="pipeline")
        step = add_run(connection, "tidy", state=RunState.WAITING, parent_id=parent, after=[])
    reconciler.run_once()
    found = run_of(ledger, step)
    assert (found.state, found.reason) == (RunState.SKIPPED, "its pipeline was over before it could begin")
