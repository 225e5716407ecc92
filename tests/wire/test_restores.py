"""A ledger that is put back beneath the whole tree of processes, in the middle of a mailing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from maintd import api
from maintd.ledger.states import DeliveryState, RunState
from maintd.smtp.mailbox import read_index
from tests.backups import Backups
from tests.sinks import SinkThread
from tests.wire.site import Site, until


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_ledger_put_back_beneath_everybody_stops_the_mail_until_it_is_accepted(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    url = str(request.getfixturevalue(f"{kind}_url"))
    with SinkThread(tmp_path / "mailbox", store=False) as sink:
        site = Site(tmp_path, ledger_url=url, smtp_url=sink.url, people=1000)
        backups = Backups(url, tmp_path)
        put_back = backups.restore_in_place if kind == "sqlite" else backups.restore
        with site.up():
            run_id = api.trigger("newsletter", settings=site.settings)
            until(lambda: sink.sink.accepted >= 60, what="some mail")
            backup = backups.take()
            enough = sink.sink.accepted + 2 * site.settings.mail_batch
            until(lambda: sink.sink.accepted >= enough, what="mail of a batch that the backup does not have")
            put_back(backup)
            until(lambda: "the ledger is held: it went back" in site.log("up"), what="that it is noticed")
            accepted = until(
                lambda: done if (done := site.maintd("ledger", "accept", "--yes")).returncode == 0 else None,
                what="that nobody mails any more",
            )
            assert "of epoch 1" in accepted.stdout
            assert site.ended(run_id).state is RunState.SUCCEEDED
        counts = site.counts()
        site.runtime.close()

    messages = Counter(to for one in read_index(tmp_path / "mailbox") for to in one.recipients)
    assert set(messages.values()) == {1}
    assert len(site.people) - len(messages) <= counts[DeliveryState.UNCERTAIN] <= 8
    assert counts[DeliveryState.SENT] + counts[DeliveryState.UNCERTAIN] == len(site.people)
    said = [line for line in site.log("up").splitlines() if "the ledger is held" in line]
    assert sum("nothing is lost" in line for line in said) == 1, "by the beat, once"
