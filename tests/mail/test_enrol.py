from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from maintd.database import Database
from maintd.errors import CapReached, ClaimLost, Interrupted, JobFailed
from maintd.ledger import campaigns, deliveries, lines, runs, suppressions
from maintd.ledger.campaigns import Campaign
from maintd.ledger.deliveries import Delivery
from maintd.ledger.engine import identity
from maintd.ledger.runs import Claim
from maintd.ledger.states import CampaignState, DeliveryState
from maintd.ledger.timeline import Timeline
from maintd.mail.address import parse_address, recipient_key
from maintd.mail.campaign import CampaignSpec
from maintd.mail.enrolling import audience, enrol
from maintd.mail.enrolling.enrol import Edition, Enrolled
from tests.ledgers import MINUTE, NOW, HandClock, add_run, campaign_of, tallied

PENDING, REJECTED, SUPPRESSED = DeliveryState.PENDING, DeliveryState.REJECTED, DeliveryState.SUPPRESSED


@pytest.fixture
def source(ledger: Database, ledger_url: str, tmp_path: Path) -> Iterator[Database]:
    """An application's database of the ledger's own kind; the statements bring their rows with them."""
    url = ledger_url if ledger.dialect == "postgresql" else f"sqlite:///{tmp_path / 'app.db'}"
    database = Database(url, name="source app")
    yield database
    database.dispose()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audience, "CHUNK", 10)
    monkeypatch.setattr(enrol, "_AT_ONCE", 10)
    monkeypatch.setattr(enrol, "_AT_ONCE_BESIDE_A_SENDER", 10)


def rows_sql(rows: Iterable[tuple[object, ...]], *, columns: str = "id, email, name") -> str:
    """A statement that gives these rows, without any table."""
    literals = ", ".join(f"({', '.join(_literal(value) for value in row)})" for row in rows)
    return f"WITH person({columns}) AS (VALUES {literals}) SELECT * FROM person"


def _literal(value: object) -> str:
    if value is None:
        return "NULL"
    return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"


def lines_of(ledger: Database, campaign: Campaign) -> dict[str, tuple[int, int]]:
    """How far each line is cut and how far it goes, by the name of its lane."""
    with ledger.read() as connection:
        return {line.name: (line.cut, line.tail) for line in lines.of_campaign(connection, campaign.id)}


def people(count: int) -> list[tuple[object, ...]]:
    return [(number, f"p{number}@example.org", f"Person {number}") for number in range(count)]


def edition_of(
    ledger: Database,
    sql: str,
    *,
    name: str = "one",
    files: dict[str, str] | None = None,
    **keys: Any,
) -> Edition:
    spec = {
        "source": "app",
        "audience": {"sql": "hello.sql", "recipient": "id"},
        "template": "hello",
        "from": "Acme <news@acme.example>",
        **keys,
    }
    texts = {
        "sql/hello.sql": sql,
        "template/hello/subject.txt": "Hello",
        "template/hello/body.txt": "Dear {{ name }}, this is {{ edition }}.",
    }
    with ledger.write() as connection:
        run_id = add_run(connection, "hello", kind="campaign")
    return Edition(
        job="hello",
        name=name,
        run_id=run_id,
        spec=CampaignSpec.model_validate(spec),
        files=texts | (files or {}),
        uid=uuid.uuid4().hex,
    )


def enrolled(
    edition: Edition,
    ledger: Database,
    source: Database,
    clock: HandClock,
    *,
    hold: Callable[[Connection], None] = lambda _: None,
    progress: Callable[[int], None] = lambda _: None,
    pause: Callable[[float], None] = lambda _: None,
) -> Enrolled:
    return enrol.enrol(
        edition,
        ledger=ledger,
        timeline=Timeline(ledger),
        source=source,
        clock=clock,
        hold=hold,
        progress=progress,
        pause=pause,
    )


def line(ledger: Database, campaign: Campaign) -> list[Delivery]:
    with ledger.read() as connection:
        return deliveries.of_campaign(connection, campaign.id, state=None, limit=100_000)


def found(ledger: Database, name: str = "one") -> Campaign | None:
    with ledger.read() as connection:
        return campaigns.find(connection, job="hello", edition=name)


class Lost:
    """A hold that raises at its n-th call."""

    def __init__(self, after: int, error: Exception) -> None:
        self.left = after
        self._error = error

    def __call__(self, _connection: Connection) -> None:
        self.left -= 1
        if self.left < 0:
            raise self._error


def test_an_audience_becomes_one_pending_delivery_a_person_in_its_order(
    ledger: Database, source: Database, clock: HandClock, small_chunks: None
) -> None:
    read: list[int] = []
    edition = edition_of(ledger, rows_sql(people(25)), expires="36 h")
    done = enrolled(edition, ledger, source, clock, progress=read.append)
    campaign = done.campaign
    assert not done.resumed
    assert (campaign.state, campaign.audience, campaign.duplicates) == (CampaignState.SENDING, 25, 0)
    assert (campaign.tail, campaign.uid, campaign.run_id) == (25, edition.uid, edition.run_id)
    assert lines_of(ledger, campaign) == {"*": (0, 25)}
    assert (campaign.dated_at, campaign.enrolled_at) == (NOW, NOW)
    assert campaign.expires_at == NOW + timedelta(hours=36)
    assert [(d.ordinal, d.recipient, d.address) for d in line(ledger, campaign)] == [
        (number, str(number), f"p{number}@example.org") for number in range(25)
    ]
    assert tallied(ledger, campaign.id) == {PENDING: 25}
    assert read == [10, 20, 25]


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_beside_a_sender_small_transactions_leave_it_room(
    ledger: Database,
    source: Database,
    clock: HandClock,
    small_chunks: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(enrol, "_AT_ONCE_BESIDE_A_SENDER", 4)
    sql, read, pauses = rows_sql(people(25)), list[int](), list[float]()
    enrolled(edition_of(ledger, sql), ledger, source, clock, progress=read.append, pause=pauses.append)
    assert (read, pauses) == ([10, 20, 25], [])
    read.clear()
    beside = edition_of(ledger, sql, name="two")
    enrolled(beside, ledger, source, clock, progress=read.append, pause=pauses.append)
    assert read == [4, 8, 10, 14, 18, 20, 24, 25]
    assert pauses == [enrol._ROOM_S] * 8


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_where_writers_do_not_wait_for_each_other_nobody_is_given_room(
    ledger: Database, source: Database, clock: HandClock, small_chunks: None
) -> None:
    pauses: list[float] = []
    for name in ("one", "two"):
        enrolled(
            edition_of(ledger, rows_sql(people(25)), name=name), ledger, source, clock, pause=pauses.append
        )
    assert pauses == []


def test_recipients_stand_in_the_lane_of_their_domain_however_it_is_written(
    ledger: Database, source: Database, clock: HandClock, small_chunks: None
) -> None:
    domains = ("gmail.com", "Example.org", "GMAIL.com", "bücher.example", "xn--bcher-kva.example", "none")
    rows = [(number, f"p{number}@{domains[number % 6]}", "Ada") for number in range(24)]
    lanes = {"gmail.com": "big", "xn--bcher-kva.example": "books", "nobody.example": "unused"}
    edition = replace(edition_of(ledger, rows_sql(rows)), lanes=lanes)
    campaign = enrolled(edition, ledger, source, clock).campaign
    assert [delivery.lane for delivery in line(ledger, campaign)] == [1, 0, 1, 2, 2, 0] * 4
    assert lines_of(ledger, campaign) == {"*": (0, 24), "big": (0, 21), "books": (0, 23)}


def test_an_address_is_mailed_once_however_it_is_written_and_however_far_apart(
    ledger: Database, source: Database, clock: HandClock, small_chunks: None
) -> None:
    rows = people(15)
    rows.insert(1, (100, "p0@EXAMPLE.org", "Again"))
    rows.append((101, " p3@example.org ", "Later"))
    campaign = enrolled(edition_of(ledger, rows_sql(rows)), ledger, source, clock).campaign
    assert (campaign.audience, campaign.duplicates, campaign.enrolled) == (17, 2, 15)
    assert [d.ordinal for d in line(ledger, campaign)] == list(range(15))
    assert line(ledger, campaign)[0].recipient == "0"  # the first one counts


def test_an_unusable_address_is_listed_with_its_reason_row_by_row(
    ledger: Database, source: Database, clock: HandClock
) -> None:
    rows: list[tuple[object, ...]] = [
        (1, "no address", "A"),
        (2, "no address", "B"),
        (3, None, "C"),
        (4, "d@example.org", "D"),
    ]
    campaign = enrolled(edition_of(ledger, rows_sql(rows)), ledger, source, clock).campaign
    assert tallied(ledger, campaign.id) == {REJECTED: 3, PENDING: 1}
    first = line(ledger, campaign)[0]
    assert (first.recipient, first.address, first.settled_at) == ("1", "no address", NOW)
    assert str(first.detail).startswith("invalid address: ")


def test_a_person_without_an_identifier_has_none(
    ledger: Database, source: Database, clock: HandClock
) -> None:
    rows: list[tuple[object, ...]] = [
        (1, "a@example.org", "A"),
        (None, "b@example.org", "B"),
        (None, "nonsense", "C"),
        (None, "nonsense", "D"),
    ]
    campaign = enrolled(edition_of(ledger, rows_sql(rows)), ledger, source, clock).campaign
    assert [d.recipient for d in line(ledger, campaign)] == ["1", None, None, None]
    assert tallied(ledger, campaign.id) == {PENDING: 2, REJECTED: 2}


def test_whoever_is_suppressed_is_enrolled_as_such(
    ledger: Database, source: Database, clock: HandClock
) -> None:
    with ledger.write() as connection:
        key = recipient_key(parse_address("p1@example.org").canonical, key=identity(connection).recipient_key)
        suppressions.add(connection, key, reason="asked", now=NOW)
    campaign = enrolled(edition_of(ledger, rows_sql(people(3))), ledger, source, clock).campaign
    assert [d.state for d in line(ledger, campaign)] == [PENDING, SUPPRESSED, PENDING]


def test_more_recipients_than_the_cap_stop_the_mailing_before_its_first_message(
    ledger: Database, source: Database, clock: HandClock, small_chunks: None
) -> None:
    sql = rows_sql(people(25))
    with pytest.raises(CapReached, match=r"stop_at\.recipients"):
        enrolled(edition_of(ledger, sql, stop_at={"recipients": 24}), ledger, source, clock)
    stopped = found(ledger)
    assert stopped is not None
    assert stopped.state is CampaignState.ENROLLING
    raised = edition_of(ledger, sql, stop_at={"recipients": 25})
    assert tallied(ledger, enrolled(raised, ledger, source, clock).campaign.id) == {PENDING: 25}


def test_many_more_recipients_than_last_time_stop_the_mailing(
    ledger: Database, source: Database, clock: HandClock
) -> None:
    def run(name: str, count: int) -> Campaign:
        edition = edition_of(ledger, rows_sql(people(count)), name=name, stop_at={"growth": 1.5})
        return enrolled(edition, ledger, source, clock).campaign

    run("first", 10)
    run("grown", 15)
    with pytest.raises(CapReached, match=r"24 recipients are more than 1\.5 times the 15 of hello/grown"):
        run("too many", 24)
    stopped = found(ledger, "too many")
    assert stopped is not None
    assert stopped.state is CampaignState.ENROLLING
    assert run("other", 22).state is CampaignState.SENDING  # the one that was stopped is no measure


def test_an_edition_that_reached_nobody_is_no_measure_of_growth(
    ledger: Database, source: Database, clock: HandClock
) -> None:
    nobody = rows_sql(people(1)) + " WHERE 1 = 0"
    for name, sql in (("empty", nobody), ("next", rows_sql(people(5)))):
        edition = edition_of(ledger, sql, name=name, stop_at={"growth": 1.5})
        assert enrolled(edition, ledger, source, clock).campaign.state is CampaignState.SENDING


def test_every_missing_column_is_named_and_nothing_is_stored(
    ledger: Database, source: Database, clock: HandClock
) -> None:
    edition = edition_of(ledger, rows_sql([("p0@example.org",)], columns="mail"))
    with pytest.raises(JobFailed) as refusal:
        enrolled(edition, ledger, source, clock)
    for wanted in ('"email"', '"id"', '"name"', 'did you mean "mail"?'):
        assert wanted in str(refusal.value)
    stopped = found(ledger)
    assert stopped is not None
    assert (stopped.state, stopped.tail) == (CampaignState.ENROLLING, 0)
    assert line(ledger, stopped) == []


@pytest.mark.parametrize("sql", ["SELECT nothing FROM nowhere", "DELETE FROM nowhere", "SELEC 1"])
def test_a_statement_that_the_database_refuses_fails_with_the_key_that_names_it(
    ledger: Database, source: Database, clock: HandClock, sql: str
) -> None:
    with pytest.raises(JobFailed, match=r"audience\.sql \(hello\.sql\)"):
        enrolled(edition_of(ledger, sql), ledger, source, clock)


def test_a_statement_that_is_refused_in_the_middle_of_its_rows_fails_with_its_key(
    ledger: Database, source: Database, clock: HandClock, small_chunks: None
) -> None:
    bad = "json_extract('[', '$')" if ledger.dialect == "sqlite" else "(1 / (id - id))::text"
    sql = f"SELECT id, email, CASE WHEN id < 15 THEN 'fine' ELSE {bad} END AS name FROM ({rows_sql(people(25))})"
    read: list[int] = []
    with pytest.raises(JobFailed, match=r"audience\.sql \(hello\.sql\): the source app refuses"):
        enrolled(edition_of(ledger, sql + " AS p"), ledger, source, clock, progress=read.append)
    stopped = found(ledger)
    assert stopped is not None
    assert stopped.state is CampaignState.ENROLLING


def test_a_failure_of_the_ledger_is_not_blamed_on_the_statement(
    ledger: Database, source: Database, clock: HandClock
) -> None:
    def fail(_connection: Connection) -> None:
        raise IntegrityError("INSERT", None, sqlite3.IntegrityError("of the ledger"))

    edition = edition_of(ledger, rows_sql(people(3)))
    holds = iter([lambda _: None, fail])
    with pytest.raises(IntegrityError):
        enrolled(edition, ledger, source, clock, hold=lambda connection: next(holds)(connection))


def test_a_statement_cannot_write(ledger: Database, source: Database, clock: HandClock) -> None:
    with pytest.raises(JobFailed, match=r"audience\.sql"):
        enrolled(edition_of(ledger, "CREATE TABLE written (x INT)"), ledger, source, clock)


def test_percent_signs_and_colons_belong_to_the_statement(
    ledger: Database, source: Database, clock: HandClock
) -> None:
    sql = rows_sql([(1, "a@example.org", "50%"), (2, "b@example.org", ":name")])
    edition = edition_of(ledger, f"{sql} WHERE name LIKE '%0%%' OR name LIKE ':%'; ")
    campaign = enrolled(edition, ledger, source, clock).campaign
    assert [d.fields for d in line(ledger, campaign)] == [{"name": "50%"}, {"name": ":name"}]


def test_only_the_columns_that_the_template_uses_are_kept(
    ledger: Database, source: Database, clock: HandClock
) -> None:
    rows = [(1, "a@example.org", "A", "555-1234", "x")]
    sql = rows_sql(rows, columns="id, email, name, phone, secret")
    edition = edition_of(
        ledger, sql, shared={"top": "top.sql"}, files={
            "sql/top.sql": rows_sql([("First",), ("Second",)], columns="title"),
            "template/hello/body.txt": "{{ name }} {{ phone }} {{ edition }} {{ top[0].title }}",
        },
    )  # fmt: skip
    campaign = enrolled(edition, ledger, source, clock).campaign
    (delivery,) = line(ledger, campaign)
    assert delivery.fields == {"name": "A", "phone": "555-1234"}
    assert campaign.shared == {"top": [{"title": "First"}, {"title": "Second"}]}


def test_what_every_recipient_shares_must_be_small(
    ledger: Database, source: Database, clock: HandClock
) -> None:
    edition = edition_of(
        ledger,
        rows_sql(people(1)),
        shared={"top": "top.sql"},
        files={"sql/top.sql": rows_sql(((n,) for n in range(1001)), columns="n")},
    )
    with pytest.raises(JobFailed, match=r"shared\.top .* more than 1,000 rows"):
        enrolled(edition, ledger, source, clock)
    assert found(ledger) is None


VALUES = {
    "sqlite": "1.5 AS price, 9e999 AS ratio, '2026-11-20' AS day, 3 AS n, NULL AS absent, 'ö' AS word",
    "postgresql": (
        "1.50::numeric AS price, 'NaN'::numeric AS ratio, DATE '2026-11-20' AS day, 3 AS n, "
        "NULL::text AS absent, 'ö' AS word"
    ),
}
MORE_VALUES = (
    "TIMESTAMPTZ '2026-11-20 08:00+01' AS at, 'Infinity'::float8 AS far, TRUE AS yes, "
    "'6ecd8c99-4036-403d-bf84-cf8400f67836'::uuid AS ref, ARRAY[1, 2] AS items, "
    "'{\"a\": [1.5, null]}'::jsonb AS data"
)


def test_values_are_kept_in_a_form_that_a_mail_can_use(
    ledger: Database, source: Database, clock: HandClock
) -> None:
    names = "{{ price }}{{ ratio }}{{ day }}{{ n }}{{ absent }}{{ word }}"
    edition = edition_of(
        ledger,
        f"SELECT 1 AS id, 'a@example.org' AS email, {VALUES[ledger.dialect]}",
        files={"template/hello/body.txt": names},
    )
    (delivery,) = line(ledger, enrolled(edition, ledger, source, clock).campaign)
    assert delivery.fields == {
        "price": 1.5,
        "ratio": None,
        "day": "2026-11-20",
        "n": 3,
        "absent": None,
        "word": "ö",
    }


# SQLite has no such types.
@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_the_richer_values_of_postgresql_are_kept_too(
    ledger: Database, source: Database, clock: HandClock
) -> None:
    edition = edition_of(
        ledger,
        f"SELECT 1 AS id, 'a@example.org' AS email, {MORE_VALUES}",
        files={"template/hello/body.txt": "{{ at }}{{ far }}{{ yes }}{{ ref }}{{ items }}{{ data }}"},
    )
    (delivery,) = line(ledger, enrolled(edition, ledger, source, clock).campaign)
    assert delivery.fields == {
        "at": "2026-11-20T07:00:00+00:00",
        "far": None,
        "yes": True,
        "ref": "6ecd8c99-4036-403d-bf84-cf8400f67836",
        "items": [1, 2],
        "data": {"a": [1.5, None]},
    }


def test_a_value_that_no_mail_can_use_is_refused_by_its_column(
    ledger: Database, source: Database, clock: HandClock
) -> None:
    blob = "x'00'" if ledger.dialect == "sqlite" else "'\\x00'::bytea"
    sql = f"SELECT 1 AS id, 'a@example.org' AS email, {blob} AS name"
    with pytest.raises(JobFailed, match='column "name"'):
        enrolled(edition_of(ledger, sql), ledger, source, clock)


def test_the_same_edition_again_goes_on_with_what_is_there(
    ledger: Database, source: Database, clock: HandClock
) -> None:
    sql = rows_sql(people(5))
    first = enrolled(edition_of(ledger, sql), ledger, source, clock).campaign
    clock.turn(MINUTE)
    later = edition_of(ledger, sql)
    again = enrolled(later, ledger, source, clock)
    assert again.resumed
    assert again.campaign == replace(first, run_id=later.run_id)
    assert len(line(ledger, first)) == 5


def test_other_content_is_refused_while_the_edition_is_under_way_and_ignored_once_it_is_over(
    ledger: Database, source: Database, clock: HandClock
) -> None:
    first = enrolled(edition_of(ledger, rows_sql(people(5))), ledger, source, clock).campaign
    other = edition_of(ledger, rows_sql(people(6)))
    with pytest.raises(JobFailed, match="other content"):
        enrolled(other, ledger, source, clock)
    assert campaign_of(ledger, first.id) == first
    with ledger.write() as connection:
        campaigns.move(connection, first.id, to=CampaignState.FINISHED, now=NOW)
    done = enrolled(other, ledger, source, clock)
    assert (done.resumed, done.campaign.state) == (True, CampaignState.FINISHED)
    assert len(line(ledger, first)) == 5


def test_a_run_that_is_under_way_keeps_its_edition_and_who_comes_later_has_nothing_to_do(
    ledger: Database, source: Database, clock: HandClock
) -> None:
    first = edition_of(ledger, rows_sql(people(5)))
    campaign = enrolled(first, ledger, source, clock).campaign
    with ledger.write() as connection:
        mine = runs.claim(connection, queue="maintenance", token="t", owner="host:1", now=NOW)
        assert mine is not None
        runs.hand_over(connection, Claim(run_id=first.run_id, token="t"), result=None)
    later = edition_of(ledger, rows_sql(people(6)))
    assert enrolled(later, ledger, source, clock) == Enrolled(campaign=campaign, resumed=True)


def test_another_edition_of_the_same_period_is_one_of_its_own(
    ledger: Database, source: Database, clock: HandClock
) -> None:
    sql = rows_sql(people(5))
    first = enrolled(edition_of(ledger, sql), ledger, source, clock).campaign
    asked = edition_of(ledger, sql)
    with ledger.read() as connection:
        name = campaigns.free_edition(connection, job="hello", edition="one")
    second = enrolled(replace(asked, name=name), ledger, source, clock)
    assert (second.campaign.name, second.resumed) == ("hello/one+2", False)
    assert [tallied(ledger, each.id) for each in (first, second.campaign)] == [{PENDING: 5}] * 2


def comparable(campaign: Campaign) -> Campaign:
    """A campaign without what every attempt brings along."""
    return replace(campaign, id=0, run_id=0, uid="", edition="", shared={})


def test_an_enrolment_that_was_cut_off_anywhere_is_begun_anew_and_ends_equal(
    ledger: Database, source: Database, clock: HandClock, small_chunks: None
) -> None:
    sql = rows_sql([*people(25), (99, "p3@EXAMPLE.ORG", "Again"), (98, "nonsense", "")])
    whole = enrolled(edition_of(ledger, sql, name="whole"), ledger, source, clock).campaign
    expected = [d._replace(campaign_id=0) for d in line(ledger, whole)]
    cut_off = True
    for after in range(100):
        name = f"cut off after {after}"
        hold = Lost(after, Interrupted("stopped"))
        try:
            enrolled(edition_of(ledger, sql, name=name), ledger, source, clock, hold=hold)
            cut_off = False
        except Interrupted:
            begun = found(ledger, name)
            assert begun is None or begun.state is CampaignState.ENROLLING
        anew = enrolled(edition_of(ledger, sql, name=name), ledger, source, clock)
        assert comparable(anew.campaign) == comparable(whole)
        assert [d._replace(campaign_id=0) for d in line(ledger, anew.campaign)] == expected
        if not cut_off:
            break
    assert after == 5  # the row, three chunks and the end: each was cut off once


def test_a_wipe_that_was_cut_off_is_gone_on_with(
    ledger: Database, source: Database, clock: HandClock, small_chunks: None
) -> None:
    sql = rows_sql(people(25))
    with pytest.raises(Interrupted):
        enrolled(edition_of(ledger, sql), ledger, source, clock, hold=Lost(4, Interrupted("stopped")))
    with pytest.raises(Interrupted):
        enrolled(edition_of(ledger, sql), ledger, source, clock, hold=Lost(2, Interrupted("stopped")))
    begun = found(ledger)
    assert begun is not None
    assert len(line(ledger, begun)) == 25 - 2 * 10
    campaign = enrolled(edition_of(ledger, sql), ledger, source, clock).campaign
    assert tallied(ledger, campaign.id) == {PENDING: 25}


def test_whoever_lost_the_claim_writes_nothing_into_what_its_successor_enrolled(
    ledger: Database, source: Database, clock: HandClock, small_chunks: None
) -> None:
    sql = rows_sql(people(25))
    lost: list[bool] = []
    successors: list[Campaign] = []

    def hold(_connection: Connection) -> None:
        if lost:
            raise ClaimLost("taken over")

    def take_over(read: int) -> None:
        lost.append(True)
        successor = edition_of(ledger, sql)
        successors.append(enrolled(successor, ledger, source, clock).campaign)

    with pytest.raises(ClaimLost):
        enrolled(edition_of(ledger, sql), ledger, source, clock, hold=hold, progress=take_over)
    (successor,) = successors
    assert campaign_of(ledger, successor.id) == successor
    assert tallied(ledger, successor.id) == {PENDING: 25}


def test_nothing_is_added_to_an_audience_that_was_enrolled_by_somebody_else(
    ledger: Database, source: Database, clock: HandClock, small_chunks: None
) -> None:
    sql = rows_sql(people(25))
    successors: list[Campaign] = []

    def take_over(read: int) -> None:
        successors.append(enrolled(edition_of(ledger, sql), ledger, source, clock).campaign)

    with pytest.raises(JobFailed):
        enrolled(edition_of(ledger, sql), ledger, source, clock, progress=take_over)
    (successor,) = successors
    assert campaign_of(ledger, successor.id) == successor
    assert tallied(ledger, successor.id) == {PENDING: 25}


@pytest.mark.parametrize(
    "sql",
    [
        "",
        "-- nothing but a comment",
        "ATTACH DATABASE 'x.db' AS x",
        "PRAGMA query_only = OFF",
        "DELETE FROM t",
    ],
)
def test_what_is_no_query_is_never_handed_to_the_database(
    ledger: Database, source: Database, clock: HandClock, sql: str
) -> None:
    with pytest.raises(JobFailed, match="must be one SELECT"):
        enrolled(edition_of(ledger, sql), ledger, source, clock)
