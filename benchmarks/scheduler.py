"""How the scheduler bears ten thousand jobs: applying, mirroring, an idle tick, and all of them due at once.

    python benchmarks/scheduler.py [--jobs 10000] [--database-url postgresql://…] [--json]

The yardstick in the same run is the database itself: inserting as many bare rows in one transaction.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from maintd.broker.app import make_app
from maintd.broker.beat import LedgerScheduler
from maintd.clock import SystemClock
from maintd.config.load import load_settings
from maintd.config.settings import Settings
from maintd.errors import Unavailable
from maintd.execution.kinds import SPECS, queue_of
from maintd.execution.runtime import Runtime, open_runtime
from maintd.keyspace import Keyspace, redis_url_of
from maintd.ledger.engine import migrate
from maintd.ledger.tables import jobs, misses
from maintd.scheduling.apply import Prepared, apply
from maintd.scheduling.files import load
from maintd.scheduling.occurrences import fire
from maintd.supervise.embedded import server_command


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--database-url")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="maintd-bench-") as directory:
        figures = measure(Path(directory), count=arguments.jobs, database_url=arguments.database_url)
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        print(f"{name:42} {value:>12,.4g}")


def measure(directory: Path, *, count: int, database_url: str | None) -> dict[str, float]:
    """Runs it all once; seconds unless the name says otherwise."""
    settings = _settings(directory, database_url)
    migrate(settings.database_url.get_secret_value())
    runtime = open_runtime(settings, clock=SystemClock())
    prepared = [_job(number) for number in range(count)]
    figures: dict[str, float] = {"jobs": count}
    with _redis(settings) as keyspace:
        app = make_app(settings, redis_url=redis_url_of(settings))
        scheduler = LedgerScheduler(
            app, runtime=runtime, keyspace=keyspace, wake=lambda queues: list(queues), max_interval=1.0
        )
        figures["apply"] = _timed(
            lambda: apply(runtime.ledger, prepared, prune=False, now=runtime.clock.now())
        )
        figures["first tick (lock and mirror)"] = _timed(scheduler.tick)
        scheduler.tick()
        figures["idle tick, median of 200 (ms)"] = _median(scheduler.tick, times=200) * 1000
        _make_due(runtime)
        names = [one.job.name for one in prepared]
        took = _timed(lambda: fire(runtime.timeline, names, now=runtime.clock.now(), queue_of=queue_of))
        figures["record all of them due"] = took
        figures["due occurrences recorded a second"] = count / took
        figures["bare inserts of as many rows"] = _timed(lambda: _bare_inserts(runtime, count))
        figures["recording, times a bare insert"] = took / figures["bare inserts of as many rows"]
        scheduler.close()
    runtime.close()
    return figures


def _settings(directory: Path, database_url: str | None) -> Settings:
    environ = {"MAINTD_STATE_DIR": str(directory), "MAINTD_ENV_FILE": "", "MAINTD_RECONCILE": "1 h"}
    return load_settings(
        environ=environ | ({"MAINTD_DATABASE_URL": database_url} if database_url else {}), env_file=None
    )


def _job(number: int) -> Prepared:
    stored: dict[str, Any] = {
        "kind": "cleanup.rows",
        "when": {"cron": f"{number % 60} {number % 24} * * *", "timezone": "Europe/Berlin"},
        "source": "app",
        "table": "session",
        "older_than": {"column": "expires_at", "age": "1 day"},
    }
    return Prepared(job=load(f"job-{number}", stored, kinds=SPECS), files={})


def _make_due(runtime: Runtime) -> None:
    """Puts every cursor a day back: each job is due once."""
    now = runtime.clock.now()
    with runtime.ledger.write() as connection:
        connection.execute(sa.update(jobs).values(cursor_at=now - timedelta(days=1), next_at=now))


def _bare_inserts(runtime: Runtime, count: int) -> None:
    now = runtime.clock.now()
    row = {"job": "x", "first_at": now, "last_at": now, "count": 1, "exact": True, "reason": ""}
    with runtime.ledger.write() as connection:
        for _ in range(count):
            connection.execute(sa.insert(misses).values(**row))


@contextmanager
def _redis(settings: Settings) -> Iterator[Keyspace]:
    with subprocess.Popen(server_command(settings)) as server:
        try:
            yield _answering(Keyspace(redis_url_of(settings)))
        finally:
            server.terminate()


def _answering(keyspace: Keyspace) -> Keyspace:
    while True:
        try:
            keyspace.ping()
            return keyspace
        except Unavailable:  # it is starting
            time.sleep(0.05)


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _median(work: Callable[[], object], *, times: int) -> float:
    return sorted(_timed(work) for _ in range(times))[times // 2]


if __name__ == "__main__":
    main()
