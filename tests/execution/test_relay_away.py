"""A relay that lets nobody in keeps all mail waiting, and everybody may see why."""

from __future__ import annotations

import contextlib
import logging
from datetime import timedelta
from pathlib import Path

import pytest

from maintd.database import Database
from maintd.execution.queues import Queue
from maintd.execution.runtime import Runtime
from maintd.ledger.states import CampaignState, DeliveryState
from tests.execution.surroundings import sending_to
from tests.ledgers import HandClock, add_campaign, campaign_of, tallied
from tests.sinks import SinkThread

#: More than one window of two connections holds.
_TWO_WINDOWS = 400


def test_a_login_that_is_refused_is_said_once_and_with_every_campaign_until_it_works(
    runtime: Runtime, ledger: Database, clock: HandClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    campaign = add_campaign(ledger, recipients=5)
    with SinkThread(None) as relay:
        relay.sink.login = ("maintd", "right")
        url = relay.url.replace("//", "//maintd:other@")
        with contextlib.closing(sending_to(url, runtime, tmp_path, connections=2)) as worker:
            for _ in range(3):
                worker.work(Queue.MAIL_BULK)
                clock.turn(timedelta(minutes=2))
            waiting = campaign_of(ledger, campaign.id)
            assert waiting.state is CampaignState.SENDING
            assert waiting.reason is not None
            assert "535 5.7.8 User or password is wrong" in waiting.reason
            assert "other" not in waiting.reason
            assert tallied(ledger, campaign.id) == {DeliveryState.PENDING: 5}
            warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
            assert len(warnings) == 1
            relay.sink.login = ("maintd", "other")
            worker.work(Queue.MAIL_BULK)
    done = campaign_of(ledger, campaign.id)
    assert (done.state, done.reason) == (CampaignState.FINISHED, None)
    assert tallied(ledger, campaign.id) == {DeliveryState.SENT: 5}


def test_a_campaign_waits_for_nothing_any_more_as_soon_as_a_relay_takes_mail_again(
    runtime: Runtime, ledger: Database, clock: HandClock, tmp_path: Path
) -> None:
    campaign = add_campaign(ledger, recipients=1000)
    reasons: list[str | None] = []
    with SinkThread(None) as relay:

        def stopping() -> bool:
            """Looks at what the ledger says while mail flows."""
            if relay.sink.accepted > _TWO_WINDOWS and not reasons:
                reasons.append(campaign_of(ledger, campaign.id).reason)
            return bool(reasons)

        relay.sink.login = ("maintd", "right")
        url = relay.url.replace("//", "//maintd:other@")
        with contextlib.closing(
            sending_to(url, runtime, tmp_path, stopping=stopping, connections=2)
        ) as worker:
            worker.work(Queue.MAIL_BULK)
            assert campaign_of(ledger, campaign.id).reason is not None
            clock.turn(timedelta(minutes=2))
            relay.sink.login = ("maintd", "other")
            worker.work(Queue.MAIL_BULK)
    assert reasons == [None]
