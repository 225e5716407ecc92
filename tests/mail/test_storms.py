"""A relay with something against the sender, the message or the audience: the campaign stops, and nobody is lost."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from maintd.database import Database
from maintd.errors import Unavailable
from maintd.ledger import campaigns
from maintd.ledger.campaigns import Campaign
from maintd.ledger.states import CampaignState, DeliveryState
from maintd.ledger.tables import deliveries as delivery_rows
from maintd.mail import control
from maintd.mail.verdicts.failures import Failure
from maintd.smtp.faults import Action, Moment, Script, Step, Then
from tests.ledgers import MINUTE, HandClock, add_campaign, campaign_of, tallied
from tests.mail.test_pump import arrived, checked, one, pump_of, put_back, run
from tests.sinks import SinkThread

PENDING, DEFERRED, SENT = DeliveryState.PENDING, DeliveryState.DEFERRED, DeliveryState.SENT
UNCERTAIN, REJECTED = DeliveryState.UNCERTAIN, DeliveryState.REJECTED
CONNECTIONS = 4
LOCKED_OUT = Action(reply="530 5.7.0 Authentication required")
SPAM = Action(reply="554 5.7.1 Message looks like spam")
UNKNOWN = Action(reply="550 5.1.1 No such user")
TOO_MUCH = Action(reply="421 4.7.0 Too much mail", then=Then.DROP)


def whenever(step: Step, action: Action, *, when: Callable[[Moment], bool] = lambda _: True) -> Script:
    """Misbehaves at one step of every message."""
    return lambda moment: action if moment.step is step and when(moment) else None


def paused(ledger: Database, campaign: Campaign) -> str:
    """Why the campaign is paused, which it must be."""
    found = campaign_of(ledger, campaign.id)
    assert found.state is CampaignState.PAUSED
    assert found.reason is not None
    assert f"`maintd campaigns resume {campaign.name}`" in found.reason
    return found.reason


def resume(ledger: Database, campaign: Campaign, clock: HandClock, *, after: timedelta = MINUTE) -> None:
    """A person's hand, some time later; what was put off till then is in the line again."""
    clock.turn(after)
    control.resume(ledger, campaign.name, now=clock.now())
    put_back(ledger, clock)


def test_a_sender_that_is_refused_pauses_the_campaign_at_once_and_costs_nobody_the_mail(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=30)
    script = whenever(Step.MAIL, LOCKED_OUT, when=lambda moment: moment.message > 3)
    with SinkThread(mailbox, script=script) as relay:
        run(pump_of(ledger, relay.url, clock, connections=1, batch=30))
        assert "530 5.7.0 Authentication required" in paused(ledger, campaign)
        refused = one(ledger, campaign, 3)
        assert (refused.state, refused.failure, refused.failures) == (DEFERRED, Failure.AUTH, 0)
        assert tallied(ledger, campaign.id) == {SENT: 3, DEFERRED: 1, PENDING: 26}
        relay.sink.script = None
        resume(ledger, campaign, clock, after=10 * MINUTE)
        run(pump_of(ledger, relay.url, clock))
    assert checked(ledger, campaign, mailbox).exact
    assert tallied(ledger, campaign.id) == {SENT: 30}


def test_a_message_that_is_not_wanted_pauses_the_campaign_and_goes_out_when_that_was_mended(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=100)
    with SinkThread(mailbox, script=whenever(Step.DOT, SPAM)) as relay:
        run(pump_of(ledger, relay.url, clock, connections=CONNECTIONS, batch=100, depth=32))
        assert "554 5.7.1 Message looks like spam" in paused(ledger, campaign)
        # The eleventh trips it, when the others have at most one dot open each.
        refused = tallied(ledger, campaign.id)[DEFERRED]
        assert 11 <= refused < 11 + CONNECTIONS
        relay.sink.script = None
        resume(ledger, campaign, clock, after=timedelta(hours=2))
        run(pump_of(ledger, relay.url, clock))
    assert checked(ledger, campaign, mailbox).exact
    assert tallied(ledger, campaign.id) == {SENT: 100}


def test_a_template_that_fails_for_everybody_costs_no_more_recipients_than_it_takes_to_pause(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=100)
    with ledger.write() as connection:
        connection.execute(sa.update(delivery_rows).values(fields={}))
    with SinkThread(mailbox) as relay:
        run(pump_of(ledger, relay.url, clock, connections=CONNECTIONS, batch=100, depth=32))
    assert "another template takes a new edition" in paused(ledger, campaign)
    assert tallied(ledger, campaign.id) == {REJECTED: 11, PENDING: 89}
    assert arrived(mailbox) == {}


def test_a_single_message_that_is_not_wanted_stops_nobody_and_is_given_up_in_the_end(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=9)
    script = whenever(Step.DOT, SPAM, when=lambda moment: moment.recipient == "p2@example.org")
    with SinkThread(mailbox, script=script) as relay:
        for _ in range(5):
            run(pump_of(ledger, relay.url, clock))
            clock.turn(timedelta(hours=16))
            put_back(ledger, clock)
    refused = one(ledger, campaign, 2)
    assert (refused.state, refused.failure, refused.failures) == (REJECTED, Failure.POLICY, 3)
    assert refused.detail == "given up after 4 tries: Message looks like spam"
    assert tallied(ledger, campaign.id) == {SENT: 8, REJECTED: 1}
    assert campaign_of(ledger, campaign.id).state is CampaignState.FINISHED


@pytest.mark.parametrize("broken", ["p0@", "@"], ids=["over one message", "over every message"])
def test_over_a_single_connection_no_message_keeps_the_others_back_for_ever(
    ledger: Database, mailbox: Path, clock: HandClock, broken: str
) -> None:
    campaign = add_campaign(ledger, recipients=6)
    script = whenever(Step.RCPT, Action(then=Then.DROP), when=lambda moment: broken in moment.line)
    with SinkThread(mailbox, script=script) as relay:
        pump = pump_of(ledger, relay.url, clock, connections=1, depth=4)
        for _ in range(3):
            with pytest.raises(Unavailable):
                run(pump)
        first = one(ledger, campaign, 0)
        assert (first.state, first.failure, first.failures) == (DEFERRED, Failure.CONNECT, 0)
        relay.sink.script = None if broken == "@" else script
        run(pump)
        assert tallied(ledger, campaign.id) == {SENT: 5, DEFERRED: 1}
        relay.sink.script = None
        clock.turn(2 * MINUTE)
        put_back(ledger, clock)
        run(pump)
    assert checked(ledger, campaign, mailbox).exact
    assert tallied(ledger, campaign.id) == {SENT: 6}


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)  # the time of a limit is turned by hand
def test_behind_a_limit_no_message_keeps_the_others_back_for_ever(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=3, spec={"limit": "1/min"})
    script = whenever(Step.RCPT, Action(then=Then.DROP), when=lambda moment: "p0@" in moment.line)
    with SinkThread(mailbox, script=script) as relay:
        pump = pump_of(ledger, relay.url, clock, connections=1, depth=4)
        for _ in range(5):
            run(pump)
            clock.turn(2 * MINUTE)
    assert tallied(ledger, campaign.id) == {SENT: 2, DEFERRED: 1}


def test_a_relay_that_leaves_too_many_doubts_pauses_the_campaign(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=200)
    drop = Action(accept=True, then=Then.DROP)
    every_other = whenever(Step.DOT, drop, when=lambda moment: moment.recipient[1] in "02468")
    with SinkThread(mailbox, script=every_other) as relay:
        run(pump_of(ledger, relay.url, clock, connections=CONNECTIONS, batch=200, depth=32))
        assert "messages are uncertain" in paused(ledger, campaign)
        assert 2 * CONNECTIONS < tallied(ledger, campaign.id)[UNCERTAIN] <= 3 * CONNECTIONS
        relay.sink.script = None
        resume(ledger, campaign, clock)
        run(pump_of(ledger, relay.url, clock))
    assert checked(ledger, campaign, mailbox).exact


def test_a_stale_audience_pauses_the_campaign_and_a_person_may_let_it_go_on(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=420)
    script = whenever(Step.RCPT, UNKNOWN, when=lambda moment: "7@" in moment.recipient)
    with SinkThread(mailbox, script=script) as relay:
        run(pump_of(ledger, relay.url, clock, connections=1, depth=32, batch=500))
        assert "stop_at.refused" in paused(ledger, campaign)
        sent = tallied(ledger, campaign.id)
        assert sent[SENT] + sent[REJECTED] >= 200
        assert sent[PENDING] >= 150
        control.resume(ledger, campaign.name, now=clock.now(), refused=0.2)
        run(pump_of(ledger, relay.url, clock))
    assert tallied(ledger, campaign.id) == {SENT: 378, REJECTED: 42}
    assert campaign_of(ledger, campaign.id).state is CampaignState.FINISHED


def test_many_wrong_addresses_of_a_short_list_are_no_storm(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=60)
    with SinkThread(mailbox, script=whenever(Step.RCPT, UNKNOWN)) as relay:
        run(pump_of(ledger, relay.url, clock, batch=100))
    assert tallied(ledger, campaign.id) == {REJECTED: 60}
    assert one(ledger, campaign, 0).failure == Failure.MAILBOX
    assert campaign_of(ledger, campaign.id).state is CampaignState.FINISHED


def test_whoever_resumes_a_campaign_begins_anew(ledger: Database, mailbox: Path, clock: HandClock) -> None:
    campaign = add_campaign(ledger, recipients=60)
    drop = Action(accept=True, then=Then.DROP)
    with SinkThread(mailbox, script=whenever(Step.DOT, drop)) as relay:
        pump = pump_of(ledger, relay.url, clock, connections=CONNECTIONS, batch=60)
        run(pump)
        doubts = tallied(ledger, campaign.id)[UNCERTAIN]
        for times in (2, 3):
            resume(ledger, campaign, clock)
            run(pump)
            paused(ledger, campaign)
            assert tallied(ledger, campaign.id)[UNCERTAIN] == times * doubts


def test_what_happened_before_a_person_resumed_it_does_not_pause_it_again(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    """The hand of a person comes between the refusal and the pause."""
    campaign = add_campaign(ledger, recipients=20)

    def script(moment: Moment) -> Action | None:
        if moment.step is not Step.MAIL or moment.message != 1:
            return None
        with ledger.write() as connection:
            campaigns.move(connection, campaign.id, to=CampaignState.PAUSED, now=clock.now())
        clock.turn(MINUTE)
        control.resume(ledger, campaign.name, now=clock.now())
        return LOCKED_OUT

    with SinkThread(mailbox, script=script) as relay:
        run(pump_of(ledger, relay.url, clock, connections=1))
    assert campaign_of(ledger, campaign.id).state is CampaignState.SENDING
    assert tallied(ledger, campaign.id) == {SENT: 19, DEFERRED: 1}


def test_a_relay_that_wants_less_gets_less_and_no_message_loses_a_try(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=40)
    with SinkThread(mailbox, script=whenever(Step.MAIL, TOO_MUCH)) as relay:
        pump = pump_of(ledger, relay.url, clock, connections=CONNECTIONS, batch=40, depth=8)
        with pytest.raises(Unavailable, match=r"421 4\.7\.0 Too much mail"):
            run(pump)
        assert tallied(ledger, campaign.id) == {DEFERRED: CONNECTIONS, PENDING: 40 - CONNECTIONS}
        throttled = one(ledger, campaign, 0)
        assert (throttled.failure, throttled.failures) == (Failure.THROTTLE, 0)
        relay.sink.script = None
        clock.turn(10 * MINUTE)
        put_back(ledger, clock)
        run(pump)
    assert checked(ledger, campaign, mailbox).exact
    assert one(ledger, campaign, 0).failure == Failure.THROTTLE


def test_what_is_throttled_until_the_campaign_is_over_expires_with_the_reason(
    ledger: Database, mailbox: Path, clock: HandClock
) -> None:
    campaign = add_campaign(ledger, recipients=1, expires_at=clock.now() + 12 * MINUTE)
    with SinkThread(mailbox, script=whenever(Step.RCPT, Action(reply="450 4.7.28 Rate limit"))) as relay:
        for _ in range(4):
            run(pump_of(ledger, relay.url, clock))
            clock.turn(7 * MINUTE)
            put_back(ledger, clock)
    late = one(ledger, campaign, 0)
    assert (late.state, late.failure) == (DeliveryState.EXPIRED, Failure.THROTTLE)
    assert late.detail is not None
    assert late.detail.endswith("; before: Rate limit")
    assert arrived(mailbox) == {}
