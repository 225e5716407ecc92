"""A runtime around a test's ledger, and a kind of job that does what the test says."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from maintd.config.load import load_settings
from maintd.database import Database
from maintd.execution import executor
from maintd.execution.executor import Drained
from maintd.execution.kinds import KINDS, SPECS, Done, Kind, Work
from maintd.execution.queues import Queue
from maintd.execution.runtime import Runtime
from maintd.execution.worker import Worker
from maintd.sources.connect import Sources
from maintd.spec import Spec
from tests.ledgers import HandClock
from tests.sinks import SinkThread

Act = Callable[[Work], Done]


def succeed(_work: Work) -> Done:
    """Does nothing, well."""
    return Done(result={})


class Nothing(Spec):
    """No keys of its own."""


@pytest.fixture
def runtime(ledger: Database, clock: HandClock, tmp_path: Path) -> Runtime:
    settings = load_settings(
        environ={"MAINTD_STATE_DIR": str(tmp_path), "MAINTD_HEARTBEAT": "10 ms", "MAINTD_LEASE": "30 s"},
        env_file=None,
    )
    sources = Sources({}, statement_timeout=timedelta(minutes=1))
    return Runtime(settings=settings, ledger=ledger, sources=sources, clock=clock, owner="host:1")


def sending_to(
    url: str,
    runtime: Runtime,
    directory: Path,
    *,
    stopping: Callable[[], bool] = lambda: False,
    connections: int = 8,
) -> Worker:
    """A worker that mails over this relay."""
    environ = {
        "MAINTD_STATE_DIR": str(directory),
        "MAINTD_STATE_DIR_VOLATILE": "allow",
        "MAINTD_SMTP_URL": url,
        "MAINTD_SMTP_CONNECTIONS": str(connections),
    }
    settings = load_settings(environ=environ, env_file=None)
    return Worker(replace(runtime, settings=settings), stopping=stopping)


@pytest.fixture
def worker(runtime: Runtime, tmp_path: Path, relay: SinkThread) -> Iterator[Worker]:
    """One that mails over the test's relay."""
    with contextlib.closing(sending_to(relay.url, runtime, tmp_path)) as worker:
        yield worker


@pytest.fixture
def acts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Act]]:
    """What a run of each job does; of one that is not named: nothing, successfully."""
    by_job: dict[str, Act] = {}

    def run(work: Work) -> Done:
        return by_job.get(work.run.job, succeed)(work)

    def examine(*_: object) -> None: ...

    kind = Kind(name="test", queue=Queue.MAINTENANCE, spec=Nothing, run=run, examine=examine)
    monkeypatch.setitem(KINDS, "test", kind)
    monkeypatch.setitem(SPECS, "test", Nothing)
    yield by_job


def drain(
    runtime: Runtime,
    *,
    queue: Queue = Queue.MAINTENANCE,
    stopping: Callable[[], bool] = lambda: False,
    budget: timedelta = timedelta(minutes=1),
) -> Drained:
    """Works a queue as a worker does that was woken."""
    return executor.drain(queue, runtime, stopping=stopping, budget=budget)
