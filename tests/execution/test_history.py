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
from maintd.execution.queues import Queue
from maintd.execution.runtime import Runtime, open_runtime
from maintd.execution.worker import Worker, scene_of
from maintd.ledger import batches
from maintd.ledger.campaigns import Campaign
from maintd.ledger.engine import migrate
from maintd.ledger.states import CampaignState, DeliveryState
from maintd.ledger.timeline import LedgerHeld, standing
from maintd.mail.entries import Binding
from maintd.mail.held import HeldBatch, Pumped
from maintd.mail.recorder import Recorder
from maintd.mail.replay import Replayed
from maintd.smtp.mailbox import read_index
from tests.backups import Backups
from tests.ledgers import add_campaign, campaign_of, tallied
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
