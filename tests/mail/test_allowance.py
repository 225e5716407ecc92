"""Limits on the wire: never a message too many, nobody behind a limit that is not its own, and nobody forgotten."""

from __future__ import annotations

import threading
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from maintd.clock import SystemClock
from maintd.database import Database
from maintd.errors import ClaimLost
from maintd.ledger import allowances, campaigns, deliveries
from maintd.ledger.batches import Ready
from maintd.ledger.campaigns import Campaign
from maintd.ledger.deliveries import Delivery
from maintd.ledger.states import CampaignState, DeliveryState
from maintd.mail.sending.allowance import Allowance, Limits, Outlook, Validity, look
from maintd.mail.sending.held import HeldBatch, Pumped
from maintd.mail.verdicts.failures import Failure
from maintd.smtp.faults import Action, Moment, Step
from maintd.units import parse_rate
from tests.ledgers import MINUTE, NOW, HandClock, add_campaign, campaign_of, claim_batch, race, tallied
from tests.mail.test_pump import LEASE, arrived, batches_of, checked, pump_of, put_back, run
from tests.sinks import SinkThread

PENDING, DEFERRED, SENT = DeliveryState.PENDING, DeliveryState.DEFERRED, DeliveryState.SENT
SECOND = timedelta(seconds=1)


def limits(relay: str | None = None, **lanes: str) -> Limits:
    return Limits(
        relay=parse_rate(relay) if relay else None,
        lanes={name: parse_rate(text) for name, text in lanes.items()},
    )


def line_of(campaign: Campaign, *, lane: int = 0, limit: str | None = None) -> Ready:
    name = f"lane{lane}" if lane else "*"
    return Ready(
        campaign_id=campaign.id,
        campaign=campaign.name,
        lane=lane,
        name=name,
        urgent=campaign.urgent,
        limit=limit,
        expires_at=campaign.expires_at,
    )


def outlook(ledger: Database, limits: Limits, clock: HandClock, *, urgent: bool = False) -> Outlook:
    with ledger.read() as connection:
        return look(connection, limits, urgent=urgent, now=clock.now())


def lanes_mailed(mailbox: Path) -> Counter[int]:
    """How many messages arrived by the number of their recipients, odd or even, which is their lane."""
    return Counter(int(address[1:].partition("@")[0]) % 2 for address in arrived(mailbox))


# Never one too many


def test_whoever_asks_how_often_never_gets_more_than_the_limit(ledger: Database, clock: HandClock) -> None:
    campaign = add_campaign(ledger, recipients=1)

    def take(_number: int) -> int:
        allowance = Allowance(line_of(campaign), limits("44/day"), validity=Validity(), clock=clock)
        taken = 0
        for _ in range(4):
            with ledger.write() as connection:
                taken += allowance.take(connection, wanted=3)
        return taken

    assert sum(race(5, take)) == 40  # a tenth is for urgent mail


@pytest.mark.parametrize("senders", [1, 3])
def test_however_many_send_no_second_sees_one_message_too_many(
    ledger: Database, mailbox: Path, monkeypatch: pytest.MonkeyPatch, senders: int
) -> None:
    campaign = add_campaign(ledger, recipients=50)
    permit, written, lock = HeldBatch.permit, list[float](), threading.Lock()

    def stamped(held: HeldBatch, delivery: Delivery) -> bool:
        now_s = time.monotonic()
        permitted = permit(held, delivery)
        if permitted:
            with lock:
                written.append(now_s)
        return permitted

    monkeypatch.setattr(HeldBatch, "permit", stamped)
    with SinkThread(mailbox) as relay:
        race(
            senders, lambda _: run(pump_of(ledger, relay.url, SystemClock(), depth=8, limits=limits("20/s")))
        )
    assert checked(ledger, campaign, mailbox).exact
    assert tallied(ledger, campaign.id) == {SENT: 50}
    assert len(written) == 50
    assert max(sum(begin <= at < begin + 1 for at in written) for begin in written) <= 20


def test_a_token_is_taken_if_and_only_if_its_window_is_marked(ledger: Database, clock: HandClock) -> None:
    campaign = add_campaign(ledger, recipients=9)
    batch = claim_batch(ledger, campaign)
    assert batch is not None
    allowance = Allowance(line_of(campaign), limits("5/day"), validity=Validity(), clock=clock)
    held = HeldBatch(
        campaign, batch, ledger=ledger, clock=clock, lease=LEASE, pumped=Pumped(), allowance=allowance
    )
    line = held.load()
    with ledger.write() as connection:
        campaigns.move(connection, campaign.id, to=CampaignState.PAUSED, now=NOW)
    with pytest.raises(ClaimLost):
        held.mark(line[:3])
    with ledger.write() as connection:
        assert allowances.read(connection, ["all mail per day"]) == {}
        campaigns.move(connection, campaign.id, to=CampaignState.SENDING, now=NOW)
    held.mark(line[:3])
    marked = held.mark(line[3:])
    assert [delivery.ordinal for delivery in marked.waiting] == [5, 6, 7, 8]
    assert len(marked.going) == 2
    assert batches_of(ledger, campaign)[0].wire_hi == 5


def test_a_dot_whose_token_has_run_out_is_not_written_and_its_message_goes_with_another(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=8)
    late = threading.Event()

    def script(moment: Moment) -> None:
        if moment.step is Step.DATA and not late.is_set():
            late.set()
            clock.turn(10 * SECOND)

    with SinkThread(mailbox, script=script) as relay:
        run(pump_of(ledger, relay.url, clock, connections=1, depth=8, limits=limits("10000/s")))
        assert relay.sink.transactions == 9
    assert checked(ledger, campaign, mailbox).exact
    assert tallied(ledger, campaign.id) == {SENT: 8}


def test_a_sender_whose_tokens_ran_out_asks_for_longer_ones(ledger: Database, clock: HandClock) -> None:
    campaign, validity = add_campaign(ledger, recipients=1), Validity()
    allowance = Allowance(line_of(campaign), limits("1000/s"), validity=validity, clock=clock)
    with ledger.write() as connection:
        allowance.take(connection, wanted=1)
    asked_s = validity.seconds
    assert allowance.lasts()
    clock.turn(SECOND)
    assert [allowance.lasts() for _ in range(3)] == [False, False, False]
    assert validity.seconds == 2 * asked_s


# Whom a limit holds back, and whom it does not


def test_a_lane_that_has_no_room_keeps_nobody_else_waiting(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=20, lanes=2)
    tight = limits(lane1="4/day")
    with SinkThread(mailbox) as relay:
        run(pump_of(ledger, relay.url, clock, batch=5, limits=tight))
    assert lanes_mailed(mailbox) == {0: 10, 1: 4}
    assert campaign_of(ledger, campaign.id).state is CampaignState.SENDING
    assert {batch.token for batch in batches_of(ledger, campaign)} == {None}
    waiting = outlook(ledger, tight, clock).waiting
    assert {line.place: wait.why for line, wait in waiting.items()} == {(campaign.id, 1): "lane lane1: 4/day"}


def test_a_campaign_keeps_to_its_own_limit_and_others_do_not(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    slow = add_campaign(ledger, recipients=9, edition="slow", spec={"limit": "4/h"})
    quick = add_campaign(ledger, recipients=9, edition="quick")
    with SinkThread(mailbox) as relay:
        run(pump_of(ledger, relay.url, clock))
    assert tallied(ledger, slow.id) == {SENT: 4, PENDING: 5}
    assert tallied(ledger, quick.id) == {SENT: 9}
    (wait,) = outlook(ledger, limits(), clock).waiting.values()
    assert wait.why == "campaign hello/slow: 4/h"
    row = f"{allowances.of_campaign(slow.id)} per h"
    with ledger.read() as connection:
        assert allowances.read(connection, [row])[row] is not None


def test_bulk_leaves_a_tenth_of_the_relay_to_urgent_mail(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    bulk = add_campaign(ledger, recipients=40, edition="bulk")
    with SinkThread(mailbox) as relay:
        run(pump_of(ledger, relay.url, clock, limits=limits("30/day")))
        assert tallied(ledger, bulk.id)[SENT] == 27
        urgent = add_campaign(ledger, recipients=9, edition="urgent", urgent=True)
        run(pump_of(ledger, relay.url, clock, limits=limits("30/day")))
    assert tallied(ledger, urgent.id) == {SENT: 3, PENDING: 6}


def test_what_a_limit_keeps_back_goes_out_as_soon_as_it_may(ledger: Database, mailbox: Path) -> None:
    campaign = add_campaign(ledger, recipients=8)
    with SinkThread(mailbox) as relay:
        pumped = run(pump_of(ledger, relay.url, SystemClock(), limits=limits("5/s")))
    assert pumped.finished == [campaign.id]
    assert checked(ledger, campaign, mailbox).exact


def test_an_expired_campaign_does_not_wait_for_a_limit(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=9, expires_at=NOW + MINUTE, spec={"limit": "2/day"})
    with SinkThread(mailbox) as relay:
        run(pump_of(ledger, relay.url, clock))
        clock.turn(MINUTE)
        run(pump_of(ledger, relay.url, clock))
    assert tallied(ledger, campaign.id) == {SENT: 2, DeliveryState.EXPIRED: 7}
    assert campaign_of(ledger, campaign.id).state is CampaignState.FINISHED


# A lane that the relay throttles


def too_much_for_odd_ones(moment: Moment) -> Action | None:
    odd = moment.recipient[1:].partition("@")[0][-1:] in tuple("13579")
    return Action(reply="451 4.7.28 Rate limit") if moment.step is Step.RCPT and odd else None


def test_a_throttled_lane_is_set_aside_for_everybody_and_no_message_loses_a_try(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=20, lanes=2)
    with SinkThread(mailbox, script=too_much_for_odd_ones) as relay:
        run(pump_of(ledger, relay.url, clock, connections=2))
        assert lanes_mailed(mailbox) == {0: 10}
        tried = tallied(ledger, campaign.id)[DEFERRED]
        assert 0 < tried <= 2  # one window
        run(pump_of(ledger, relay.url, clock))
        assert tallied(ledger, campaign.id)[DEFERRED] == tried
        (wait,) = outlook(ledger, limits(), clock).waiting.values()
        assert (wait.why, wait.opens_in) == ("lane lane1: the relay wanted less of it", 15 * SECOND)

        clock.turn(15 * SECOND)
        run(pump_of(ledger, relay.url, clock, connections=2))
        (wait,) = outlook(ledger, limits(), clock).waiting.values()
        assert wait.opens_in == 30 * SECOND

        relay.sink.script = None
        clock.turn(10 * MINUTE)
        put_back(ledger, clock)
        run(pump_of(ledger, relay.url, clock))
    assert checked(ledger, campaign, mailbox).exact
    with ledger.read() as connection:
        found = deliveries.of_campaign(connection, campaign.id, state=None, limit=99)
    assert {delivery.failures for delivery in found} == {0}
    assert {delivery.failure for delivery in found} == {None, Failure.THROTTLE}
