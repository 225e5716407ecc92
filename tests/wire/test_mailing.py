"""Mailings through the whole tree of processes, with things taken away in their middle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from maintd import api
from maintd.keyspace import embedded_socket
from maintd.ledger.states import DeliveryState, RunState
from maintd.smtp.faults import Action, Moment, Step
from maintd.smtp.mailbox import read_index
from tests.sinks import SinkThread, reserved_port
from tests.wire.site import Site, kill, until


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[SinkThread]:
    with SinkThread(tmp_path / "mailbox", store=False) as sink:
        yield sink


@pytest.fixture
def site(tmp_path: Path, sink: SinkThread, database_url: str) -> Iterator[Site]:
    site = Site(tmp_path, ledger_url=database_url, smtp_url=sink.url, people=300)
    yield site
    site.runtime.close()


def messages_to(mailbox: Path) -> Counter[str]:
    return Counter(recipient for accepted in read_index(mailbox) for recipient in accepted.recipients)


def test_an_edition_run_twice_mails_nobody_twice(site: Site, sink: SinkThread) -> None:
    with site.up():
        first = site.ended(api.trigger("newsletter", settings=site.settings))
        second = site.ended(api.trigger("newsletter", settings=site.settings))

    assert first.state is second.state is RunState.SUCCEEDED
    assert messages_to(site.directory / "mailbox") == Counter(site.people)


def test_a_new_edition_mails_everybody_again_because_somebody_asked_for_it(site: Site) -> None:
    with site.up():
        site.ended(api.trigger("newsletter", settings=site.settings))
        site.ended(api.trigger("newsletter", settings=site.settings, new_edition=True))

    assert set(messages_to(site.directory / "mailbox").values()) == {2}


def test_a_full_mailbox_keeps_no_other_edition_away_and_the_same_one_has_nothing_to_do(
    tmp_path: Path, database_url: str
) -> None:
    def full_mailbox(moment: Moment) -> Action | None:
        full = moment.step is Step.RCPT and moment.recipient == "person1@people.example"
        return Action(reply="452 4.2.2 Mailbox full") if full else None

    with SinkThread(tmp_path / "mailbox", store=False, script=full_mailbox) as sink:
        site = Site(tmp_path, ledger_url=database_url, smtp_url=sink.url, people=20)
        with site.up():
            first = api.trigger("newsletter", settings=site.settings)
            until(lambda: sink.sink.accepted == 19, what="the first edition")
            again = site.ended(api.trigger("newsletter", settings=site.settings))
            second = api.trigger("newsletter", settings=site.settings, new_edition=True)
            until(lambda: sink.sink.accepted == 38, what="the second edition, beside it")

    assert (again.state, (again.result or {})["goes_on_in_run"]) == (RunState.SUCCEEDED, first)
    assert {site.run(run_id).state for run_id in (first, second)} == {RunState.UNDERWAY}
    site.runtime.close()


def test_a_redis_that_comes_back_empty_costs_nothing(site: Site, sink: SinkThread) -> None:
    with site.up():
        run_id = api.trigger("night", settings=site.settings)
        until(lambda: sink.sink.accepted > 50, what="some mail")
        client = redis.Redis.from_url(f"unix://{embedded_socket(site.settings)}")
        client.flushall()
        client.close()
        assert site.ended(run_id).state is RunState.SUCCEEDED

    assert messages_to(site.directory / "mailbox") == Counter(site.people)
    assert site.sessions_left() == 1


def test_a_redis_that_is_killed_comes_back_and_the_mailing_goes_on(site: Site, sink: SinkThread) -> None:
    with site.up():
        run_id = api.trigger("night", settings=site.settings)
        until(lambda: sink.sink.accepted > 50, what="some mail")
        kill(site.pid_of("valkey"))
        assert site.ended(run_id).state is RunState.SUCCEEDED

    assert messages_to(site.directory / "mailbox") == Counter(site.people)


def test_a_relay_that_is_away_makes_the_mail_wait_and_nothing_doubtful(
    tmp_path: Path, sqlite_url: str
) -> None:
    with reserved_port() as port:
        site = Site(tmp_path, ledger_url=sqlite_url, smtp_url=f"smtp://127.0.0.1:{port}", people=20)
        with site.up():
            run_id = api.trigger("newsletter", settings=site.settings)
            until(lambda: f"smtp://127.0.0.1:{port} did not open" in site.log("up"), what="a clear line")
            assert site.counts()[DeliveryState.PENDING] == 20
            with SinkThread(tmp_path / "mailbox", store=False, port=port):
                assert site.ended(run_id).state is RunState.SUCCEEDED

    assert messages_to(tmp_path / "mailbox") == Counter(site.people)
    assert site.counts()[DeliveryState.UNCERTAIN] == 0
    site.runtime.close()
