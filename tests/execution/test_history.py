"""A ledger is put back to a backup in the middle of a mailing: nobody is mailed twice, nobody is forgotten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from maintd.clock import SystemClock, new_token
from maintd.config.load import load_settings
from maintd.database import Database
from maintd.execution import history
from maintd.execution.history import NotHeld
from maintd.execution.queues import Queue
from maintd.execution.reconcile import Reconciler
from maintd.execution.runtime import Runtime, open_runtime
from maintd.execution.trigger import trigger
from maintd.execution.worker import Worker, scene_of
from maintd.ledger import batches, campaigns, jobs
from maintd.ledger.campaigns import Campaign
from maintd.ledger.deliveries import Delivery, Outcome
from maintd.ledger.engine import migrate
from maintd.ledger.states import CampaignState, DeliveryState, RunState
from maintd.ledger.timeline import LedgerHeld, standing
from maintd.mail.recording.entries import Binding
from maintd.mail.recording.recorder import Recorder
from maintd.mail.recording.replay import Replayed, StillMailing
from maintd.mail.sending.held import HeldBatch, Pumped
from maintd.scheduling.occurrences import fire
from maintd.smtp.mailbox import read_index
from tests.backups import Backups
from tests.execution.surroundings import drain
from tests.ledgers import NOW, add_campaign, add_job, add_run, campaign_of, run_of, tallied
from tests.sinks import SinkThread

PENDING, SENT, UNCERTAIN = DeliveryState.PENDING, DeliveryState.SENT, DeliveryState.UNCERTAIN


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[SinkThread]:
    with SinkThread(tmp_path / "mailbox", store=False) as relay:
        yield relay


@pytest.fixture
def runtime(tmp_path: Path, database_url: str, relay: SinkThread) -> Iterator[Runtime]:
    migrate(database_url)
    with closing(host(tmp_path, database_url, relay, "state")) as runtime:
        yield runtime


def host(directory: Path, ledger_url: str, relay: SinkThread, name: str) -> Runtime:
    """One more host of the same ledger."""
    environ = {
        "MAINTD_STATE_DIR": str(directory / name),
        "MAINTD_DATABASE_URL": ledger_url,
        "MAINTD_SMTP_URL": relay.url,
        "MAINTD_SMTP_CONNECTIONS": "2",
        "MAINTD_MAIL_BATCH": "8",
        "MAINTD_STATE_DIR_VOLATILE": "allow",
    }
    return open_runtime(load_settings(environ=environ, env_file=None), clock=SystemClock())


@pytest.fixture
def backups(database_url: str, tmp_path: Path) -> Backups:
    return Backups(database_url, tmp_path)


def mail(runtime: Runtime, relay: SinkThread, *, at_least: int = 1_000_000) -> None:
    """Mails until the relay has so many, or until nothing is left."""
    with closing(Worker(runtime, stopping=lambda: relay.sink.accepted >= at_least)) as worker:
        worker.work(Queue.MAIL_BULK)


def accepted(tmp_path: Path) -> Counter[str]:
    return Counter(to for one in read_index(tmp_path / "mailbox") for to in one.recipients)


def everybody(campaign: Campaign) -> Counter[str]:
    return Counter(f"p{number}@example.org" for number in range(campaign.enrolled))


def accept(runtime: Runtime) -> Replayed:
    return history.accept(runtime, progress=lambda _read, _of: None)[0]


def replay(runtime: Runtime, *, dry_run: bool = False) -> Replayed:
    return history.make_good(runtime, dry_run=dry_run, claims_of_all=False, progress=lambda _read, _of: None)


def held(ledger: Database) -> str | None:
    with ledger.read() as connection:
        return standing(connection).held


def test_what_was_mailed_after_the_backup_is_not_mailed_again(
    runtime: Runtime, relay: SinkThread, backups: Backups, tmp_path: Path
) -> None:
    campaign = add_campaign(runtime.ledger, recipients=60)
    mail(runtime, relay, at_least=10)
    backup = backups.take()
    mail(runtime, relay, at_least=30)
    before = relay.sink.accepted
    backups.restore(backup)

    mail(runtime, relay)
    assert relay.sink.accepted == before
    assert "went back in time" in (held(runtime.ledger) or "")

    assert accept(runtime).accepted > 0
    assert tallied(runtime.ledger, campaign.id)[SENT] == before
    mail(runtime, relay)
    assert accepted(tmp_path) == everybody(campaign)
    assert tallied(runtime.ledger, campaign.id) == {SENT: 60}
    assert campaign_of(runtime.ledger, campaign.id).state is CampaignState.FINISHED


def test_a_living_sender_notices_before_any_further_dot_and_goes_on_when_the_ledger_is_accepted(
    runtime: Runtime, relay: SinkThread, backups: Backups, tmp_path: Path
) -> None:
    campaign = add_campaign(runtime.ledger, recipients=60)
    backup = backups.take()
    enough = [20]
    with closing(Worker(runtime, stopping=lambda: relay.sink.accepted >= enough[0])) as worker:
        worker.work(Queue.MAIL_BULK)
        before = relay.sink.accepted
        backups.restore(backup)
        enough[0] = 1_000_000
        assert worker.work(Queue.MAIL_BULK) == set()
        assert relay.sink.accepted == before
        accept(runtime)
        worker.work(Queue.MAIL_BULK)
    assert accepted(tmp_path) == everybody(campaign)
    assert tallied(runtime.ledger, campaign.id) == {SENT: 60}


def test_a_ledger_that_goes_back_between_two_windows_gets_nothing_more_written(
    runtime: Runtime, backups: Backups
) -> None:
    """The batch is held in the backup too, with the same token: closing it would lose who was settled since."""
    campaign = add_campaign(runtime.ledger, recipients=6)
    holder, recorder = hold_batch(runtime, campaign)
    window = holder.load()
    holder.mark(window[:1])
    backup = backups.take()
    holder.mark(window[1:3])
    backups.restore(backup)
    for act in (holder.finish, holder.leave, holder.keep_facts, lambda: holder.mark(window[3:])):
        with pytest.raises(LedgerHeld):
            act()
    assert tallied(runtime.ledger, campaign.id) == {PENDING: 6}
    recorder.close()


def hold_batch(runtime: Runtime, campaign: Campaign) -> tuple[HeldBatch, Recorder]:
    scene = scene_of(runtime)
    recorder = Recorder.create(
        scene.directory,
        uid=new_token(),
        boot_id=scene.boot_id,
        machine_id=scene.machine_id,
        clock=runtime.clock,
    )
    with runtime.ledger.write() as connection:
        batch = batches.claim(
            connection, campaign.id, size=12, token=new_token(), owner="host:1", recorder=recorder.name
        )
    assert batch is not None
    recorder.begin(batch.id, Binding.of(campaign))
    holder = HeldBatch(
        campaign,
        batch,
        ledger=runtime.ledger,
        clock=runtime.clock,
        lease=runtime.settings.lease,
        pumped=Pumped(),
        recorder=recorder,
        timeline=runtime.timeline,
    )
    return holder, recorder


def outcome(delivery: Delivery) -> Outcome:
    return Outcome(
        recipient_key=delivery.recipient_key,
        ordinal=delivery.ordinal,
        state=SENT,
        fact=True,
        phase="dot",
        code=250,
    )


def test_a_dot_that_nobody_answered_after_the_backup_is_doubtful_and_what_has_none_is_sent(
    runtime: Runtime, relay: SinkThread, backups: Backups, tmp_path: Path
) -> None:
    campaign = add_campaign(runtime.ledger, recipients=6)
    backup = backups.take()
    holder, recorder = hold_batch(runtime, campaign)
    window = holder.load()
    holder.mark(window[:4])
    for delivery in window[:3]:
        assert holder.permit(delivery)
    holder.learn(window[0], outcome(window[0]))
    recorder.close()  # as the kernel does for the dead
    backups.restore(backup)

    dry = history.make_good(runtime, dry_run=True, claims_of_all=True, progress=lambda _read, _of: None)
    assert held(runtime.ledger) is None
    assert tallied(runtime.ledger, campaign.id) == {PENDING: 6}
    done = accept(runtime)
    assert (done.recordings, done.accepted, done.doubtful, done.released) == (1, 1, 2, 0)
    assert dry == done
    assert tallied(runtime.ledger, campaign.id) == {SENT: 1, UNCERTAIN: 2, PENDING: 3}
    mail(runtime, relay)
    assert sorted(accepted(tmp_path)) == ["p3@example.org", "p4@example.org", "p5@example.org"]


def test_a_claim_of_the_past_is_judged_by_the_recording_of_its_holder(
    runtime: Runtime, backups: Backups
) -> None:
    """The batch was held when the ledger was backed up; its holder went on, to the end, and is gone."""
    campaign = add_campaign(runtime.ledger, recipients=6)
    holder, recorder = hold_batch(runtime, campaign)
    window = holder.load()
    holder.mark(window[:4])
    backup = backups.take()
    for delivery in window[:3]:
        assert holder.permit(delivery)
    for delivery in window[:2]:
        holder.learn(delivery, outcome(delivery))
    holder.mark(window[4:])
    holder.leave()
    recorder.settled(holder.batch.id)
    recorder.close()
    backups.restore(backup)

    done = accept(runtime)
    assert (done.accepted, done.doubtful, done.released) == (2, 1, 1)
    assert tallied(runtime.ledger, campaign.id) == {SENT: 2, UNCERTAIN: 1, PENDING: 3}


def test_what_was_marked_by_a_host_that_did_not_replay_is_doubtful(
    runtime: Runtime, backups: Backups, tmp_path: Path, database_url: str, relay: SinkThread
) -> None:
    campaign = add_campaign(runtime.ledger, recipients=6)
    with closing(host(tmp_path, database_url, relay, "elsewhere")) as elsewhere:
        holder, recorder = hold_batch(elsewhere, campaign)
        holder.mark(holder.load()[:4])
        backup = backups.take()
        recorder.close()
    with runtime.timeline.forward():
        pass
    backups.restore(backup)
    assert accept(runtime).doubtful == 4
    assert tallied(runtime.ledger, campaign.id) == {UNCERTAIN: 4, PENDING: 2}


def test_every_host_replays_what_only_it_knows_and_any_may_accept(
    runtime: Runtime, relay: SinkThread, backups: Backups, tmp_path: Path, database_url: str
) -> None:
    campaign = add_campaign(runtime.ledger, recipients=60)
    backup = backups.take()
    with closing(host(tmp_path, database_url, relay, "elsewhere")) as elsewhere:
        mail(elsewhere, relay, at_least=20)
        mail(runtime, relay, at_least=40)
        before = relay.sink.accepted
        backups.restore(backup)
        here, there = replay(runtime).accepted, replay(elsewhere).accepted
        assert here + there == before
        assert replay(elsewhere).accepted == 0
        assert held(runtime.ledger) is not None
        accept(elsewhere)
        mail(runtime, relay)
    assert accepted(tmp_path) == everybody(campaign)


def test_nothing_is_accepted_while_somebody_here_may_still_mail(runtime: Runtime, backups: Backups) -> None:
    campaign = add_campaign(runtime.ledger, recipients=6)
    backup = backups.take()
    holder, recorder = hold_batch(runtime, campaign)
    holder.mark(holder.load())
    backups.restore(backup)
    with pytest.raises(StillMailing, match="stop maintd on this host"):
        accept(runtime)
    assert held(runtime.ledger) is not None
    recorder.close()
    accept(runtime)


def test_a_ledger_that_went_nowhere_is_not_accepted(runtime: Runtime) -> None:
    with pytest.raises(NotHeld):
        accept(runtime)
    history.hold_ledger(runtime, reason="a drill")
    accept(runtime)
    assert held(runtime.ledger) is None


def test_a_damaged_recording_counts_as_far_as_it_can_be_read(runtime: Runtime, backups: Backups) -> None:
    campaign = add_campaign(runtime.ledger, recipients=6)
    backup = backups.take()
    holder, recorder = hold_batch(runtime, campaign)
    window = holder.load()
    holder.mark(window)
    for delivery in window[:2]:
        assert holder.permit(delivery)
        holder.learn(delivery, outcome(delivery))
    recorder.close()
    [path] = scene_of(runtime).directory.glob("*.rec")
    path.write_bytes(path.read_bytes()[:-1])
    backups.restore(backup)
    done = accept(runtime)
    assert (done.accepted, done.doubtful, done.damaged) == (1, 1, [path.name])
    assert history.status(runtime).damaged == (f"{path.stem}.damaged",)


@pytest.mark.parametrize("enrolling", [True, False])
def test_an_edition_that_the_ledger_has_forgotten_is_closed_and_its_job_paused(
    runtime: Runtime, relay: SinkThread, backups: Backups, enrolling: bool
) -> None:
    with runtime.ledger.write() as connection:
        add_job(connection, "hello", kind="campaign")
    if enrolling:
        campaign = add_campaign(runtime.ledger, recipients=6, state=CampaignState.ENROLLING)
    backup = backups.take()
    if enrolling:
        with runtime.timeline.forward() as connection:
            campaigns.move(connection, campaign.id, to=CampaignState.SENDING, now=runtime.clock.now())
    else:
        add_campaign(runtime.ledger, recipients=6)
    mail(runtime, relay)
    backups.restore(backup)

    [forgotten] = accept(runtime).forgotten
    assert (forgotten.name, forgotten.mailed) == ("hello/one", 6)
    with runtime.ledger.read() as connection:
        job = jobs.require(connection, "hello")
        edition = campaigns.named(connection, "hello/one")
    assert job.paused_at is not None
    assert "edition one, of which 6 were mailed" in (job.pause_reason or "")
    assert edition.state is CampaignState.CANCELLED
    mail(runtime, relay)
    assert relay.sink.accepted == 6


def test_while_the_ledger_is_held_nothing_begins_and_afterwards_it_does(
    runtime: Runtime, relay: SinkThread
) -> None:
    with runtime.ledger.write() as connection:
        add_job(connection, cursor_at=NOW, next_at=NOW)
        waiting = add_run(connection)
    campaign = add_campaign(runtime.ledger, recipients=6)
    history.hold_ledger(runtime, reason="a drill")
    with closing(Worker(runtime, stopping=lambda: False)) as worker:
        assert worker.work(Queue.MAIL_BULK) == worker.work(Queue.MAINTENANCE) == set()
        for act in (
            worker.ready_to_mail,
            Reconciler(runtime).run_once,
            lambda: trigger("tidy", runtime),
            lambda: drain(runtime),
            lambda: fire(runtime.timeline, ["tidy"], now=NOW, queue_of=lambda _: "maintenance"),
        ):
            with pytest.raises(LedgerHeld, match="a drill"):
                act()
        assert run_of(runtime.ledger, waiting).state is RunState.QUEUED
        assert tallied(runtime.ledger, campaign.id) == {PENDING: 6}
        accept(runtime)
        worker.work(Queue.MAIL_BULK)
    assert relay.sink.accepted == 6


def test_facts_about_a_campaign_that_was_forgotten_go_to_nobody_elses(
    runtime: Runtime, backups: Backups
) -> None:
    """A sender stood still while the ledger was restored and accepted; the number of its campaign is another's now."""
    backup = backups.take()
    holder, recorder = hold_batch(runtime, add_campaign(runtime.ledger, recipients=2, job="older"))
    window = holder.load()
    holder.mark(window)
    holder.learn(window[0], outcome(window[0]))
    recorder.close()
    backups.restore(backup)
    accept(runtime)
    newer = add_campaign(runtime.ledger, recipients=2, job="newer")
    assert newer.id == holder.campaign.id
    holder.leave()
    assert tallied(runtime.ledger, newer.id) == {PENDING: 2}
