from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from maintd import database
from maintd.database import Database
from maintd.errors import JobFailed, Problems, Unavailable
from maintd.ledger import deliveries
from maintd.mail.enrolling.audience import open_audience
from tests.ledgers import HandClock, add_campaign, key_of

LIMIT, LONG = timedelta(milliseconds=200), timedelta(seconds=20)
COUNTED = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {most}) SELECT {what} FROM n"
)
SLOW = COUNTED.format(most=50_000_000, what="count(*)")
TOUCH = sa.text("UPDATE row SET value = value + 1")


@pytest.fixture
def others(postgresql_url: str) -> Iterator[Database]:
    """Somebody patient, and a row to wait for."""
    others = Database(postgresql_url, name="others", statement_timeout=LONG)
    with others.write() as connection:
        connection.exec_driver_sql("CREATE TABLE row (value INTEGER NOT NULL)")
        connection.exec_driver_sql("INSERT INTO row VALUES (0)")
    yield others
    others.dispose()


def test_a_transaction_that_stands_idle_is_ended_and_keeps_nobody_waiting(
    others: Database, postgresql_url: str
) -> None:
    ledger = Database(postgresql_url, name="ledger", owned=True, idle_timeout=LIMIT)
    with pytest.raises(Unavailable, match="idle-in-transaction timeout"), ledger.write() as stopped:
        stopped.execute(TOUCH)
        with others.write() as connection:
            connection.execute(TOUCH)
        stopped.execute(TOUCH)
    ledger.dispose()
    with others.read() as connection:
        assert connection.exec_driver_sql("SELECT value FROM row").scalar_one() == 1


def test_who_waits_too_long_for_a_lock_on_the_ledger_may_try_again(
    others: Database, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_LOCK_TIMEOUT", LIMIT)
    ledger = Database(postgresql_url, name="ledger", owned=True, statement_timeout=LONG, idle_timeout=LONG)
    said = r"the ledger .* does not answer in time: .* due to lock timeout"
    with others.write() as held:
        held.execute(TOUCH)
        with pytest.raises(Unavailable, match=said), ledger.write() as waiting:
            waiting.execute(TOUCH)
    ledger.dispose()


def test_a_source_keeps_the_timeouts_that_its_owner_chose(postgresql_url: str) -> None:
    source = Database(postgresql_url, name="source app")
    with source.write() as connection:
        for name in ("lock_timeout", "idle_in_transaction_session_timeout"):
            assert connection.exec_driver_sql(f"SHOW {name}").scalar_one() == "0"
    source.dispose()


def test_a_server_that_falls_silent_is_given_up_within_half_a_minute(postgresql_url: str) -> None:
    source = Database(postgresql_url, name="source app")
    with source.engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        used = driver.info.get_parameters()
    source.dispose()
    idle, interval, count = (int(used[f"keepalives_{name}"]) for name in ("idle", "interval", "count"))
    assert (idle + interval * count, used["tcp_user_timeout"]) == (30, "30000")


def test_a_statement_that_takes_too_long_is_worth_another_try_on_the_ledger(database_url: str) -> None:
    ledger = Database(database_url, name="ledger", owned=True, statement_timeout=LIMIT)
    said = r"the ledger .* does not answer in time: .* due to statement timeout"
    with pytest.raises(Unavailable, match=said), ledger.read() as connection:
        connection.exec_driver_sql(SLOW)
    ledger.dispose()


def test_a_statement_that_takes_too_long_is_a_source_s_answer(database_url: str) -> None:
    source = Database(database_url, name="source app", statement_timeout=LIMIT)
    said = r"audience: the source app refuses .* due to statement timeout"
    with pytest.raises(JobFailed, match=said), open_audience(source, SLOW, key="audience"):
        pass
    # What was interrupted has no after-effects.
    with source.write() as connection:
        assert connection.exec_driver_sql("SELECT 1").scalar_one() == 1
    source.dispose()


def test_a_reader_of_sqlite_may_take_its_time_between_two_fetches(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = HandClock()
    monkeypatch.setattr(database, "time", SimpleNamespace(monotonic=clock.monotonic_s))
    source = Database(sqlite_url, name="source app", statement_timeout=LIMIT)
    with source.read() as connection:
        rows = connection.exec_driver_sql(COUNTED.format(most=10_000, what="i"))
        assert len(rows.fetchmany(10)) == 10
        clock.turn(2 * LIMIT)
        assert len(rows.fetchall()) == 9990
    source.dispose()


def test_a_value_that_the_driver_refuses_by_itself_does_not_mean_that_the_database_is_away(
    postgresql_url: str,
) -> None:
    source = Database(postgresql_url, name="source app")
    with pytest.raises(DBAPIError, match="NUL"), source.write() as connection:
        connection.execute(sa.select(sa.literal("a\0b")))
    source.dispose()


def test_the_text_of_an_error_has_neither_address_nor_fields(ledger: Database) -> None:
    campaign = add_campaign(ledger, recipients=0)
    incomplete = {
        "campaign_id": campaign.id,
        "ordinal": 0,
        "recipient_key": key_of(0),
        "address": "ada@private.example",
        "recipient": "0",
        "fields": {"diagnosis": "measles"},
        "state": None,
    }
    with pytest.raises(DBAPIError) as refusal, ledger.write() as connection:
        deliveries.insert(connection, [incomplete])
    text = "".join(traceback.format_exception(refusal.value))
    assert "state" in text
    assert not [word for word in ("private.example", "diagnosis", "measles") if word in text]


def test_a_driver_that_is_missing_is_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(Problems, match=r"pip install 'maintd\[postgres\]'"):
        Database("postgresql://nobody@127.0.0.1/x", name="ledger")


def test_a_file_that_is_put_in_the_place_of_a_database_is_the_database_from_then_on(tmp_path: Path) -> None:
    live, other = (Database(f"sqlite:///{tmp_path / name}", name=name) for name in ("live", "other"))
    for number, one in enumerate((live, other)):
        with one.write() as connection:
            connection.exec_driver_sql("CREATE TABLE row (value INTEGER NOT NULL)")
            connection.exec_driver_sql(f"INSERT INTO row VALUES ({number})")
    other.dispose()
    (tmp_path / "other").rename(tmp_path / "live")
    with live.read() as connection:
        assert connection.exec_driver_sql("SELECT value FROM row").scalar_one() == 1
    live.dispose()
