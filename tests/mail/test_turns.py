"""Who is sent when: turns between campaigns, the urgent before the others, and how soon a holder lets go."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from itertools import groupby
from pathlib import Path

import pytest

from maintd.database import Database
from maintd.ledger import campaigns, suppressions
from maintd.ledger.deliveries import Delivery
from maintd.ledger.states import CampaignState, DeliveryState
from maintd.mail.sending.held import HeldBatch
from maintd.mail.sending.pump import Pump
from maintd.smtp.faults import Action, Moment, Step
from maintd.smtp.mailbox import read_index
from tests.ledgers import MINUTE, NOW, HandClock, add_campaign, campaign_of, key_of, tallied
from tests.mail.test_pump import batches_of, checked, doing, pump_of, run
from tests.sinks import SinkThread

PENDING, SENT, UNCERTAIN = DeliveryState.PENDING, DeliveryState.SENT, DeliveryState.UNCERTAIN
SECOND = timedelta(seconds=1)
OFTEN = timedelta(milliseconds=1)


def one_second_each(clock: HandClock) -> Callable[[Moment], None]:
    """A relay that takes a second for every message."""

    def script(moment: Moment) -> None:
        if moment.step is Step.DOT:
            clock.turn(SECOND)

    return script


def sequence(mailbox: Path) -> list[tuple[str | None, int]]:
    """The campaigns in the order in which they were sent, and how many messages in a row."""
    return [
        (name, len(list(accepted)))
        for name, accepted in groupby(read_index(mailbox), key=lambda accepted: accepted.campaign)
    ]


def test_a_turn_ends_between_two_windows_whatever_the_size_of_a_batch(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    both = [add_campaign(ledger, recipients=6, edition=edition) for edition in ("one", "two")]
    with SinkThread(mailbox, script=one_second_each(clock)) as relay:
        run(pump_of(ledger, relay.url, clock, connections=1, batch=1000))
    assert sequence(mailbox) == [("hello/one", 2), ("hello/two", 2)] * 3
    assert all(len(batches_of(ledger, campaign)) == 1 for campaign in both)
    assert all(checked(ledger, campaign, mailbox).exact for campaign in both)


def test_the_next_working_goes_on_with_the_next_campaign(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    for edition in ("one", "two", "three"):
        add_campaign(ledger, recipients=2, edition=edition)
    with SinkThread(mailbox, script=one_second_each(clock)) as relay:
        pump = pump_of(ledger, relay.url, clock, connections=1, batch=1000)
        for _ in range(6):
            run(pump, budget=SECOND)
    assert sequence(mailbox) == [("hello/one", 1), ("hello/two", 1), ("hello/three", 1)] * 2


def test_whoever_is_urgent_comes_at_the_next_border_and_the_others_go_on_after(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    add_campaign(ledger, recipients=6)

    def alarm() -> None:
        add_campaign(ledger, recipients=5, job="alarm", urgent=True)

    with SinkThread(mailbox, script=doing(Step.DOT, 2, alarm)) as relay:
        run(pump_of(ledger, relay.url, clock, connections=1, batch=1000))
    assert sequence(mailbox) == [("hello/one", 3), ("alarm/one", 5), ("hello/one", 3)]


@pytest.mark.parametrize("urgent", [True, False])
def test_a_process_sends_what_it_is_there_for_and_nothing_else(
    ledger: Database, mailbox: Path, clock: HandClock, urgent: bool
) -> None:
    alarm = add_campaign(ledger, recipients=3, job="alarm", urgent=True)
    bulk = add_campaign(ledger, recipients=3)
    with SinkThread(mailbox) as relay:
        run(pump_of(ledger, relay.url, clock, urgent=urgent, bulk=not urgent))
    sent, left = (alarm, bulk) if urgent else (bulk, alarm)
    assert tallied(ledger, sent.id) == {SENT: 3}
    assert tallied(ledger, left.id) == {PENDING: 3}
    assert batches_of(ledger, left) == []


@pytest.mark.parametrize("to", [CampaignState.PAUSED, CampaignState.CANCELLED])
def test_no_further_dot_of_a_campaign_that_was_stopped_is_written_and_the_open_one_is_awaited(
    ledger: Database, mailbox: Path, clock: HandClock, monkeypatch: pytest.MonkeyPatch, to: CampaignState
) -> None:
    campaign = add_campaign(ledger, recipients=20)
    answer, at_the_dot, noticed = asyncio.Event(), threading.Event(), threading.Event()
    look = HeldBatch._look

    def looked(held: HeldBatch) -> None:
        look(held)
        if held.closing:
            noticed.set()

    def script(moment: Moment) -> Action | None:
        if moment.step is not Step.DOT or moment.recipient != "p1@example.org":
            return None
        at_the_dot.set()
        return Action(reply="250 At last", accept=True, after=answer)

    def stop_it(relay: SinkThread) -> None:
        at_the_dot.wait()
        with ledger.write() as connection:
            assert campaigns.move(connection, campaign.id, to=to, now=NOW)
        noticed.wait()
        relay.set(answer)

    async def stopped_midway(pump: Pump, relay: SinkThread) -> None:
        working = pump.run(stopping=lambda: False, budget=MINUTE)
        await asyncio.gather(working, asyncio.to_thread(stop_it, relay))

    monkeypatch.setattr(HeldBatch, "_look", looked)
    with SinkThread(mailbox, script=script) as relay:
        pump = pump_of(ledger, relay.url, clock, connections=1, depth=8, batch=20, look=OFTEN)
        asyncio.run(stopped_midway(pump, relay))
        assert relay.sink.accepted == 2
    assert tallied(ledger, campaign.id) == {SENT: 2, PENDING: 18}
    assert {batch.token for batch in batches_of(ledger, campaign)} == {None}
    assert campaign_of(ledger, campaign.id).state is to


def test_a_window_that_sent_nothing_says_nothing_of_the_relay(
    ledger: Database, mailbox: Path, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_campaign(ledger, recipients=20)
    with ledger.write() as connection:
        for number in range(4):
            suppressions.add(connection, key_of(number), reason="asked", now=NOW)
    windows: list[int] = []
    mark = HeldBatch.mark

    def marked(held: HeldBatch, window: list[Delivery]) -> set[bytes]:
        windows.append(len(window))
        return mark(held, window)

    monkeypatch.setattr(HeldBatch, "mark", marked)
    with SinkThread(mailbox) as relay:
        run(pump_of(ledger, relay.url, clock, connections=1, depth=32, batch=20))
    assert windows == [4, 4, 8, 4]
