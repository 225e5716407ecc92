"""Urgent mail through the whole tree of processes while everything else has its hands full."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from pathlib import Path

from maintd import api
from maintd.ledger.states import RunState
from maintd.smtp.faults import Action, Moment, Step
from tests.sinks import SinkThread
from tests.wire.site import JOBS, Site, until
from tests.wire.test_mailing import messages_to

ALARM = """
[alarm]
kind     = "campaign"
urgent   = true
source   = "app"
audience = { sql = "first.sql", address = "email", recipient = "id" }
template = "news"
from     = "Site <alarm@site.example>"

[everybody]
kind     = "campaign"
source   = "app"
audience = { sql = "endless.sql", address = "email", recipient = "id" }
template = "news"
from     = "Site <news@site.example>"
"""
ENDLESS = """
WITH RECURSIVE counted(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM counted)
SELECT id, 'somebody' || id || '@people.example' AS email, 'Somebody' AS name FROM counted
"""


def site_at(directory: Path, *, ledger_url: str, sink: SinkThread) -> Site:
    site = Site(directory, ledger_url=ledger_url, smtp_url=sink.url, people=60, jobs=JOBS + ALARM)
    (directory / "schedules" / "first.sql").write_text("SELECT id, email, name FROM person WHERE id = 1")
    (directory / "schedules" / "endless.sql").write_text(ENDLESS)
    return site


def test_what_is_urgent_goes_out_at_once_while_a_slow_relay_has_the_other_mail(
    tmp_path: Path, database_url: str
) -> None:
    answer, busy = asyncio.Event(), threading.Event()

    def script(moment: Moment) -> Action | None:
        if moment.step is not Step.MAIL or "news@site.example" not in moment.line:
            return None
        busy.set()
        return Action(reply="250 2.1.0 At last", after=answer)

    with SinkThread(tmp_path / "mailbox", store=False, script=script) as sink:
        site = site_at(tmp_path, ledger_url=database_url, sink=sink)
        with site.up():
            newsletter = api.trigger("newsletter", settings=site.settings)
            assert busy.wait(200)
            assert site.ended(api.trigger("alarm", settings=site.settings)).state is RunState.SUCCEEDED
            assert messages_to(tmp_path / "mailbox") == Counter(site.people[:1])
            sink.set(answer)
            assert site.ended(newsletter).state is RunState.SUCCEEDED
    assert messages_to(tmp_path / "mailbox") == Counter(site.people[:1] + site.people)
    site.runtime.close()


def test_what_is_urgent_does_not_wait_until_everybody_is_enrolled(tmp_path: Path, sqlite_url: str) -> None:
    with SinkThread(tmp_path / "mailbox", store=False) as sink:
        site = site_at(tmp_path, ledger_url=sqlite_url, sink=sink)
        with site.up():
            everybody = api.trigger("everybody", settings=site.settings)
            until(lambda: sum(site.counts().values()) > 0, what="an enrolment under way")
            assert site.ended(api.trigger("alarm", settings=site.settings)).state is RunState.SUCCEEDED
            assert site.run(everybody).finished_at is None
    assert messages_to(tmp_path / "mailbox") == Counter(site.people[:1])
    site.runtime.close()
