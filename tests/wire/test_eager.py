"""The tasks do the same whether Celery calls them in-process or through Redis and worker processes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from maintd import api
from maintd.broker.app import make_app
from maintd.broker.tasks import register
from maintd.broker.wake import TASK
from maintd.execution.queues import Queue
from maintd.execution.reconcile import Reconciler
from maintd.execution.worker import Worker
from maintd.keyspace import redis_url_of
from maintd.ledger.tables import batches, campaigns, deliveries, misses, runs
from maintd.supervise.up import apply_files
from tests.sinks import SinkThread
from tests.wire.site import Site, until

#: What differs between any two ledgers: random, of the clock, or of the process.
_VARIES = {
    "uid",
    "recorder",
    "token",
    "counter",
    "owner",
    "recipient_key",
    "occurrence",
    "digest",
    "sending_since",
}


def contents(site: Site) -> dict[str, list[dict[str, Any]]]:
    """Everything in a ledger that does not vary by itself."""
    with site.runtime.ledger.read() as connection:
        return {
            table.name: [
                {
                    name: value
                    for name, value in row.items()
                    if name not in _VARIES and not name.endswith("_at")
                }
                for row in connection.execute(sa.select(table).order_by(*table.primary_key)).mappings()
            ]
            for table in (runs, misses, campaigns, batches, deliveries)
        }


def site_at(directory: Path, sink: SinkThread) -> Site:
    directory.mkdir()
    site = Site(directory, ledger_url=f"sqlite:///{directory / 'ledger.db'}", smtp_url=sink.url, people=120)
    apply_files(site.settings, clock=site.runtime.clock)
    return site


def run_eagerly(site: Site) -> None:
    app = make_app(site.settings, redis_url="redis://nowhere.example")
    app.conf.task_always_eager = True

    def wake(queues: Iterable[Queue]) -> None:
        for queue in sorted(queues):
            app.tasks[TASK].apply_async(args=[queue.value])

    worker = Worker(site.runtime, stopping=lambda: False)
    register(app, worker, wake)
    app.tasks["maintd.trigger"].apply_async(args=["night"])
    while queues := Reconciler(site.runtime).run_once().queues:
        wake(queues)
    worker.close()


def test_eager_tasks_and_a_real_worker_leave_equal_ledgers(tmp_path: Path) -> None:
    with SinkThread(None) as sink:
        eager, real = site_at(tmp_path / "eager", sink), site_at(tmp_path / "real", sink)
        run_eagerly(eager)
        with real.up():
            real.ended(api.trigger("night", settings=real.settings))

    assert contents(eager) == contents(real)
    assert len(contents(real)["deliveries"]) == 120
    for site in (eager, real):
        site.runtime.close()


def test_another_application_starts_a_job_with_a_celery_message(tmp_path: Path) -> None:
    with SinkThread(None) as sink:
        site = site_at(tmp_path / "site", sink)
        with site.up():
            app = make_app(site.settings, redis_url=redis_url_of(site.settings))
            app.send_task("maintd.trigger", args=["old-sessions"], queue="control")
            until(lambda: site.sessions_left() == 1, what="the clean-up")
            app.close()
    site.runtime.close()
