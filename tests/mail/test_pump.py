from __future__ import annotations

import asyncio
import email
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from maintd.clock import Clock
from maintd.database import Database
from maintd.demo.tally import Tally, tally
from maintd.errors import Unavailable
from maintd.ledger import batches, campaigns, deliveries, suppressions
from maintd.ledger.batches import Batch
from maintd.ledger.campaigns import Campaign
from maintd.ledger.deliveries import Delivery, Outcome
from maintd.ledger.states import BatchState, CampaignState, DeliveryState
from maintd.ledger.tables import batches as batch_rows
from maintd.ledger.tables import campaigns as campaign_rows
from maintd.ledger.tables import deliveries as delivery_rows
from maintd.ledger.tables import lines as line_rows
from maintd.mail import control
from maintd.mail.compose import Composer
from maintd.mail.recording import recover
from maintd.mail.recording.recorder import Recorder
from maintd.mail.recording.recover import MOST_LOSSES, Scene
from maintd.mail.sending import pump as pumping
from maintd.mail.sending.allowance import Limits
from maintd.mail.sending.held import HeldBatch, Marked, Pumped
from maintd.mail.sending.pump import Pump, PumpSettings
from maintd.smtp.faults import Action, Moment, Script, Step, Then
from maintd.smtp.mailbox import read_index
from maintd.smtp.pool import SessionPool
from maintd.smtp.relays import parse_relays
from maintd.smtp.route import Manner
from maintd.smtp.session import Outgoing, Timeouts
from tests.ledgers import (
    MINUTE,
    NOW,
    HandClock,
    add_campaign,
    campaign_of,
    claim_batch,
    key_of,
    race,
    states_of,
    tallied,
)
from tests.sinks import SinkThread

PENDING, DEFERRED, SENT = DeliveryState.PENDING, DeliveryState.DEFERRED, DeliveryState.SENT
UNCERTAIN, REJECTED = DeliveryState.UNCERTAIN, DeliveryState.REJECTED
LEASE = timedelta(seconds=30)
TURN = timedelta(seconds=2)
NOWHERE = Scene(directory=Path("/nowhere"), boot_id="", machine_id="")
ACCEPT_AND_DROP = Action(accept=True, then=Then.DROP)


@pytest.fixture
def relay(mailbox: Path) -> Iterator[SinkThread]:
    with SinkThread(mailbox) as sink:
        yield sink


def pump_of(
    ledger: Database,
    url: str,
    clock: Clock,
    *,
    connections: int = 4,
    batch: int = 10,
    depth: int = 1,
    redirect: str | None = None,
    recorder: Recorder | None = None,
    limits: Limits | None = None,
    look: timedelta = timedelta(hours=1),
    urgent: bool = True,
    bulk: bool = True,
) -> Pump:
    timeouts = Timeouts(connect_s=30, command_s=30, dot_s=30)
    return Pump(
        ledger=ledger,
        sessions=SessionPool(
            parse_relays(url, where="test"),
            connections=connections,
            manner=Manner(timeouts=timeouts, hello="test.example", clock=clock, draw=lambda: 0.0),
        ),
        settings=PumpSettings(
            batch=batch,
            depth=depth,
            lease=LEASE,
            heartbeat=timedelta(hours=1),
            look=look,
            turn=TURN,
            urgent=urgent,
            bulk=bulk,
            redirect=redirect,
            limits=limits or Limits(),
        ),
        clock=clock,
        owner="host:1",
        recorder=recorder,
    )


def run(
    pump: Pump, *, stopping: Callable[[], bool] = lambda: False, budget: timedelta = timedelta(days=1)
) -> Pumped:
    return asyncio.run(pump.run(stopping=stopping, budget=budget))


def put_back(ledger: Database, clock: Clock) -> int:
    with ledger.write() as connection:
        return recover.put_back_in_line(connection, now=clock.now(), limit=1000)


def judge(ledger: Database) -> int:
    """Takes every held batch from its holder, as after a lease without a heartbeat; returns the doubts."""
    with ledger.write() as connection:
        return sum(
            recover.recover(connection, held, recording=None, scene=NOWHERE, now=NOW) or 0
            for held in batches.held(connection)
        )


def at(step: Step, recipient: int, action: Action, *, times: int = 1_000_000) -> Script:
    """Misbehaves at one step of the messages to one recipient, so many times."""
    left = iter(range(times))

    def script(moment: Moment) -> Action | None:
        matches = moment.step is step and moment.recipient == f"p{recipient}@example.org"
        return action if matches and next(left, None) is not None else None

    return script


def doing(step: Step, recipient: int, act: Callable[[], object]) -> Script:
    """Does something beside, once, at a step of a message to one recipient; the relay behaves."""
    left = iter([act])

    def script(moment: Moment) -> Action | None:
        if moment.step is step and moment.recipient == f"p{recipient}@example.org":
            next(left, lambda: None)()
        return None

    return script


def checked(ledger: Database, campaign: Campaign, mailbox: Path) -> Tally:
    """Holds the relay's own index against the recipients and the doubts that the ledger names."""
    with ledger.read() as connection:
        everybody = deliveries.of_campaign(connection, campaign.id, state=None, limit=1_000_000)
    return tally(
        mailbox,
        campaign=campaign.name,
        expected=frozenset(delivery.address for delivery in everybody),
        uncertain=frozenset(delivery.address for delivery in everybody if delivery.state is UNCERTAIN),
    )


def arrived(mailbox: Path) -> Counter[str]:
    return Counter(address for accepted in read_index(mailbox) for address in accepted.recipients)


def one(ledger: Database, campaign: Campaign, number: int) -> Delivery:
    with ledger.read() as connection:
        (found,) = [d for d in deliveries.find(connection, key_of(number)) if d.campaign_id == campaign.id]
    return found


def batches_of(ledger: Database, campaign: Campaign) -> list[Batch]:
    with ledger.read() as connection:
        rows = connection.execute(
            sa.select(batch_rows).where(batch_rows.c.campaign_id == campaign.id).order_by(batch_rows.c.id)
        )
        return [Batch(**row) for row in rows.mappings()]


def test_every_recipient_gets_one_message_and_its_outcome_is_recorded(
    ledger: Database, relay: SinkThread, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=25)
    pumped = run(pump_of(ledger, relay.url, clock))
    assert checked(ledger, campaign, mailbox).exact
    assert pumped.settled == {SENT: 25}
    assert pumped.finished == [campaign.id]
    assert campaign_of(ledger, campaign.id).state is CampaignState.FINISHED
    assert tallied(ledger, campaign.id) == {SENT: 25}
    found = one(ledger, campaign, 7)
    assert (found.phase, found.code, found.enhanced, found.settled_at) == ("dot", 250, "2.0.0", NOW)
    assert {batch.state for batch in batches_of(ledger, campaign)} == {BatchState.DONE}


def test_campaigns_take_turns_by_the_batch(
    ledger: Database, relay: SinkThread, mailbox: Path, clock: HandClock
) -> None:
    for edition in ("one", "two"):
        add_campaign(ledger, recipients=8, edition=edition)
    run(pump_of(ledger, relay.url, clock, batch=4))
    turns = [accepted.campaign for accepted in read_index(mailbox)]
    assert turns == [name for name in ("hello/one", "hello/two") * 2 for _ in range(4)]


def test_a_temporary_refusal_comes_back_into_the_line_and_is_sent(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=6)
    script = at(Step.RCPT, 2, Action(reply="451 4.7.1 Greylisted"), times=1)
    with SinkThread(mailbox, script=script) as relay:
        run(pump_of(ledger, relay.url, clock))
        refused = one(ledger, campaign, 2)
        assert (refused.state, refused.phase, refused.code) == (DEFERRED, "rcpt", 451)
        assert refused.due_at is not None
        assert refused.due_at >= NOW + 5 * MINUTE
        assert campaign_of(ledger, campaign.id).state is CampaignState.SENDING
        assert put_back(ledger, clock) == 0
        clock.turn(7 * MINUTE)
        assert put_back(ledger, clock) == 1
        run(pump_of(ledger, relay.url, clock))
    assert one(ledger, campaign, 2).state is SENT
    assert checked(ledger, campaign, mailbox).exact
    assert campaign_of(ledger, campaign.id).state is CampaignState.FINISHED


@pytest.mark.parametrize("step", [Step.RCPT, Step.DATA, Step.DOT])
def test_a_refused_address_is_never_tried_again_and_the_others_go_on(
    ledger: Database, mailbox: Path, clock: HandClock, step: Step
) -> None:
    campaign = add_campaign(ledger, recipients=6)
    script = at(step, 2, Action(reply="550 5.1.1 No such user"))
    with SinkThread(mailbox, script=script) as relay:
        run(pump_of(ledger, relay.url, clock, connections=1))
    refused = one(ledger, campaign, 2)
    assert (refused.state, refused.code, refused.enhanced) == (REJECTED, 550, "5.1.1")
    assert (refused.phase, refused.detail) == (step.value, "No such user")
    assert arrived(mailbox) == {f"p{number}@example.org": 1 for number in (0, 1, 3, 4, 5)}
    assert tallied(ledger, campaign.id) == {SENT: 5, REJECTED: 1}
    assert campaign_of(ledger, campaign.id).state is CampaignState.FINISHED


def test_one_recipient_whose_message_cannot_be_made_stops_nobody_else(
    ledger: Database, mailbox: Path, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = add_campaign(ledger, recipients=6)
    message = Composer.message

    def explode(composer: Composer, delivery: Delivery) -> Outgoing:
        if delivery.ordinal == 3:
            raise UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "surrogates not allowed")
        return message(composer, delivery)

    monkeypatch.setattr(Composer, "message", explode)
    with SinkThread(mailbox) as relay:
        run(pump_of(ledger, relay.url, clock))
    refused = one(ledger, campaign, 3)
    assert (refused.state, refused.phase, refused.detail) == (REJECTED, "render", "UnicodeEncodeError")
    assert tallied(ledger, campaign.id) == {SENT: 5, REJECTED: 1}


def test_what_is_deferred_in_the_last_window_of_a_cancelled_campaign_is_cancelled(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=4)

    def script(moment: Moment) -> Action | None:
        if moment.step is not Step.DOT or moment.recipient != "p2@example.org":
            return None
        control.cancel(ledger, campaign.name, reason="enough", clock=clock)
        return Action(reply="451 later")

    with SinkThread(mailbox, script=script) as relay:
        run(pump_of(ledger, relay.url, clock))
    with ledger.write() as connection:
        recover.settle_cancelled(connection, now=clock.now(), limit=10)
    assert tallied(ledger, campaign.id) == {SENT: 3, DeliveryState.CANCELLED: 1}


def test_a_late_word_of_later_makes_a_finished_campaign_send_again(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    """Its sender was stopped after it had read the refusal; the doubt that was judged meanwhile is none."""
    campaign = add_campaign(ledger, recipients=1)
    batch = claim_batch(ledger, campaign)
    assert batch is not None
    stopped = HeldBatch(campaign, batch, ledger=ledger, clock=clock, lease=LEASE, pumped=Pumped())
    (delivery,) = stopped.load()
    stopped.mark([delivery])
    stopped.learn(
        delivery,
        Outcome(
            recipient_key=delivery.recipient_key,
            ordinal=delivery.ordinal,
            state=DEFERRED,
            fact=True,
            code=451,
            due_at=clock.now(),
        ),
    )
    judge(ledger)
    with SinkThread(mailbox) as relay:
        run(pump_of(ledger, relay.url, clock))
        assert campaign_of(ledger, campaign.id).state is CampaignState.FINISHED
        stopped.keep_facts()
        with ledger.write() as connection:
            assert recover.put_back_in_line(connection, now=clock.now(), limit=10) == 1
        run(pump_of(ledger, relay.url, clock))
    assert tallied(ledger, campaign.id) == {SENT: 1}
    assert campaign_of(ledger, campaign.id).state is CampaignState.FINISHED


def test_a_message_whose_answer_was_lost_is_doubtful_and_not_sent_again(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=12)
    with SinkThread(mailbox, script=at(Step.DOT, 3, ACCEPT_AND_DROP)) as relay:
        run(pump_of(ledger, relay.url, clock))
        clock.turn(timedelta(days=2))
        assert put_back(ledger, clock) == 0
        run(pump_of(ledger, relay.url, clock))
    assert arrived(mailbox)["p3@example.org"] == 1
    assert states_of(ledger, campaign.id)[3] is UNCERTAIN
    assert tallied(ledger, campaign.id) == {SENT: 11, UNCERTAIN: 1}
    assert checked(ledger, campaign, mailbox).exact
    assert campaign_of(ledger, campaign.id).state is CampaignState.FINISHED


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_a_doubt_that_must_not_be_lost_is_sent_again_as_often_as_copies_are_allowed(
    ledger: Database, mailbox: Path, clock: HandClock, copies: int
) -> None:
    campaign = add_campaign(ledger, recipients=4, spec={"uncertain": "never_lose", "max_copies": copies})
    with SinkThread(mailbox, script=at(Step.DOT, 1, ACCEPT_AND_DROP)) as relay:
        for _ in range(copies + 2):
            run(pump_of(ledger, relay.url, clock))
            put_back(ledger, clock)
    assert arrived(mailbox) == {f"p{number}@example.org": copies if number == 1 else 1 for number in range(4)}
    assert tallied(ledger, campaign.id) == {SENT: 3, UNCERTAIN: 1}
    assert campaign_of(ledger, campaign.id).state is CampaignState.FINISHED
    with ledger.read() as connection:
        (parked,) = deliveries.uncertain(connection, campaign_id=campaign.id, limit=10)
    assert (parked.recipient, parked.copies) == ("1", copies - 1)


def test_a_doubt_that_is_sent_again_and_answered_is_settled(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=4, spec={"uncertain": "never_lose"})
    with SinkThread(mailbox, script=at(Step.DOT, 1, Action(then=Then.DROP), times=1)) as relay:
        run(pump_of(ledger, relay.url, clock))
        assert put_back(ledger, clock) == 1
        run(pump_of(ledger, relay.url, clock))
    assert checked(ledger, campaign, mailbox).exact
    assert tallied(ledger, campaign.id) == {SENT: 4}


def test_a_connection_lost_before_the_dot_costs_nobody_a_message(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=9)
    with SinkThread(mailbox, script=at(Step.DATA, 2, Action(then=Then.DROP), times=2)) as relay:
        run(pump_of(ledger, relay.url, clock))
        assert relay.sink.transactions == 11
    assert checked(ledger, campaign, mailbox).exact
    assert tallied(ledger, campaign.id) == {SENT: 9}


def test_what_one_relay_did_not_take_goes_to_another_and_nobody_gets_two(
    ledger: Database, tmp_path: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=120)
    away = threading.Event()

    def script(moment: Moment) -> Action | None:
        if moment.step is Step.DATA and moment.message == 20:
            away.set()
        return Action(then=Then.DROP) if away.is_set() and moment.step is not Step.DOT else None

    with SinkThread(tmp_path / "one", script=script) as one, SinkThread(tmp_path / "other") as other:
        run(pump_of(ledger, f"{one.url}?weight=3 {other.url}", clock, batch=60))
        assert one.sink.accepted > 0
    assert tallied(ledger, campaign.id) == {SENT: 120}
    assert arrived(tmp_path / "one") + arrived(tmp_path / "other") == {
        f"p{number}@example.org": 1 for number in range(120)
    }


@pytest.mark.parametrize("depth", [1, 32])
def test_no_connection_carries_more_messages_than_its_relay_wants(
    ledger: Database, mailbox: Path, clock: HandClock, depth: int
) -> None:
    add_campaign(ledger, recipients=60)
    with SinkThread(mailbox) as relay:
        connects = []

        def script(moment: Moment) -> Action | None:
            connects.extend([moment] if moment.step is Step.CONNECT else [])
            return None

        relay.sink.script = script
        run(pump_of(ledger, f"{relay.url}?messages=5", clock, connections=2, batch=60, depth=depth))
        assert len(connects) == 12
        assert relay.sink.transactions == 60


def test_a_message_that_loses_every_connection_waits_and_lets_the_others_pass(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=9)
    with SinkThread(mailbox, script=at(Step.DATA, 2, Action(then=Then.DROP))) as relay:
        run(pump_of(ledger, relay.url, clock))
    assert tallied(ledger, campaign.id) == {SENT: 8, DEFERRED: 1}
    assert states_of(ledger, campaign.id)[2] is DEFERRED


def test_a_recipient_whose_mail_cannot_be_made_is_rejected_and_the_rest_goes_on(
    ledger: Database, relay: SinkThread, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=9)
    with ledger.write() as connection:
        connection.execute(
            sa.update(delivery_rows).where(delivery_rows.c.ordinal.in_([0, 5])).values(fields={})
        )
    run(pump_of(ledger, relay.url, clock))
    failed = one(ledger, campaign, 5)
    assert (failed.state, failed.phase, failed.code) == (REJECTED, "render", None)
    assert failed.detail is not None
    assert "undefined" in failed.detail
    assert tallied(ledger, campaign.id) == {SENT: 7, REJECTED: 2}
    assert arrived(mailbox).keys() == {f"p{number}@example.org" for number in range(9)} - {
        "p0@example.org",
        "p5@example.org",
    }


def test_a_campaign_whose_messages_cannot_be_made_is_paused_and_the_others_go_on(
    ledger: Database, relay: SinkThread, clock: HandClock
) -> None:
    unusable = add_campaign(ledger, recipients=2, edition="one", spec={"from": None})
    usable = add_campaign(ledger, recipients=2, edition="two")
    run(pump_of(ledger, relay.url, clock))
    paused = campaign_of(ledger, unusable.id)
    assert paused.state is CampaignState.PAUSED
    assert paused.reason is not None
    assert "MAINTD_MAIL_FROM" in paused.reason
    assert batches_of(ledger, unusable) == []
    assert tallied(ledger, usable.id) == {SENT: 2}


def test_whoever_is_suppressed_after_enrolment_gets_nothing(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=12)

    def suppress(*numbers: int) -> None:
        with ledger.write() as connection:
            for number in numbers:
                suppressions.add(connection, key_of(number), reason="asked", now=NOW)

    suppress(0, 7)
    with SinkThread(mailbox, script=doing(Step.DOT, 1, lambda: suppress(5, 11))) as relay:
        run(pump_of(ledger, relay.url, clock, connections=2))
    assert tallied(ledger, campaign.id) == {SENT: 8, DeliveryState.SUPPRESSED: 4}
    assert not arrived(mailbox).keys() & {f"p{number}@example.org" for number in (0, 5, 7, 11)}


def test_what_is_too_late_is_not_sent(
    ledger: Database, relay: SinkThread, clock: HandClock, mailbox: Path
) -> None:
    campaign = add_campaign(ledger, recipients=5, expires_at=NOW + MINUTE)
    clock.turn(MINUTE)
    run(pump_of(ledger, relay.url, clock))
    assert arrived(mailbox) == {}
    assert tallied(ledger, campaign.id) == {DeliveryState.EXPIRED: 5}
    assert campaign_of(ledger, campaign.id).state is CampaignState.FINISHED


def test_redirected_mail_goes_to_one_address_and_still_says_whose_it_is(
    ledger: Database, relay: SinkThread, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=3)
    run(pump_of(ledger, relay.url, clock, redirect="staging@acme.example"))
    assert arrived(mailbox) == {"staging@acme.example": 3}
    detail = one(ledger, campaign, 0).detail
    assert detail is not None
    assert detail.startswith("redirected to staging@acme.example: ")
    messages = [email.message_from_bytes(path.read_bytes()) for path in mailbox.glob("messages/*.eml")]
    assert {message["To"] for message in messages} == {f"p{number}@example.org" for number in range(3)}


def test_a_campaign_with_the_number_of_a_forgotten_one_is_mailed_as_what_it_is(
    ledger: Database, relay: SinkThread, mailbox: Path, clock: HandClock
) -> None:
    campaign, pump = add_campaign(ledger, recipients=1), pump_of(ledger, relay.url, clock)
    run(pump)
    with ledger.write() as connection:  # as if an older ledger had been accepted and gone on since
        another = {"uid": "f" * 32, "edition": "two", "state": CampaignState.SENDING}
        connection.execute(sa.update(campaign_rows).values(another))
        connection.execute(sa.update(delivery_rows).values(state=PENDING))
        connection.execute(sa.update(line_rows).values(cut=0))
    run(pump)
    assert tallied(ledger, campaign.id) == {SENT: 1}
    assert [accepted.campaign for accepted in read_index(mailbox)] == ["hello/one", "hello/two"]


def test_without_a_relay_nothing_is_doubtful_and_the_batch_is_left_to_others(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=5)
    with SinkThread(None) as gone:
        url = gone.url
    with pytest.raises(Unavailable):
        run(pump_of(ledger, url, clock))
    (left,) = batches_of(ledger, campaign)
    assert (left.token, left.state, left.wire_hi) == (None, BatchState.OPEN, left.lo)
    assert tallied(ledger, campaign.id) == {PENDING: 5}
    with SinkThread(mailbox) as relay:
        run(pump_of(ledger, relay.url, clock))
    assert checked(ledger, campaign, mailbox).exact


def test_a_relay_that_goes_away_in_the_middle_leaves_no_doubt_where_no_dot_was_open(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=20)
    away = threading.Event()

    def script(moment: Moment) -> Action | None:
        if moment.step is Step.DATA and moment.recipient == "p9@example.org":
            away.set()
        if away.is_set() and moment.step is Step.CONNECT:
            return Action(reply="421 4.3.2 Going down", then=Then.DROP)
        return Action(then=Then.DROP) if away.is_set() and moment.step is not Step.DOT else None

    with SinkThread(mailbox, script=script) as relay:
        with pytest.raises(Unavailable):
            run(pump_of(ledger, relay.url, clock))
        assert UNCERTAIN not in tallied(ledger, campaign.id)
        assert tallied(ledger, campaign.id)[SENT] == relay.sink.accepted
        relay.sink.script = None
        clock.turn(10 * MINUTE)
        put_back(ledger, clock)
        run(pump_of(ledger, relay.url, clock))
    assert checked(ledger, campaign, mailbox).exact
    assert tallied(ledger, campaign.id) == {SENT: 20}


def test_a_pause_takes_effect_before_the_next_window(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=20)

    def move(to: CampaignState) -> None:
        with ledger.write() as connection:
            assert campaigns.move(connection, campaign.id, to=to, now=NOW)

    with SinkThread(mailbox, script=doing(Step.DOT, 5, lambda: move(CampaignState.PAUSED))) as relay:
        run(pump_of(ledger, relay.url, clock))
        assert tallied(ledger, campaign.id) == {SENT: 8, PENDING: 12}
        assert relay.sink.accepted == 8
        assert {batch.token for batch in batches_of(ledger, campaign)} == {None}
        move(CampaignState.SENDING)
        run(pump_of(ledger, relay.url, clock))
    assert checked(ledger, campaign, mailbox).exact


def test_an_orderly_stop_leaves_the_rest_to_others_without_a_doubt(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=20)
    stop = threading.Event()
    with SinkThread(mailbox, script=doing(Step.DOT, 2, stop.set)) as relay:
        run(pump_of(ledger, relay.url, clock, connections=1, depth=8, batch=20), stopping=stop.is_set)
        assert tallied(ledger, campaign.id) == {SENT: 3, PENDING: 17}
        run(pump_of(ledger, relay.url, clock))
    assert checked(ledger, campaign, mailbox).exact


def test_what_was_on_the_wire_when_its_sender_was_interrupted_is_doubtful(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=6)
    on_the_wire = threading.Event()

    def script(moment: Moment) -> Action | None:
        if moment.step is not Step.DOT or moment.recipient != "p2@example.org":
            return None
        on_the_wire.set()
        return Action(accept=True, then=Then.HANG)

    async def interrupted(pump: Pump) -> None:
        task = asyncio.create_task(pump.run(stopping=lambda: False, budget=MINUTE))
        await asyncio.to_thread(on_the_wire.wait)
        task.cancel()
        await task

    with SinkThread(mailbox, script=script) as relay:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(interrupted(pump_of(ledger, relay.url, clock, connections=1)))
        assert tallied(ledger, campaign.id) == {SENT: 2, UNCERTAIN: 1, PENDING: 3}
        run(pump_of(ledger, relay.url, clock))
    assert checked(ledger, campaign, mailbox).exact
    assert arrived(mailbox)["p2@example.org"] == 1


def test_no_dot_is_written_once_the_lease_has_run_out(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=4)
    with SinkThread(mailbox, script=doing(Step.DATA, 1, lambda: clock.turn(LEASE))) as relay:
        run(pump_of(ledger, relay.url, clock, connections=1))
        assert relay.sink.transactions == 5
    assert checked(ledger, campaign, mailbox).exact


def test_every_attempt_carries_the_very_same_bytes(ledger: Database, mailbox: Path, clock: HandClock) -> None:
    add_campaign(ledger, recipients=1)
    kept_but_refused = Action(reply="451 4.3.0 Later", accept=True)
    with SinkThread(mailbox, script=at(Step.DOT, 0, kept_but_refused, times=1)) as relay:
        run(pump_of(ledger, relay.url, clock))
        clock.turn(timedelta(days=1))
        put_back(ledger, clock)
        run(pump_of(ledger, relay.url, clock))
    first, second = (path.read_bytes() for path in sorted(mailbox.glob("messages/*.eml")))
    assert first == second
    message = email.message_from_bytes(first)
    assert message["Message-ID"].endswith(f".{key_of(0).hex()}@acme.example>")
    assert message["Date"] == "Fri, 20 Nov 2026 08:00:00 +0000"


@pytest.mark.parametrize("lanes", [1, 3])
def test_two_pumps_side_by_side_mail_nobody_twice(
    ledger: Database, relay: SinkThread, mailbox: Path, clock: HandClock, lanes: int
) -> None:
    campaign = add_campaign(ledger, recipients=120, lanes=lanes)
    pumped = race(2, lambda _: run(pump_of(ledger, relay.url, clock, batch=7)))
    assert checked(ledger, campaign, mailbox).exact
    assert sum(each.settled.get(SENT, 0) for each in pumped) == 120
    assert sum(len(each.finished) for each in pumped) == 1


def test_an_acceptance_read_after_the_claim_was_lost_still_counts(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=8)
    doubts: list[int] = []
    script = doing(Step.DOT, 1, lambda: doubts.append(judge(ledger)))
    with SinkThread(mailbox, script=script) as relay:
        run(pump_of(ledger, relay.url, clock, connections=2))
    assert doubts == [2]
    assert tallied(ledger, campaign.id) == {SENT: 8}
    assert checked(ledger, campaign, mailbox).exact


def held_batch(ledger: Database, campaign: Campaign, clock: Clock) -> HeldBatch:
    batch = claim_batch(ledger, campaign)
    assert batch is not None
    return HeldBatch(campaign, batch, ledger=ledger, clock=clock, lease=LEASE, pumped=Pumped())


def test_of_a_sender_that_vanished_exactly_the_marked_window_is_doubtful(
    ledger: Database, relay: SinkThread, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=12)
    vanished = held_batch(ledger, campaign, clock)
    line = vanished.load()
    vanished.mark(line[:4])
    for delivery in line[:4]:
        vanished.learn(
            delivery,
            Outcome(recipient_key=delivery.recipient_key, ordinal=delivery.ordinal, state=SENT, fact=True),
        )
    vanished.mark(line[4:7])
    assert judge(ledger) == 3
    states = states_of(ledger, campaign.id)
    assert [number for number, state in states.items() if state is UNCERTAIN] == [4, 5, 6]
    assert [number for number, state in states.items() if state is SENT] == [0, 1, 2, 3]
    run(pump_of(ledger, relay.url, clock))
    assert arrived(mailbox).keys() == {f"p{number}@example.org" for number in range(7, 12)}


def test_of_a_sender_that_vanished_before_its_first_mark_nothing_is_doubtful(
    ledger: Database, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=4)
    held_batch(ledger, campaign, clock).load()
    assert judge(ledger) == 0
    assert tallied(ledger, campaign.id) == {PENDING: 4}


def test_a_batch_that_outlives_five_of_its_senders_pauses_its_campaign(
    ledger: Database, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=4)
    for _ in range(MOST_LOSSES):
        assert campaign_of(ledger, campaign.id).state is CampaignState.SENDING
        held_batch(ledger, campaign, clock)
        judge(ledger)
    stopped = campaign_of(ledger, campaign.id)
    assert stopped.state is CampaignState.PAUSED
    assert "5 senders vanished over the same 4 messages" in (stopped.reason or "")
    assert tallied(ledger, campaign.id) == {PENDING: 4}


def test_doubts_of_a_vanished_sender_that_must_not_be_lost_come_back_into_the_line(
    ledger: Database, relay: SinkThread, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=12, spec={"uncertain": "never_lose"})
    vanished = held_batch(ledger, campaign, clock)
    vanished.mark(vanished.load()[:3])
    assert judge(ledger) == 3
    assert put_back(ledger, clock) == 3
    run(pump_of(ledger, relay.url, clock))
    assert checked(ledger, campaign, mailbox).exact
    assert one(ledger, campaign, 0).copies == 1


def test_a_sender_that_lives_is_not_taken_for_dead(ledger: Database, clock: HandClock) -> None:
    campaign = add_campaign(ledger, recipients=4)
    living = held_batch(ledger, campaign, clock)
    with ledger.write() as connection:
        (seen,) = batches.held(connection)
    living.mark(living.load()[:2])
    with ledger.write() as connection:
        assert recover.recover(connection, seen, recording=None, scene=NOWHERE, now=NOW) is None
    assert tallied(ledger, campaign.id) == {PENDING: 4}


@pytest.mark.parametrize("closing", [False, True])
def test_a_holder_moves_its_counter_while_it_works_and_while_it_awaits_the_last_answers(
    ledger: Database, clock: HandClock, closing: bool
) -> None:
    campaign = add_campaign(ledger, recipients=4)
    held = held_batch(ledger, campaign, clock)
    held.closing = closing

    async def watch() -> None:
        async with held.kept(heartbeat=timedelta(milliseconds=1), look=timedelta(hours=1)):
            while batches_of(ledger, campaign)[0].counter < held.batch.counter + 3:
                await asyncio.sleep(0)

    asyncio.run(watch())
    clock.turn(LEASE)
    assert not held.may_send()
    held.mark(held.load()[:1])
    assert held.may_send()


# A sender that dies as by SIGKILL: from one moment on it writes nothing any more, neither mail nor ledger.


class Killed(BaseException):
    """What ends a simulated process."""


class Mortal(HeldBatch):
    """Dies when it is about to take in what became of a message that was sent."""

    lives = 0

    def learn(self, delivery: Delivery, outcome: Outcome | None) -> None:
        if Mortal.lives == 0:
            raise Killed
        Mortal.lives -= 1
        super().learn(delivery, outcome)

    def leave(self) -> None:
        if Mortal.lives:
            super().leave()


def killed_and_replaced(
    ledger: Database, url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch, *, lives: int
) -> None:
    """A pump dies after so many outcomes, a judge takes its batch, and another pump does the rest."""
    with monkeypatch.context() as patched:
        patched.setattr(Mortal, "lives", lives)
        patched.setattr(pumping, "HeldBatch", Mortal)
        with pytest.raises(Killed):
            run(pump_of(ledger, url, clock, batch=20))
    judge(ledger)
    run(pump_of(ledger, url, clock))


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("lives", [0, 3, 4, 9, 19])
def test_whoever_dies_whenever_nobody_is_mailed_twice_and_nobody_forgotten(
    ledger: Database,
    relay: SinkThread,
    mailbox: Path,
    clock: HandClock,
    monkeypatch: pytest.MonkeyPatch,
    lives: int,
    lanes: int,
) -> None:
    campaign = add_campaign(ledger, recipients=30, lanes=lanes)
    killed_and_replaced(ledger, relay.url, clock, monkeypatch, lives=lives)
    found = checked(ledger, campaign, mailbox)
    assert found.exact
    assert 0 < found.uncertain <= 4  # no more than there were connections


def test_the_check_notices_a_pump_that_does_not_mark_before_it_sends(
    ledger: Database, relay: SinkThread, mailbox: Path, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unmarked(held: HeldBatch, window: list[Delivery]) -> Marked:
        return Marked(going=window, waiting=[])

    monkeypatch.setattr(HeldBatch, "mark", unmarked)
    campaign = add_campaign(ledger, recipients=30)
    killed_and_replaced(ledger, relay.url, clock, monkeypatch, lives=9)
    found = checked(ledger, campaign, mailbox)
    assert not found.exact
    assert found.duplicates > 0


def test_the_check_notices_a_claim_that_is_not_exclusive(
    ledger: Database, relay: SinkThread, mailbox: Path, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = add_campaign(ledger, recipients=8)
    tokens = iter(["one", "two"])
    both_have_sent = threading.Barrier(2)
    finish = HeldBatch.finish

    def claim_anyway(connection: Connection, campaign_id: int, **_: object) -> Batch | None:
        if (token := next(tokens, None)) is None:
            return None
        values = {"campaign_id": campaign_id, "lo": 0, "hi": 8, "wire_hi": 0, "state": BatchState.OPEN}
        statement = sa.insert(batch_rows).values(**values, token=token).returning(batch_rows.c.id)
        return batches.get(connection, connection.scalars(statement).one())

    def finish_together(held: HeldBatch) -> None:
        both_have_sent.wait()
        finish(held)

    monkeypatch.setattr(batches, "claim", claim_anyway)
    monkeypatch.setattr(HeldBatch, "finish", finish_together)
    race(2, lambda _: run(pump_of(ledger, relay.url, clock, connections=8)))
    found = checked(ledger, campaign, mailbox)
    assert not found.exact
    assert found.duplicates == 8
