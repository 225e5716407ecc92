"""What becomes of a campaign is said in the log, once, by whoever moved it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from maintd.database import Database
from maintd.errors import Unavailable
from maintd.execution.queues import Queue
from maintd.execution.reconcile import Reconciler
from maintd.execution.runtime import Runtime
from maintd.execution.worker import Worker
from maintd.ledger import deliveries
from maintd.ledger.campaigns import Campaign
from maintd.mail import control, resolve
from maintd.mail.resolve import Word
from maintd.mail.sending.finish import finish_if_done
from maintd.smtp.faults import Action, Moment, Step, Then
from tests.ledgers import HandClock, add_campaign
from tests.sinks import SinkThread


@pytest.fixture
def relay() -> Iterator[SinkThread]:
    with SinkThread(None) as relay:
        yield relay


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def said(log: pytest.LogCaptureFixture, campaign: Campaign) -> list[tuple[str, str]]:
    """What was said of a campaign, and how loudly."""
    return [
        (record.levelname.lower(), record.getMessage())
        for record in log.records
        if getattr(record, "campaign", None) == campaign.name
    ]


def test_a_persons_hand_on_it_is_said_with_the_reason(
    ledger: Database, clock: HandClock, log: pytest.LogCaptureFixture
) -> None:
    campaign = add_campaign(ledger, recipients=1)
    control.pause(ledger, campaign.name, reason="wrong link", now=clock.now())
    control.resume(ledger, campaign.name, now=clock.now())
    for _ in range(2):
        control.cancel(ledger, campaign.name, reason="enough", clock=clock)
    assert said(log, campaign) == [
        ("info", "campaign hello/one is paused by hand: wrong link"),
        ("info", "campaign hello/one goes on by hand"),
        ("info", "campaign hello/one is cancelled by hand: enough"),
    ]


def test_its_end_is_said_by_who_finds_it_with_what_it_came_to(
    runtime: Runtime, worker: Worker, ledger: Database, log: pytest.LogCaptureFixture
) -> None:
    sent = add_campaign(ledger, recipients=3)
    nobody = add_campaign(ledger, recipients=0, job="nobody")
    for _ in range(2):
        worker.work(Queue.MAIL_BULK)
        Reconciler(runtime).run_once()
    assert said(log, sent) == [("info", "campaign hello/one has finished: 3 sent")]
    assert said(log, nobody) == [("info", "campaign nobody/one has finished: nobody was to be mailed")]


def test_an_end_is_said_although_the_ledger_does_not_tell_what_it_came_to(
    ledger: Database, clock: HandClock, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise Unavailable("the ledger does not answer")

    campaign = add_campaign(ledger, recipients=0)
    monkeypatch.setattr(deliveries, "counts", away)
    assert finish_if_done(ledger, campaign, now=clock.now())
    assert said(log, campaign) == [
        ("info", "campaign hello/one has finished: the ledger does not answer what it came to")
    ]


def test_an_end_with_doubts_wants_a_person_and_so_does_what_sends_them_again(
    worker: Worker, relay: SinkThread, ledger: Database, clock: HandClock, log: pytest.LogCaptureFixture
) -> None:
    def unanswered(moment: Moment) -> Action | None:
        return Action(accept=True, then=Then.DROP) if moment.step is Step.DOT else None

    campaign = add_campaign(ledger, recipients=1)
    relay.sink.script = unanswered
    worker.work(Queue.MAIL_BULK)
    relay.sink.script = None
    resolve.resolve_all(ledger, campaign.name, Word.RESEND, now=clock.now())
    worker.work(Queue.MAIL_BULK)
    assert said(log, campaign) == [
        ("warning", "campaign hello/one has finished: 1 uncertain"),
        ("info", "campaign hello/one sends again what was doubtful of it, by hand"),
        ("info", "campaign hello/one has finished: 1 sent"),
    ]


def test_a_breaker_says_what_it_paused_and_why(
    worker: Worker, relay: SinkThread, ledger: Database, log: pytest.LogCaptureFixture
) -> None:
    def refusing(moment: Moment) -> Action | None:
        return Action(reply="530 5.7.0 Authentication required") if moment.step is Step.MAIL else None

    campaign = add_campaign(ledger, recipients=1)
    relay.sink.script = refusing
    worker.work(Queue.MAIL_BULK)
    ((level, text),) = said(log, campaign)
    assert level == "error"
    assert text.startswith("campaign hello/one is paused: the relay refuses the sender")
