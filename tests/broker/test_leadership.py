from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

from maintd.broker.beat import Leadership
from maintd.config.load import load_settings
from maintd.execution.runtime import Runtime
from maintd.keyspace import Keyspace
from maintd.ledger.engine import ledger_database
from maintd.sources.connect import Sources
from tests.ledgers import HandClock


class Stumbling(Keyspace):
    """Fails the first renewal in a way that nobody foresaw."""

    def __init__(self) -> None:
        super().__init__("unix:///nowhere")
        self.failed = False
        self.renewed = threading.Event()

    def acquire_lock(self, token: str, *, ttl: timedelta) -> bool:
        return True

    def renew_lock(self, token: str, *, ttl: timedelta) -> bool:
        if not self.failed:
            self.failed = True
            raise ZeroDivisionError
        self.renewed.set()
        return True

    def release_lock(self, token: str) -> None: ...


def test_a_leader_goes_on_renewing_whatever_a_renewal_failed_of(tmp_path: Path, sqlite_url: str) -> None:
    settings = load_settings(
        environ={"MAINTD_STATE_DIR": str(tmp_path), "MAINTD_TICK": "1 ms", "MAINTD_BEAT_LOCK": "30 ms"},
        env_file=None,
    )
    runtime = Runtime(
        settings=settings,
        ledger=ledger_database(sqlite_url),
        sources=Sources({}, statement_timeout=timedelta(minutes=1)),
        clock=HandClock(),
        owner="host:1",
    )
    keyspace = Stumbling()
    leadership = Leadership(keyspace, runtime)
    assert leadership.held()
    assert keyspace.renewed.wait(120)
    assert leadership.held()
    leadership.resign()
