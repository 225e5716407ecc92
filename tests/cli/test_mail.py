"""The commands about mail, each judged by what it does to ledger, mailbox and files."""

from __future__ import annotations

import email
import email.policy
import io
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from maintd.cli import main
from maintd.clock import SystemClock, new_token
from maintd.config.load import from_process
from maintd.database import Database
from maintd.execution.project import read_project
from maintd.execution.queues import Queue
from maintd.execution.runtime import Runtime, open_runtime
from maintd.execution.trigger import trigger
from maintd.execution.worker import Worker
from maintd.ledger import batches, campaigns, deliveries, runs, tables
from maintd.ledger.batches import Batch, NotSending
from maintd.ledger.campaigns import Campaign
from maintd.ledger.deliveries import Delivery
from maintd.ledger.states import CampaignState, DeliveryState, RunState
from maintd.scheduling.apply import apply
from maintd.smtp.faults import Action, Moment, Step, Then
from maintd.smtp.mailbox import Accepted, read_index
from tests.ledgers import add_campaign
from tests.sinks import SinkThread

ADA, BOB, CLEO = "Ada.Byron@example.org", "bob@example.org", "cleo@example.org"
PEOPLE = [
    (1, "no address", "Nobody"),
    (2, ADA, "Ada"),
    (3, BOB, "Bob"),
    (4, CLEO, "Cleo"),
    (5, BOB, "Bob again"),
]
JOB = """
[hello]
kind     = "campaign"
once_per = "ever"
source   = "app"
audience = { sql = "hello.sql", address = "email", recipient = "id" }
shared   = { greetings = "greetings.sql" }
template = "hello"
from     = "Acme <news@acme.example>"
expires  = "36 h"

[hello-again]
kind  = "pipeline"
steps = { hello = {} }
"""
TEXTS = {
    "schedules/hello.toml": JOB,
    "schedules/hello.sql": "SELECT id, email, name FROM person ORDER BY id",
    "schedules/greetings.sql": "SELECT 'Ahoy' AS word",
    "templates/hello/subject.txt": "{{ greetings[0].word }}, {{ name }}",
    "templates/hello/body.txt": "Dear {{ name }}, this is {{ edition }}.\n",
    "templates/hello/body.html": "<p>Dear {{ name }}</p>\n",
}


class Misbehaviour:
    """What the sink does at the dot of a message to somebody: its replies, one message after the other."""

    def __init__(self) -> None:
        self.at_dot: dict[str, list[Action]] = {}

    def __call__(self, moment: Moment) -> Action | None:
        actions = self.at_dot.get(moment.recipient, []) if moment.step is Step.DOT else []
        return actions.pop(0) if actions else None


TAKEN_UNANSWERED = Action(accept=True, then=Then.DROP)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(kw_only=True)
class House:
    """A small application that mails three people, with the `maintd` command in it."""

    path: Path
    misbehaviour: Misbehaviour
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def maintd(self, *arguments: str, stdin: str = "") -> Ended:
        """Runs a command line in this process."""
        self.monkeypatch.setattr(sys, "argv", ["maintd", *arguments])
        self.monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = self.capsys.readouterr()
        return Ended(code=int(ended.value.code or 0), out=out, err=err)

    def done(self, *arguments: str, stdin: str = "") -> Ended:
        """Runs a command that must succeed."""
        ended = self.maintd(*arguments, stdin=stdin)
        assert ended.code == 0, ended.err
        return ended

    def write(self, name: str, text: str) -> None:
        """Writes one of the user's files."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text(text)

    @property
    def mailbox(self) -> list[Accepted]:
        """What the relay took."""
        return list(read_index(self.path / "mail"))

    @property
    def recipients(self) -> list[str]:
        """To whom the relay took something, sorted."""
        return sorted(recipient for accepted in self.mailbox for recipient in accepted.recipients)

    def message(self, accepted: Accepted) -> Message:
        """One mail that the relay took."""
        return email.message_from_bytes((self.path / f"mail/messages/{accepted.seq}.eml").read_bytes())


@dataclass(kw_only=True)
class Mailing:
    """The campaign of the house, enrolled."""

    runtime: Runtime
    id: int

    @property
    def ledger(self) -> Database:
        return self.runtime.ledger

    @property
    def now(self) -> Campaign:
        with self.ledger.read() as connection:
            return campaigns.get(connection, self.id)

    @property
    def states(self) -> dict[str, DeliveryState]:
        """The state of each delivery by its address; together they are all that was enrolled."""
        states = {address: delivery.state for address, delivery in self.rows.items()}
        assert len(states) == self.now.enrolled == 4
        return states

    @property
    def rows(self) -> dict[str, Delivery]:
        """The deliveries by address."""
        with self.ledger.read() as connection:
            found = deliveries.of_campaign(connection, self.id, state=None, limit=100)
        return {delivery.address: delivery for delivery in found}

    def send(self) -> None:
        """Works on the mail queue until there is nothing to do."""
        worker = Worker(self.runtime, stopping=lambda: False)
        try:
            while worker.work(Queue.MAIL_BULK):
                pass
        finally:
            worker.close()

    def claim(self) -> Batch:
        """Takes a batch as a sender does."""
        with self.ledger.write() as connection:
            batch = batches.claim(connection, self.id, size=10, token=new_token(), owner="host:1")
        assert batch is not None
        return batch

    def change(self, **values: object) -> None:
        """Changes the campaign's row, as time and others do."""
        row = tables.campaigns.c.id == self.id
        with self.ledger.write() as connection:
            connection.execute(sa.update(tables.campaigns).where(row).values(**values))


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[tuple[SinkThread, Misbehaviour]]:
    misbehaviour = Misbehaviour()
    with SinkThread(tmp_path / "mail", script=misbehaviour) as sink:
        yield sink, misbehaviour


@pytest.fixture
def house(
    tmp_path: Path,
    relay: tuple[SinkThread, Misbehaviour],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> House:
    """The files, the application's database and the relay; no ledger yet."""
    sink, misbehaviour = relay
    house = House(path=tmp_path, misbehaviour=misbehaviour, monkeypatch=monkeypatch, capsys=capsys)
    for name, text in TEXTS.items():
        house.write(name, text)
    source = Database(f"sqlite:///{tmp_path}/app.db", name="app")
    with source.write() as connection:
        connection.exec_driver_sql("CREATE TABLE person (id INTEGER, email TEXT, name TEXT)")
        connection.exec_driver_sql("INSERT INTO person VALUES (?, ?, ?)", PEOPLE)
    source.dispose()
    settings = {
        "STATE_DIR": tmp_path / "state",
        "DATABASE_URL": f"sqlite:///{tmp_path}/nowhere/ledger.db",
        "SOURCE_APP_URL": f"sqlite:///{tmp_path}/app.db",
        "SMTP_URL": sink.url,
        "SCHEDULES_DIR": tmp_path / "schedules",
        "TEMPLATES_DIR": tmp_path / "templates",
        "LOG_LEVEL": "error",
        "ENV_FILE": "",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"MAINTD_{name}", str(value))
    return house


@pytest.fixture
def mailing(house: House, ledger_url: str) -> Iterator[Mailing]:
    """The house with a ledger of either kind, and its campaign enrolled: three people and one bad address."""
    house.monkeypatch.setenv("MAINTD_DATABASE_URL", ledger_url)
    settings = from_process()
    runtime = open_runtime(settings, clock=SystemClock())
    apply(runtime.ledger, read_project(settings), prune=False, now=runtime.clock.now())
    run = trigger("hello", runtime)
    worker = Worker(runtime, stopping=lambda: False)
    worker.work(Queue(run.queue))
    worker.close()
    with runtime.ledger.read() as connection:
        campaign = campaigns.find(connection, job="hello", edition="ever")
    assert campaign is not None
    yield Mailing(runtime=runtime, id=campaign.id)
    runtime.close()


@pytest.fixture
def lane(house: House) -> None:
    """Everybody is in a lane that lets two through."""
    house.monkeypatch.setenv("MAINTD_LANE_BIG", "2/day example.org")


@pytest.fixture
def limited(lane: None, mailing: Mailing, house: House) -> Mailing:
    """The campaign sent as far as that goes."""
    mailing.send()
    assert len(house.mailbox) == 2
    return mailing


@pytest.fixture
def doubtful(mailing: Mailing, house: House) -> Mailing:
    """The campaign sent and finished, but the relay took Ada's mail and was never heard to say so."""
    house.misbehaviour.at_dot[ADA] = [TAKEN_UNANSWERED]
    mailing.send()
    assert mailing.now.state is CampaignState.FINISHED
    assert mailing.states[ADA] is DeliveryState.UNCERTAIN
    assert house.recipients == sorted([ADA, BOB, CLEO])
    return mailing


class TestPreview:
    def test_it_shows_the_mail_of_the_first_valid_person_without_any_ledger(self, house: House) -> None:
        shown = house.done("preview", "hello").out
        assert f"From: Acme <news@acme.example>\nTo: {ADA}\nSubject: Ahoy, Ada\n" in shown
        assert "Dear Ada, this is ever." in shown
        assert not (house.path / "nowhere").exists()
        assert house.mailbox == []

    def test_it_shows_the_mail_of_the_person_asked_for(self, house: House) -> None:
        shown = house.done("preview", "hello", "--recipient", "BOB@example.org", "--json").json
        assert shown["Subject"] == "Ahoy, Bob"
        assert shown["html"] == "<p>Dear Bob</p>"

    def test_its_files_are_the_parts_and_the_whole(self, house: House) -> None:
        house.done("preview", "hello", "--output", str(house.path / "new/out"))
        written = {file.name: file.read_bytes() for file in (house.path / "new/out").iterdir()}
        assert written.keys() == {"subject.txt", "body.txt", "body.html", "message.eml"}
        assert written["subject.txt"] == b"Ahoy, Ada\n"
        message = email.message_from_bytes(written["message.eml"], policy=email.policy.default)
        for kind, name in (("plain", "body.txt"), ("html", "body.html")):
            part = message.get_body((kind,))
            assert part is not None
            assert part.get_content().splitlines() == written[name].decode().splitlines()
        assert message["X-Maintd-Campaign"] == "hello/ever"

    def test_it_lists_what_is_enclosed_and_its_page_shows_the_images(self, house: House) -> None:
        house.write("templates/hello/attachments/terms.txt", "x" * 2048)
        house.write("templates/hello/inline/logo.svg", "<svg/>")
        house.write("templates/hello/body.html", '<img src="cid:logo.svg">')
        shown = house.done("preview", "hello", "--output", str(house.path / "out")).out
        assert "attachments/terms.txt (text/plain, 2.0 KiB)\ninline/logo.svg (image/svg+xml, 6 B)\n" in shown
        page = (house.path / "out/body.html").read_text()
        assert page == '<img src="data:image/svg+xml;base64,PHN2Zy8+">'
        assert b'filename="terms.txt"' in (house.path / "out/message.eml").read_bytes()
        listed = house.done("preview", "hello", "--json").json
        assert listed["attachments"] == [{"name": "terms.txt", "type": "text/plain", "octets": 2048}]
        assert listed["inline"] == [{"name": "logo.svg", "type": "image/svg+xml", "octets": 6}]

    def test_a_missing_column_is_refused_by_name(self, house: House) -> None:
        house.write("schedules/hello.sql", "SELECT id, email FROM person")
        ended = house.maintd("preview", "hello")
        assert ended.code == 1
        assert 'template hello wants the column "name"' in ended.err

    @pytest.mark.parametrize("name", ["helo", "hello-again"])
    def test_what_is_no_campaign_job_is_an_error_of_the_command_line(self, house: House, name: str) -> None:
        ended = house.maintd("preview", name)
        assert ended.code == 64
        assert 'did you mean "hello"?' in ended.err

    def test_somebody_outside_of_the_audience_has_no_preview(self, house: House) -> None:
        ended = house.maintd("preview", "hello", "--recipient", "eve@example.org")
        assert ended.code == 1
        assert "eve@example.org is not among" in ended.err

    def test_an_invalid_address_is_an_error_of_the_command_line(self, house: House) -> None:
        ended = house.maintd("preview", "hello", "--recipient", "eve")
        assert ended.code == 64
        assert "there is no @ in it" in ended.err

    def test_a_place_that_cannot_be_written_is_one_line(self, house: House) -> None:
        ended = house.maintd("preview", "hello", "--output", str(house.path / "app.db/out"))
        assert ended.code == 1
        assert ended.err.startswith("error: ")
        assert "cannot be written" in ended.err


class TestSendTest:
    def test_the_mail_arrives_marked_as_a_test_and_no_ledger_is_made(self, house: House) -> None:
        said = house.done("send-test", "hello", "me@example.net").out
        assert "250 2.0.0 Kept" in said
        [accepted] = house.mailbox
        message = house.message(accepted)
        assert accepted.recipients == ("me@example.net",)
        assert accepted.campaign == "test"
        assert message["Subject"] == "[test] Ahoy, Ada"
        assert message["To"] == "me@example.net"
        assert not (house.path / "nowhere").exists()

    def test_it_can_be_the_mail_of_anybody_in_the_audience(self, house: House) -> None:
        house.done("send-test", "hello", "me@example.net", "--recipient", CLEO)
        assert house.message(house.mailbox[0])["Subject"] == "[test] Ahoy, Cleo"

    def test_two_tests_are_two_messages_to_the_receiver(self, house: House) -> None:
        for _ in range(2):
            house.done("send-test", "hello", "me@example.net")
        first, second = house.mailbox
        assert first.message_id != second.message_id

    def test_it_goes_where_all_mail_is_redirected(self, house: House) -> None:
        house.monkeypatch.setenv("MAINTD_MAIL_REDIRECT", "staging@example.net")
        house.done("send-test", "hello", "me@example.net")
        assert house.recipients == ["staging@example.net"]

    def test_a_ledger_that_is_held_does_not_keep_it_back(self, house: House, mailing: Mailing) -> None:
        house.done("ledger", "hold", "--reason", "a drill")
        house.done("send-test", "hello", "me@example.net")
        assert house.recipients == ["me@example.net"]

    @pytest.mark.parametrize(
        ("action", "code", "said"),
        [
            (Action(reply="550 5.7.1 Not you"), 1, "rejected (dot): 550 5.7.1 Not you"),
            (Action(reply="451 4.7.1 Later"), 1, "deferred (dot): 451 4.7.1 Later"),
            (TAKEN_UNANSWERED, 1, "uncertain (dot)"),
        ],
    )
    def test_anything_but_an_acceptance_fails(
        self, house: House, action: Action, code: int, said: str
    ) -> None:
        house.misbehaviour.at_dot["me@example.net"] = [action]
        ended = house.maintd("send-test", "hello", "me@example.net")
        assert ended.code == code
        assert said in ended.out

    def test_a_relay_that_is_away_is_unavailable(self, house: House) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            house.monkeypatch.setenv("MAINTD_SMTP_URL", f"smtp://127.0.0.1:{taken.getsockname()[1]}")
            ended = house.maintd("send-test", "hello", "me@example.net")
        assert ended.code == 69
        assert "did not open" in ended.err


class TestCampaigns:
    def test_the_states_of_a_campaign_add_up(self, house: House, mailing: Mailing) -> None:
        mailing.send()
        [shown] = house.done("campaigns", "--json").json
        assert shown["campaign"] == "hello/ever"
        assert shown["state"] == "finished"
        assert (shown["audience"], shown["duplicates"], shown["enrolled"]) == (5, 1, 4)
        assert {state: count for state, count in shown["deliveries"].items() if count} == {
            "sent": 3,
            "rejected": 1,
        }

    def test_the_list_can_be_that_of_one_job(self, house: House, mailing: Mailing) -> None:
        assert "hello/ever" in house.done("campaigns", "hello").out
        assert house.maintd("campaigns", "other").code == 64

    def test_a_finished_campaign_owns_up_to_its_doubts(self, house: House, doubtful: Mailing) -> None:
        assert "finished, 1 uncertain" in house.done("campaigns").out
        assert "finished, 1 uncertain" in house.done("campaigns", "show", str(doubtful.id)).out

    def test_one_that_a_limit_holds_back_says_which_and_for_how_long(
        self, house: House, limited: Mailing
    ) -> None:
        (held_back,) = house.done("campaigns", "show", "hello/ever", "--json").json["held_back"]
        assert held_back["why"] == "lane big: 2/day"
        assert 20 * 3600 < held_back["opens_in"] <= 27 * 3600
        shown = house.done("campaigns", "show", "hello/ever").out
        assert re.search(r"lane big: 2/day, for (1 day|23 h 59 min)", shown)
        (found,) = [one for one in house.maintd("check", "--json").json if one["what"] == "limits"]
        assert re.match(r"lane big: 2/day; hello/ever waits (1 day|23 h 59 min)", found["detail"])

    def test_one_that_does_not_exist_is_an_error_of_the_command_line(
        self, house: House, mailing: Mailing
    ) -> None:
        for command in ("show", "pause", "resume", "cancel"):
            ended = house.maintd("campaigns", command, "hello/evr")
            assert ended.code == 64
            assert 'did you mean "hello/ever"?' in ended.err

    def test_who_names_a_job_is_told_its_editions(self, house: House, mailing: Mailing) -> None:
        add_campaign(mailing.ledger, recipients=1, job="hallo")
        refused = house.maintd("campaigns", "show", "hello")
        assert "hello/ever" in refused.err
        assert "hallo" not in refused.err


class TestEnrolling:
    def test_an_edition_whose_enrolment_failed_says_why(self, house: House, mailing: Mailing) -> None:
        mailing.change(state=CampaignState.ENROLLING)
        [begun] = house.done("campaigns", "--json").json
        assert begun["reason"] is None
        run_id = mailing.now.run_id
        with mailing.ledger.write() as connection:
            connection.execute(
                sa.update(tables.runs)
                .where(tables.runs.c.id == run_id)
                .values(state=RunState.FAILED, reason="no such table: members")
            )
        [failed] = house.done("campaigns", "--json").json
        assert failed["reason"] == f"run {run_id} failed: no such table: members"


class TestPause:
    def test_a_campaign_that_is_resumed_may_be_told_to_bear_more(
        self, house: House, mailing: Mailing
    ) -> None:
        house.done("campaigns", "pause", "hello/ever")
        house.done("campaigns", "resume", "hello/ever", "--refused", "0.2")
        assert mailing.now.spec["stop_at"] == {"recipients": None, "growth": None, "refused": 0.2}
        sends = house.maintd("campaigns", "resume", "hello/ever", "--refused", "0.3")
        assert sends.code == 1
        assert mailing.now.spec["stop_at"]["refused"] == 0.2

    def test_a_paused_campaign_sends_nothing_until_it_is_resumed(
        self, house: House, mailing: Mailing
    ) -> None:
        house.done("campaigns", "pause", "hello/ever", "--reason", "wrong link")
        assert mailing.now.reason == "wrong link"
        mailing.send()
        assert house.mailbox == []
        house.done("campaigns", "resume", "hello/ever")
        mailing.send()
        assert house.recipients == sorted([ADA, BOB, CLEO])

    def test_what_is_done_already_need_not_be_done_again(self, house: House, mailing: Mailing) -> None:
        sends_since = mailing.now.sending_since
        assert house.done("campaigns", "resume", "hello/ever").out == "hello/ever is sending\n"
        assert mailing.now.sending_since == sends_since
        for reason in ("first", "second"):
            house.done("campaigns", "pause", "hello/ever", "--reason", reason)
            house.done("campaigns", "pause", "hello/ever")
            assert mailing.now.reason == reason

    def test_a_pause_holds_the_next_window_of_a_batch_under_way(self, house: House, mailing: Mailing) -> None:
        batch = mailing.claim()
        house.done("campaigns", "pause", str(mailing.id))
        with pytest.raises(NotSending), mailing.ledger.write() as connection:
            batches.mark(connection, batch, wire_hi=batch.hi)

    def test_a_finished_campaign_stays_finished(self, house: House, doubtful: Mailing) -> None:
        for command in ("pause", "resume", "cancel"):
            ended = house.maintd("campaigns", command, "hello/ever")
            assert ended.code == 1
            assert "hello/ever is finished" in ended.err
            assert doubtful.now.state is CampaignState.FINISHED

    def test_resuming_does_not_cut_an_enrolment_short(self, house: House, mailing: Mailing) -> None:
        mailing.change(state=CampaignState.ENROLLING)
        for command in ("pause", "resume"):
            assert house.maintd("campaigns", command, "hello/ever").code == 1
            assert mailing.now.state is CampaignState.ENROLLING


class TestCancel:
    def test_everything_that_was_not_sent_is_settled(self, house: House, mailing: Mailing) -> None:
        house.misbehaviour.at_dot[ADA] = [Action(reply="451 4.7.1 Later")]
        house.misbehaviour.at_dot[BOB] = [TAKEN_UNANSWERED]
        mailing.send()
        house.done("campaigns", "cancel", "hello/ever", "--reason", "enough")
        assert mailing.now.state is CampaignState.CANCELLED
        assert mailing.states == {
            "no address": DeliveryState.REJECTED,
            ADA: DeliveryState.CANCELLED,
            BOB: DeliveryState.UNCERTAIN,
            CLEO: DeliveryState.SENT,
        }
        mailing.send()
        assert house.recipients == sorted([BOB, CLEO])

    def test_many_are_settled_in_several_transactions(
        self, house: House, mailing: Mailing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("maintd.mail.control._CHUNK", 1)
        said = house.done("campaigns", "cancel", "hello/ever").out
        assert "3 deliveries that were not sent are settled" in said
        assert set(mailing.states.values()) == {DeliveryState.REJECTED, DeliveryState.CANCELLED}

    def test_what_a_sender_holds_is_left_until_it_lets_go(self, house: House, mailing: Mailing) -> None:
        batch = mailing.claim()
        with mailing.ledger.write() as connection:
            batches.mark(connection, batch, wire_hi=batch.hi)
        said = house.done("campaigns", "cancel", "hello/ever").out
        assert "3 are still with a sender" in said
        assert mailing.states[ADA] is DeliveryState.PENDING
        with mailing.ledger.write() as connection:
            batches.release(connection, batch, wire_hi=batch.lo)
        assert "still with" not in house.done("campaigns", "cancel", "hello/ever").out
        assert mailing.states[ADA] is DeliveryState.CANCELLED

    def test_what_may_have_arrived_before_is_said(self, house: House, doubtful: Mailing) -> None:
        house.done("uncertain", "resolve", "--resend", ADA, "--campaign", "hello/ever", "--yes")
        house.done("campaigns", "cancel", "hello/ever")
        row = doubtful.rows[ADA]
        assert row.state is DeliveryState.CANCELLED
        assert row.detail == "the campaign was cancelled; an earlier copy may have arrived"


class TestDeliveries:
    def test_an_address_is_found_however_it_is_written(self, house: House, mailing: Mailing) -> None:
        mailing.send()
        found = house.done("deliveries", "find", ADA.upper(), "--json").json
        [delivery] = found["deliveries"]
        [accepted] = [one for one in house.mailbox if one.recipients == (ADA,)]
        assert delivery["message_id"] == accepted.message_id
        assert delivery["campaign"] == "hello/ever"
        assert (delivery["state"], delivery["code"], delivery["enhanced"]) == ("sent", 250, "2.0.0")
        assert found["suppressed"] is None

    def test_a_suppressed_address_is_told_with_the_reason(self, house: House, mailing: Mailing) -> None:
        house.done("suppressions", "add", ADA, "--reason", "asked by phone")
        shown = house.done("deliveries", "find", ADA).out
        assert "is never mailed since" in shown
        assert "asked by phone" in shown

    def test_an_address_that_nobody_mailed_is_no_error(self, house: House, mailing: Mailing) -> None:
        assert house.done("deliveries", "find", "eve@example.org", "--json").json["deliveries"] == []
        shown = house.done("deliveries", "find", "eve@example.org").out
        assert shown == "there are no deliveries to eve@example.org\n"

    def test_a_refused_one_says_of_what_type_the_refusal_was(self, house: House, mailing: Mailing) -> None:
        house.misbehaviour.at_dot[ADA] = [Action(reply="452 4.2.2 Mailbox full")]
        mailing.send()
        [delivery] = house.done("deliveries", "list", "hello/ever", "--state", "deferred", "--json").json
        assert (delivery["address"], delivery["failure"]) == (ADA, "mailbox")

    def test_one_that_is_tried_again_says_when(self, house: House, mailing: Mailing) -> None:
        commands = (("list", "hello/ever"), ("find", ADA))
        assert not any("NEXT TRY" in house.done("deliveries", *command).out for command in commands)
        house.misbehaviour.at_dot[ADA] = [Action(reply="452 4.2.2 Mailbox full")]
        mailing.send()
        due_at = mailing.rows[ADA].due_at
        assert due_at is not None
        for command in commands:
            shown = house.done("deliveries", *command).out
            assert "NEXT TRY" in shown
            assert f"{due_at:%Y-%m-%d %H:%M:%S}Z" in shown
        listed = house.done("deliveries", "list", "hello/ever", "--json").json
        told = {one["address"]: one["due_at"] for one in listed}
        assert (told[ADA], told[BOB]) == (due_at.isoformat(), None)

    def test_a_list_can_be_bounded_and_of_one_state(self, house: House, mailing: Mailing) -> None:
        def listed(*options: str) -> list[str]:
            shown = house.done("deliveries", "list", "hello/ever", "--json", *options).json
            return [delivery["address"] for delivery in shown]

        assert listed("--limit", "2") == ["no address", ADA]
        assert listed("--state", "pending") == [ADA, BOB, CLEO]
        assert listed("--state", "sent") == []


class TestUncertain:
    def resolve(self, house: House, *arguments: str, stdin: str = "") -> Ended:
        return house.maintd("uncertain", "resolve", "--campaign", "hello/ever", *arguments, stdin=stdin)

    def test_bare_it_lists_every_doubt_with_its_message_id(self, house: House, doubtful: Mailing) -> None:
        [doubt] = house.done("uncertain", "--json").json
        assert doubt["address"] == ADA
        assert doubt["message_id"] in [one.message_id for one in house.mailbox]
        shown = house.done("uncertain", "list", "--campaign", "hello/ever").out
        assert ADA in shown
        assert doubt["message_id"] in shown

    def test_said_to_be_sent_it_is_settled_and_never_sent(self, house: House, doubtful: Mailing) -> None:
        assert self.resolve(house, "--sent", ADA.lower()).code == 0
        assert doubtful.rows[ADA].detail == "resolved by hand: sent"
        assert doubtful.states[ADA] is DeliveryState.SENT
        doubtful.send()
        assert len(house.mailbox) == 3
        assert house.done("uncertain").out == "there are no uncertain deliveries\n"

    def test_dropped_it_is_cancelled_and_never_sent(self, house: House, doubtful: Mailing) -> None:
        assert self.resolve(house, "--drop", "--all").code == 0
        assert doubtful.states[ADA] is DeliveryState.CANCELLED
        doubtful.send()
        assert len(house.mailbox) == 3

    @pytest.mark.parametrize("whom", [ADA, "--all"])
    def test_sent_again_it_is_exactly_one_more_message_with_the_same_id(
        self, house: House, doubtful: Mailing, whom: str
    ) -> None:
        assert self.resolve(house, "--resend", whom, "--yes").code == 0
        assert doubtful.now.state is CampaignState.SENDING
        doubtful.send()
        assert house.recipients == sorted([ADA, ADA, BOB, CLEO])
        first, second = [one.message_id for one in house.mailbox if one.recipients == (ADA,)]
        assert first == second
        assert doubtful.rows[ADA].copies == 1
        campaign = doubtful.now
        assert (campaign.state, doubtful.states[ADA]) == (CampaignState.FINISHED, DeliveryState.SENT)
        with doubtful.ledger.read() as connection:
            run = runs.get(connection, campaign.run_id)
        assert run is not None
        assert run.state is RunState.SUCCEEDED

    def test_sending_again_asks_first(self, house: House, doubtful: Mailing) -> None:
        ended = self.resolve(house, "--resend", ADA, stdin="n\n")
        assert ended.code == 130
        assert "gets it twice" in ended.err
        assert doubtful.states[ADA] is DeliveryState.UNCERTAIN
        assert self.resolve(house, "--resend", ADA, stdin="y\n").code == 0
        assert doubtful.states[ADA] is DeliveryState.PENDING

    def test_anything_ambiguous_is_refused(self, house: House, doubtful: Mailing) -> None:
        for arguments in ([ADA], ["--sent", "--drop", ADA], ["--sent"], ["--sent", "--all", ADA]):
            assert self.resolve(house, *arguments).code == 64
            assert doubtful.states[ADA] is DeliveryState.UNCERTAIN

    def test_only_a_doubt_can_be_resolved(self, house: House, doubtful: Mailing) -> None:
        ended = self.resolve(house, "--resend", BOB, "--yes")
        assert ended.code == 1
        assert "uncertain" in ended.err
        assert doubtful.states[BOB] is DeliveryState.SENT
        assert doubtful.now.state is CampaignState.FINISHED

    def test_a_cancelled_campaign_sends_nothing_again(self, house: House, doubtful: Mailing) -> None:
        doubtful.change(state=CampaignState.CANCELLED)
        assert self.resolve(house, "--resend", "--all", "--yes").code == 1
        assert doubtful.states[ADA] is DeliveryState.UNCERTAIN

    def test_an_expired_campaign_sends_nothing_again(self, house: House, doubtful: Mailing) -> None:
        doubtful.change(expires_at=doubtful.runtime.clock.now())
        ended = self.resolve(house, "--resend", ADA, "--yes")
        assert ended.code == 1
        assert "expired" in ended.err
        assert doubtful.states[ADA] is DeliveryState.UNCERTAIN

    def test_a_paused_campaign_stays_paused(self, house: House, doubtful: Mailing) -> None:
        doubtful.change(state=CampaignState.PAUSED)
        assert self.resolve(house, "--resend", ADA, "--yes").code == 0
        doubtful.send()
        assert len(house.mailbox) == 3
        assert doubtful.now.state is CampaignState.PAUSED


class TestSuppressions:
    def test_somebody_suppressed_after_enrolment_is_not_mailed(self, house: House, mailing: Mailing) -> None:
        assert house.done("suppressions", "add", BOB.upper()).out == "it is on the list\n"
        assert house.done("suppressions", "add", BOB).out == "it was on the list already\n"
        mailing.send()
        assert house.recipients == sorted([ADA, CLEO])
        assert mailing.states[BOB] is DeliveryState.SUPPRESSED

    def test_somebody_taken_off_the_list_is_mailed(self, house: House, mailing: Mailing) -> None:
        house.done("suppressions", "add", BOB)
        house.done("suppressions", "remove", BOB)
        mailing.send()
        assert house.recipients == sorted([ADA, BOB, CLEO])
        assert "was not on the list" in house.done("suppressions", "remove", BOB).out

    def test_a_file_goes_in_but_for_its_bad_lines(
        self, house: House, mailing: Mailing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("maintd.mail.suppress._CHUNK", 2)
        text = f"{ADA}\r\n\n  {BOB}\nno address\n{ADA.lower()}\n@\n"
        ended = house.maintd("suppressions", "add", "-", "--reason", "bounced", stdin=text)
        assert ended.code == 1
        assert "line 4: " in ended.err
        assert "line 6: " in ended.err
        assert ended.out == "2 added, 1 known, 2 invalid\n"
        for address in (ADA, BOB):
            assert house.done("suppressions", "find", address, "--json").json["reason"] == "bounced"

    def test_one_bad_address_is_an_error_of_the_command_line(self, house: House, mailing: Mailing) -> None:
        assert house.maintd("suppressions", "add", "no address").code == 64

    def test_somebody_who_is_not_listed_is_told_so(self, house: House, mailing: Mailing) -> None:
        assert house.done("suppressions", "find", ADA).out == f"{ADA} is not on the list\n"
        assert house.done("suppressions", "find", ADA, "--json").json is None


class TestSink:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_it_keeps_what_is_sent_and_counts_at_the_end(self, house: House, number: signal.Signals) -> None:
        box = house.path / "box"
        command = [sys.executable, "-m", "maintd", "sink", "--port", "0", str(box)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            greeting = process.stdout.readline()
            assert str(box) in greeting
            house.monkeypatch.setenv("MAINTD_SMTP_URL", greeting.split()[2].rstrip(","))
            house.done("send-test", "hello", "me@example.net")
            process.send_signal(number)
            assert process.stdout.read() == f"kept 1 messages in {box}, 1 in all\n"
        assert process.returncode == 0
        assert len(list(read_index(box))) == 1

    def test_a_port_in_use_is_one_line(self, house: House) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            ended = house.maintd("sink", "--port", str(taken.getsockname()[1]), str(house.path / "box"))
        assert ended.code == 1
        assert ended.err.count("\n") == 1
        assert "Address already in use" in ended.err

    def test_a_host_that_others_reach_is_warned_of(self, house: House) -> None:
        with socket.create_server(("0.0.0.0", 0)) as taken:
            port = str(taken.getsockname()[1])
            ended = house.maintd("sink", "--host", "0.0.0.0", "--port", port, str(house.path / "box"))
        assert ended.err.startswith("warning: anybody who reaches 0.0.0.0")
