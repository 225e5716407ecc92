"""What a beat says of what keeps it from its work, and that it goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from maintd.broker.app import make_app
from maintd.broker.beat import LedgerScheduler
from maintd.config.load import load_settings
from maintd.database import Database
from maintd.execution.runtime import Runtime
from maintd.keyspace import Keyspace
from maintd.ledger import timeline
from maintd.sources.connect import Sources
from tests.ledgers import MINUTE, HandClock
from tests.valkeys import Valkey

pytestmark = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)


@pytest.fixture
def server() -> Iterator[Valkey]:
    """A Redis that may be killed."""
    with Valkey() as server:
        yield server


@pytest.fixture
def keyspace(server: Valkey) -> Iterator[Keyspace]:
    """What beats share in it."""
    with closing(Keyspace(server.url)) as keyspace:
        yield keyspace


@pytest.fixture
def beat(
    ledger: Database, clock: HandClock, tmp_path: Path, server: Valkey, keyspace: Keyspace
) -> Iterator[LedgerScheduler]:
    """A beat that ticks when it is told to."""
    settings = load_settings(environ={"MAINTD_STATE_DIR": str(tmp_path)}, env_file=None)
    sources = Sources({}, statement_timeout=timedelta(minutes=1))
    runtime = Runtime(settings=settings, ledger=ledger, sources=sources, clock=clock, owner="host:1")
    app = make_app(settings, redis_url=server.url)
    with closing(LedgerScheduler(app, runtime=runtime, keyspace=keyspace, wake=lambda _: None)) as beat:
        yield beat


def test_of_every_trouble_that_was_told_it_is_told_that_it_is_over(
    ledger: Database,
    clock: HandClock,
    server: Valkey,
    beat: LedgerScheduler,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="maintd.broker.beat")

    def said() -> list[str]:
        caplog.clear()
        clock.turn(MINUTE)  # so that it asks Redis whether it leads
        beat.tick()
        return [one.getMessage() for one in caplog.records]

    said()
    with ledger.write() as connection:
        timeline.hold(connection, "a drill")
    assert any("the ledger is held: a drill" in line for line in said())
    server.kill()
    assert any("Redis does not answer" in line for line in said())
    assert not any("over" in line or "not held" in line for line in said()), "of what goes on"
    server.start()
    with ledger.write() as connection:
        assert timeline.accept(connection, timeline.standing(connection), epoch=1)
    held, away = said()[-2:]
    assert "the ledger is not held any more" in held
    assert "it is over: Redis does not answer" in away
    assert not any("over" in line or "not held" in line for line in said()), "it is told once"


def test_a_beat_that_stands_by_goes_on_when_redis_goes_away_just_as_it_finds_the_ledger_held(
    ledger: Database,
    server: Valkey,
    keyspace: Keyspace,
    beat: LedgerScheduler,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert keyspace.acquire_lock("another's", ttl=MINUTE)
    with ledger.write() as connection:
        timeline.hold(connection, "a drill")

    @sa.event.listens_for(ledger.engine, "before_cursor_execute")
    def goes_away(*_: object) -> None:
        server.kill()

    beat.tick()
    assert "the ledger is held: a drill" in caplog.text
    beat.tick()
    assert "Redis does not answer" in caplog.text
