"""What a dead sender's flight recorder proves: a few doubts, one for each open dot, and not a window full of them."""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from maintd.clock import new_token
from maintd.database import Database
from maintd.errors import Unavailable
from maintd.ledger import batches, deliveries
from maintd.ledger.campaigns import Campaign
from maintd.ledger.deliveries import Delivery, Outcome
from maintd.ledger.states import CampaignState, DeliveryState
from maintd.ledger.tables import batches as batch_rows
from maintd.ledger.tables import campaigns as campaign_rows
from maintd.mail.content.templates import Bundle
from maintd.mail.recording.entries import Binding
from maintd.mail.recording.recorder import Recorder, RecorderFailed
from maintd.mail.recording.recover import Scene, recover_batch, recover_orphans
from maintd.mail.sending.held import HeldBatch, Pumped
from maintd.smtp.faults import Action, Moment, Step, Then
from maintd.smtp.mailbox import read_index
from tests.ledgers import HandClock, add_campaign, campaign_of, key_of, race, tallied
from tests.mail.test_pump import pump_of, run
from tests.sinks import SinkThread

PENDING, SENT, UNCERTAIN = DeliveryState.PENDING, DeliveryState.SENT, DeliveryState.UNCERTAIN
LEASE = timedelta(seconds=30)
ACCEPTED = Outcome(recipient_key=key_of(0), ordinal=0, state=SENT, fact=True, phase="dot", code=250)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(directory=tmp_path / "recorders", boot_id="this boot", machine_id="this machine")


@pytest.fixture
def recorder(scene: Scene, clock: HandClock) -> Recorder:
    return Recorder.create(
        scene.directory,
        uid=new_token(),
        boot_id=scene.boot_id,
        machine_id=scene.machine_id,
        clock=clock,
    )


@pytest.fixture
def campaign(ledger: Database) -> Campaign:
    return add_campaign(ledger, recipients=12)


@pytest.fixture
def held(ledger: Database, campaign: Campaign, recorder: Recorder, clock: HandClock) -> HeldBatch:
    """A window of ten is marked; three dots went out, one of them was answered."""
    with ledger.write() as connection:
        batch = batches.claim(
            connection, campaign.id, size=12, token="mine", owner="host:1", recorder=recorder.name
        )
    assert batch is not None
    recorder.begin(batch.id, Binding.of(campaign))
    held = HeldBatch(
        campaign, batch, ledger=ledger, clock=clock, lease=LEASE, pumped=Pumped(), recorder=recorder
    )
    window = held.load()[:10]
    held.mark(window)
    assert [held.permit(delivery) for delivery in window[:3]] == [True, True, True]
    answered = window[0]
    held.learn(
        answered,
        Outcome(
            recipient_key=answered.recipient_key,
            ordinal=answered.ordinal,
            state=SENT,
            fact=True,
            phase="dot",
            code=250,
            detail="kept",
        ),
    )
    return held


def test_doubts_are_the_open_dots_and_nobody_waits_for_a_lease(
    ledger: Database, campaign: Campaign, held: HeldBatch, recorder: Recorder, scene: Scene, clock: HandClock
) -> None:
    recorder.close()  # as the kernel does for the dead: the lock is free, the file stays
    assert recover_orphans(ledger, scene=scene, now=clock.now()) == 2
    assert tallied(ledger, campaign.id) == {SENT: 1, UNCERTAIN: 2, PENDING: 9}
    assert list(scene.directory.glob("*.rec")) == []


def test_what_was_certainly_not_sent_is_sent_by_the_next_and_nobody_twice(
    ledger: Database,
    campaign: Campaign,
    held: HeldBatch,
    recorder: Recorder,
    scene: Scene,
    clock: HandClock,
    tmp_path: Path,
) -> None:
    recorder.close()
    recover_orphans(ledger, scene=scene, now=clock.now())
    with SinkThread(tmp_path / "mailbox") as relay:
        run(pump_of(ledger, relay.url, clock, batch=12, depth=8))
        assert relay.sink.accepted == 9
    assert tallied(ledger, campaign.id) == {SENT: 10, UNCERTAIN: 2}


def test_the_judge_of_a_stopped_counter_finds_the_same(
    ledger: Database, campaign: Campaign, held: HeldBatch, recorder: Recorder, scene: Scene, clock: HandClock
) -> None:
    recorder.close()
    with ledger.read() as connection:
        (seen,) = batches.held(connection)
    assert recover_batch(ledger, seen, scene=scene, now=clock.now()) == 2
    assert tallied(ledger, campaign.id) == {SENT: 1, UNCERTAIN: 2, PENDING: 9}


def test_the_recorder_of_one_who_lives_proves_nothing(
    ledger: Database, campaign: Campaign, held: HeldBatch, recorder: Recorder, scene: Scene, clock: HandClock
) -> None:
    """A process that was stopped may yet wake up and write: all of its window is in doubt. Its replies count later."""
    with ledger.read() as connection:
        (seen,) = batches.held(connection)
    assert recover_batch(ledger, seen, scene=scene, now=clock.now()) == 10
    assert tallied(ledger, campaign.id) == {UNCERTAIN: 10, PENDING: 2}
    held.keep_facts()
    assert tallied(ledger, campaign.id) == {SENT: 1, UNCERTAIN: 9, PENDING: 2}
    recorder.close()


@pytest.mark.parametrize("other", ["boot", "machine"])
def test_absence_proves_nothing_after_another_boot_or_on_another_machine(
    ledger: Database,
    campaign: Campaign,
    held: HeldBatch,
    recorder: Recorder,
    scene: Scene,
    clock: HandClock,
    other: str,
) -> None:
    recorder.close()
    elsewhere = Scene(
        directory=scene.directory,
        boot_id="another" if other == "boot" else scene.boot_id,
        machine_id="another" if other == "machine" else scene.machine_id,
    )
    assert recover_orphans(ledger, scene=elsewhere, now=clock.now()) == 9
    assert tallied(ledger, campaign.id) == {SENT: 1, UNCERTAIN: 9, PENDING: 2}


def test_an_acceptance_is_merged_although_somebody_else_had_judged_the_batch(
    ledger: Database, campaign: Campaign, held: HeldBatch, recorder: Recorder, scene: Scene, clock: HandClock
) -> None:
    nowhere = Scene(directory=scene.directory / "not here", boot_id="", machine_id="")
    with ledger.read() as connection:
        (seen,) = batches.held(connection)
    assert recover_batch(ledger, seen, scene=nowhere, now=clock.now()) == 10
    recorder.close()
    assert recover_orphans(ledger, scene=scene, now=clock.now()) == 0
    assert tallied(ledger, campaign.id) == {SENT: 1, UNCERTAIN: 9, PENDING: 2}


def test_without_an_entry_there_is_no_dot_and_nothing_is_in_doubt(
    ledger: Database,
    campaign: Campaign,
    recorder: Recorder,
    clock: HandClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise RecorderFailed("the flight recorder cannot be written: no space left on device")

    monkeypatch.setattr(recorder, "intend", full)
    with SinkThread(tmp_path / "mailbox") as relay:
        with pytest.raises(Unavailable, match="flight recorder"):
            run(pump_of(ledger, relay.url, clock, batch=12, depth=8, recorder=recorder))
        assert relay.sink.accepted == 0
    assert tallied(ledger, campaign.id) == {PENDING: 12}
    with ledger.read() as connection:
        assert batches.held(connection) == []


def test_a_pump_leaves_no_recording_behind_when_all_is_settled(
    ledger: Database, campaign: Campaign, recorder: Recorder, scene: Scene, clock: HandClock, tmp_path: Path
) -> None:
    with SinkThread(tmp_path / "mailbox") as relay:
        run(pump_of(ledger, relay.url, clock, batch=5, depth=8, recorder=recorder))
    recorder.close()
    assert tallied(ledger, campaign.id) == {SENT: 12}
    assert campaign_of(ledger, campaign.id).finished_at is not None
    assert list(scene.directory.glob("*.rec")) == []


def test_an_acceptance_is_merged_although_somebody_else_has_the_batch_by_now(
    ledger: Database, campaign: Campaign, held: HeldBatch, recorder: Recorder, scene: Scene, clock: HandClock
) -> None:
    """As when a judge on another host was quicker: the batch names the recorder of whoever took it up."""
    nowhere = Scene(directory=scene.directory / "not here", boot_id="", machine_id="")
    with ledger.write() as connection:
        (seen,) = batches.held(connection)
    recover_batch(ledger, seen, scene=nowhere, now=clock.now())
    with ledger.write() as connection:
        batches.claim(connection, campaign.id, size=12, token="theirs", owner="host:2", recorder="another")
    recorder.close()
    assert recover_orphans(ledger, scene=scene, now=clock.now()) == 0
    assert tallied(ledger, campaign.id) == {SENT: 1, UNCERTAIN: 9, PENDING: 2}


def test_another_campaigns_acceptance_is_left_out_of_the_merge(
    ledger: Database, campaign: Campaign, held: HeldBatch, recorder: Recorder, scene: Scene, clock: HandClock
) -> None:
    """As after a restored backup: the numbers of campaign and batch are another's now, or nobody's."""
    with ledger.write() as connection:
        connection.execute(sa.update(campaign_rows).values(uid="f" * 32))
        connection.execute(sa.update(batch_rows).values(recorder="another"))
    recorder.read(10_000, replace(ACCEPTED, recipient_key=key_of(5)))
    recorder.close()
    assert recover_orphans(ledger, scene=scene, now=clock.now()) == 0
    assert tallied(ledger, campaign.id) == {PENDING: 12}


def test_a_judge_waits_for_the_other_and_finds_the_same(
    ledger: Database, campaign: Campaign, held: HeldBatch, recorder: Recorder, scene: Scene, clock: HandClock
) -> None:
    recorder.close()
    with ledger.read() as connection:
        (seen,) = batches.held(connection)

    def judge(number: int) -> int | None:
        if number % 2:
            return recover_orphans(ledger, scene=scene, now=clock.now())
        return recover_batch(ledger, seen, scene=scene, now=clock.now())

    race(4, judge)
    assert tallied(ledger, campaign.id) == {SENT: 1, UNCERTAIN: 2, PENDING: 9}


@pytest.fixture
def _away_after_a_window(ledger: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger goes away in the first window, and comes back when the sender has given up."""
    away = iter([False, True, True])  # the first mark comes through; the next, and the letting go, do not
    write = Database.write

    def flickering(database: Database) -> AbstractContextManager[Connection]:
        if database is ledger and marked and next(away, False):
            raise Unavailable("the ledger does not answer")
        return write(database)

    marked: list[bool] = []
    mark = HeldBatch.mark

    def noticed(held: HeldBatch, window: list[Delivery]) -> set[bytes]:
        marked.append(True)
        return mark(held, window)

    monkeypatch.setattr(HeldBatch, "mark", noticed)
    monkeypatch.setattr(Database, "write", flickering)


@pytest.mark.usefixtures("_away_after_a_window")
def test_replies_that_were_read_reach_a_ledger_that_was_away(
    ledger: Database, campaign: Campaign, recorder: Recorder, clock: HandClock, tmp_path: Path
) -> None:
    with SinkThread(tmp_path / "mailbox") as relay:
        pump = pump_of(ledger, relay.url, clock, batch=12, depth=1, recorder=recorder)
        with pytest.raises(Unavailable):
            run(pump)
        assert relay.sink.accepted == 4
        run(pump)
        assert relay.sink.accepted == 12
    assert tallied(ledger, campaign.id) == {SENT: 12}


@pytest.mark.usefixtures("_away_after_a_window")
def test_replies_reach_a_ledger_that_was_away_until_their_reader_had_ended(
    ledger: Database, campaign: Campaign, recorder: Recorder, scene: Scene, clock: HandClock, tmp_path: Path
) -> None:
    with SinkThread(tmp_path / "mailbox") as relay:
        with pytest.raises(Unavailable):
            run(pump_of(ledger, relay.url, clock, batch=12, depth=1, recorder=recorder))
        recorder.close()
        assert tallied(ledger, campaign.id) == {PENDING: 12}
        assert recover_orphans(ledger, scene=scene, now=clock.now()) == 0
        assert tallied(ledger, campaign.id) == {SENT: 4, PENDING: 8}
        run(pump_of(ledger, relay.url, clock, batch=12, depth=1))
        assert relay.sink.accepted == 12
    assert tallied(ledger, campaign.id) == {SENT: 12}


def test_a_session_that_breaks_lets_the_others_come_to_their_end(
    ledger: Database, clock: HandClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = add_campaign(ledger, recipients=12, edition="two")
    learn = HeldBatch.learn
    broken: list[bool] = []

    def breaking(held: HeldBatch, delivery: Delivery, outcome: Outcome | None) -> None:
        if not broken:
            broken.append(True)
            raise RuntimeError("a defect of ours")
        learn(held, delivery, outcome)

    monkeypatch.setattr(HeldBatch, "learn", breaking)
    with SinkThread(tmp_path / "mailbox") as relay:
        pump = pump_of(ledger, relay.url, clock, batch=12, depth=4)
        with pytest.raises(RuntimeError, match="a defect of ours"):
            run(pump)
        run(pump)
    recipients = Counter(r for one in read_index(tmp_path / "mailbox") for r in one.recipients)
    assert set(recipients.values()) == {1}
    counts = tallied(ledger, campaign.id)
    assert counts.get(UNCERTAIN, 0) <= 4
    assert counts[SENT] + counts.get(UNCERTAIN, 0) == 12


def test_a_template_that_fails_for_everybody_pauses_its_campaign_and_no_other(
    ledger: Database, campaign: Campaign, clock: HandClock, tmp_path: Path
) -> None:
    broken = Bundle(
        name="hello", files={"hello/subject.txt": "Hi", "hello/body.txt": "{{ name.nothing.there }}"}
    )
    other = add_campaign(ledger, recipients=100, job="broken", bundle=broken)
    with SinkThread(tmp_path / "mailbox") as relay:
        run(pump_of(ledger, relay.url, clock, batch=10, depth=8))
    assert tallied(ledger, campaign.id) == {SENT: 12}
    assert campaign_of(ledger, other.id).state is CampaignState.PAUSED
    assert tallied(ledger, other.id)[PENDING] >= 60


def test_a_relay_that_hangs_up_before_every_message_is_away_and_costs_nobody_a_try(
    ledger: Database, campaign: Campaign, clock: HandClock, tmp_path: Path
) -> None:
    def hang_up(moment: Moment) -> Action | None:
        return Action(then=Then.DROP) if moment.step is Step.DATA else None

    with SinkThread(tmp_path / "mailbox", script=hang_up) as relay:
        pump = pump_of(ledger, relay.url, clock, batch=12, depth=4)
        for _ in range(5):
            with pytest.raises(Unavailable, match="takes no message"):
                run(pump)
    # One after the other is put behind those that may fare better, and none is charged a try.
    with ledger.read() as connection:
        line = deliveries.of_campaign(connection, campaign.id, state=None, limit=100)
    assert {delivery.state for delivery in line} <= {PENDING, DeliveryState.DEFERRED}
    assert {delivery.failures for delivery in line} == {0}
