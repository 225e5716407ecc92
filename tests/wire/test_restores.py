"""A ledger that is put back beneath the whole tree of processes, in the middle of a mailing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from maintd import api
from maintd.ledger.states import DeliveryState, RunState
from maintd.smtp.faults import Action, Moment, Step
from maintd.smtp.mailbox import read_index
from tests.backups import Backups
from tests.sinks import SinkThread
from tests.wire.site import Site, until


class Gate:
    """The script of a relay that takes so many messages, and hardly a further one before it is told to."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._opens = asyncio.Event()
        self.accepted: Callable[[], int] = lambda: 0

    def __call__(self, moment: Moment) -> Action | None:
        if moment.step is not Step.MAIL or self.accepted() < self._most:
            return None
        return Action(reply="250 2.1.0 Go on", after=self._opens)

    def open(self, most: int) -> None:
        """Lets in whoever waits, and others up to so many; to be called in the event loop of the sink."""
        self._most = most
        self._opens.set()
        self._opens = asyncio.Event()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_ledger_put_back_beneath_everybody_stops_the_mail_until_it_is_accepted(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    url = str(request.getfixturevalue(f"{kind}_url"))
    gate = Gate(most=60)
    with SinkThread(tmp_path / "mailbox", store=False, script=gate) as sink:
        gate.accepted = lambda: sink.sink.accepted
        site = Site(tmp_path, ledger_url=url, smtp_url=sink.url, people=1000)
        backups = Backups(url, tmp_path)
        put_back = backups.restore_in_place if kind == "sqlite" else backups.restore
        with site.up():
            run_id = api.trigger("newsletter", settings=site.settings)
            until(lambda: sink.sink.accepted >= 60, what="some mail")
            backup = backups.take()
            enough = 60 + 2 * site.settings.mail_batch
            sink.call(lambda: gate.open(enough))
            until(lambda: sink.sink.accepted >= enough, what="mail of a batch that the backup does not have")
            put_back(backup)
            until(lambda: "the ledger is held: it went back" in site.log("up"), what="that it is noticed")
            sink.call(lambda: gate.open(len(site.people)))
            accepted = until(
                lambda: done if (done := site.maintd("ledger", "accept", "--yes")).returncode == 0 else None,
                what="that nobody mails any more",
            )
            assert "of epoch 1" in accepted.stdout
            assert site.ended(run_id).state is RunState.SUCCEEDED
            until(lambda: "the ledger is not held any more" in site.log("up"), what="that the beat says so")
        counts = site.counts()
        site.runtime.close()

    messages = Counter(to for one in read_index(tmp_path / "mailbox") for to in one.recipients)
    assert set(messages.values()) == {1}
    assert len(site.people) - len(messages) <= counts[DeliveryState.UNCERTAIN] <= 8
    assert counts[DeliveryState.SENT] + counts[DeliveryState.UNCERTAIN] == len(site.people)
    said = [line.partition("broker.beat")[2] for line in site.log("up").splitlines()]
    troubles = [line for line in said if "nothing is lost" in line]
    assert any("the ledger is held" in line for line in troubles), "by the beat"
    assert not [one for one, next_one in pairwise(troubles) if one == next_one], (
        "once, and not with every tick"
    )
