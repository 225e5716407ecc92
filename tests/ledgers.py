"""Ledgers for the tests: one empty one of each kind, rows to begin with, threads that race, and time turned by hand."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from maintd.database import Database
from maintd.ledger import batches, campaigns, deliveries, lines, runs
from maintd.ledger.campaigns import Campaign
from maintd.ledger.engine import SCHEMA, migrate, open_ledger
from maintd.ledger.lines import OTHERS, Stretch
from maintd.ledger.runs import Claim, NewRun, Run
from maintd.ledger.states import CampaignState, DeliveryState, RunState
from maintd.ledger.tables import jobs, meta, metadata, timeline
from maintd.mail.content.templates import Bundle

T = TypeVar("T")

NOW = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HELLO = Bundle(
    name="hello",
    files={
        "hello/subject.txt": "Hello {{ name }}",
        "hello/body.txt": "Dear {{ name }},\nthis is {{ edition }}.\n",
    },
)


class HandClock:
    """A clock that stands still until somebody turns it."""

    def __init__(self, now: datetime = NOW) -> None:
        self._now = now
        self._monotonic_s = 1000.0

    def now(self) -> datetime:
        return self._now

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def turn(self, by: timedelta) -> None:
        """Lets time pass."""
        self._now += by
        self._monotonic_s += by.total_seconds()

    def leap(self, by: timedelta) -> None:
        """Sets the wall clock; no time passes."""
        self._now += by


@pytest.fixture
def clock() -> HandClock:
    """Stands still, and everything that shares it with it."""
    return HandClock()


@pytest.fixture(scope="session")
def migrated_postgresql(postgresql_server: str) -> Iterator[str]:
    """The URL of a migrated PostgreSQL database; migrating one for every test takes longer than most tests."""
    admin = sa.make_url(postgresql_server).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(admin, isolation_level="AUTOCOMMIT")
    name = f"ledger{uuid.uuid4().hex[:12]}"
    with engine.connect() as connection:
        connection.exec_driver_sql(f'CREATE DATABASE "{name}"')
    url = admin.set(database=name, drivername="postgresql").render_as_string(hide_password=False)
    migrate(url)
    yield url
    with engine.connect() as connection:
        connection.exec_driver_sql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    engine.dispose()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The content of a migrated SQLite file."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.db"
    migrate(f"sqlite:///{path}")
    return path.read_bytes()


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a migrated, empty ledger, once of each kind."""
    if request.param == "sqlite":
        path = tmp_path / "ledger.db"
        path.write_bytes(request.getfixturevalue("migrated_sqlite"))
        return f"sqlite:///{path}"
    url = str(request.getfixturevalue("migrated_postgresql"))
    engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"))
    names = ", ".join(
        f"{SCHEMA}.{table.name}" for table in metadata.sorted_tables if table not in (meta, timeline)
    )
    with engine.begin() as connection:
        connection.exec_driver_sql(f"TRUNCATE {names} RESTART IDENTITY CASCADE")
        connection.exec_driver_sql(f"UPDATE {SCHEMA}.meta SET value = '0' WHERE name = 'jobs_stamp'")
        connection.exec_driver_sql(f"UPDATE {SCHEMA}.timeline SET epoch = 0, sequence = 0, held = NULL")
    engine.dispose()
    return url


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Database]:
    """An open, empty ledger, once of each kind."""
    database = open_ledger(ledger_url)
    yield database
    database.dispose()


def add_job(connection: Connection, name: str = "tidy", **columns: Any) -> None:
    """Applies a job in the shortest way."""
    values = {
        "kind": "test",
        "revision": 1,
        "spec": {"kind": "test"},
        "files": {},
        "digest": "d",
        "enabled": True,
        "applied_at": NOW,
    }
    connection.execute(sa.insert(jobs).values(name=name, **{**values, **columns}))


def add_run(connection: Connection, job: str = "tidy", **fields: Any) -> int:
    """Queues a run that is due."""
    values: dict[str, Any] = {
        "kind": "test",
        "occurrence": uuid.uuid4().hex,
        "cause": "manual",
        "nominal_at": NOW,
        "options": {},
        "state": RunState.QUEUED,
        "queue": "maintenance",
        "due_at": NOW,
    }
    run_id = runs.create(connection, NewRun(job=job, **{**values, **fields}), now=NOW)
    assert run_id is not None
    return run_id


def claim_run(ledger: Database, *, token: str = "mine", now: datetime = NOW) -> tuple[Run, Claim]:
    """Takes the next run of the queue that `add_run` uses."""
    with ledger.write() as connection:
        run = runs.claim(connection, queue="maintenance", token=token, owner="host:1", now=now)
    assert run is not None
    return run, Claim(run_id=run.id, token=token)


def run_of(ledger: Database, run_id: int) -> Run:
    """A run as it is now."""
    with ledger.read() as connection:
        run = runs.get(connection, run_id)
    assert run is not None
    return run


def key_of(number: int) -> bytes:
    """The key of the recipient with that number."""
    return number.to_bytes(16, "big")


def campaign_spec() -> dict[str, Any]:
    """The keys of a campaign as the ledger keeps them."""
    return {
        "source": "app",
        "audience": {"sql": "hello.sql"},
        "template": "hello",
        "from": "Acme <news@acme.example>",
        "uncertain": "never_duplicate",
        "max_copies": 3,
    }


def add_campaign(
    ledger: Database,
    *,
    recipients: int,
    job: str = "hello",
    edition: str = "one",
    state: CampaignState = CampaignState.SENDING,
    expires_at: datetime | None = None,
    urgent: bool = False,
    bundle: Bundle = HELLO,
    spec: Mapping[str, Any] | None = None,
    lanes: int = 1,
) -> Campaign:
    """A campaign with so many pending deliveries, to `p0@example.org`, `p1@example.org`, …

    They are dealt out to so many lanes, "*", "lane1", …, one after the other.
    """
    with ledger.write() as connection:
        campaigns.store_template(
            connection, digest=bundle.digest, name=bundle.name, files=bundle.files, now=NOW
        )
        values = {
            "uid": uuid.uuid4().hex,
            "job": job,
            "edition": edition,
            "run_id": add_run(connection, job, state=RunState.UNDERWAY, kind="campaign"),
            "spec": campaign_spec() | dict(spec or {}),
            "template": bundle.digest,
            "shared": {},
            "content": "c",
            "dated_at": NOW,
            "expires_at": expires_at,
            "urgent": urgent,
            "created_at": NOW,
        }
        campaign_id = campaigns.create(connection, values)
        rows = [_delivery(campaign_id, number) | {"lane": number % lanes} for number in range(recipients)]
        deliveries.insert(connection, rows)
        campaigns.count_enrolled(connection, campaign_id, audience=recipients, duplicates=0, tail=recipients)
        for lane in range(1, lanes):
            lines.begin(connection, campaign_id, lane=lane, name=f"lane{lane}")
        lines.enrol(connection, campaign_id, {row["lane"]: row["ordinal"] + 1 for row in rows})
        if state is not CampaignState.ENROLLING:
            campaigns.move(connection, campaign_id, to=CampaignState.SENDING, now=NOW)
        if state not in (CampaignState.ENROLLING, CampaignState.SENDING):
            assert campaigns.move(connection, campaign_id, to=state, now=NOW)
        return campaigns.get(connection, campaign_id)


def _delivery(campaign_id: int, number: int) -> dict[str, Any]:
    return {
        "campaign_id": campaign_id,
        "ordinal": number,
        "recipient_key": key_of(number),
        "address": f"p{number}@example.org",
        "recipient": str(number),
        "fields": {"name": f"Person {number}"},
        "state": DeliveryState.PENDING,
    }


def stretch_of(campaign: Campaign, *, lo: int = 0, hi: int = 1_000_000, lane: int = OTHERS) -> Stretch:
    """Some of the deliveries of a campaign's lane; without bounds all of them."""
    return Stretch(campaign_id=campaign.id, lane=lane, lo=lo, hi=hi)


def claim_batch(
    ledger: Database, campaign: Campaign, *, size: int = 10, token: str = "mine", lane: int = OTHERS
) -> batches.Batch | None:
    """Claims the next batch of a campaign's lane."""
    with ledger.write() as connection:
        return batches.claim(connection, campaign.id, lane=lane, size=size, token=token, owner="host:1")


def cuts(ledger: Database, campaign: Campaign) -> list[int]:
    """How far each line of a campaign is cut."""
    with ledger.read() as connection:
        return [line.cut for line in lines.of_campaign(connection, campaign.id)]


def campaign_of(ledger: Database, campaign_id: int) -> Campaign:
    """A campaign as it is now."""
    with ledger.read() as connection:
        return campaigns.get(connection, campaign_id)


def states_of(ledger: Database, campaign_id: int) -> dict[int, DeliveryState]:
    """The state of every recipient, by number."""
    with ledger.read() as connection:
        found = deliveries.of_campaign(connection, campaign_id, state=None, limit=1_000_000)
    return {int(delivery.recipient or 0): delivery.state for delivery in found}


def tallied(ledger: Database, campaign_id: int) -> dict[DeliveryState, int]:
    """How many deliveries are in each state, the empty ones left out."""
    with ledger.read() as connection:
        counts = deliveries.counts(connection, campaign_id)
    assert sum(counts.values()) == campaign_of(ledger, campaign_id).enrolled
    return {state: count for state, count in counts.items() if count}


def race(count: int, work: Callable[[int], T]) -> list[T]:
    """Calls `work(0)`, `work(1)`, … in so many threads that all begin at once; returns what they return."""
    together = threading.Barrier(count)

    def start(number: int) -> T:
        together.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(start, range(count)))
