"""A worker process: Celery's solo pool, one process, no fork."""

from __future__ import annotations

import threading
from collections.abc import Collection

from celery import Celery, signals

from maintd.broker.tasks import register
from maintd.execution.queues import Queue
from maintd.execution.runtime import Runtime
from maintd.execution.wake import Wake
from maintd.execution.worker import Worker


def run_worker(app: Celery, *, runtime: Runtime, wake: Wake, queues: Collection[Queue]) -> None:
    """Works until it is told to stop; a first SIGTERM or SIGINT lets it end in order."""
    stopping = threading.Event()

    def stop(**_: object) -> None:
        stopping.set()

    signals.worker_shutting_down.connect(stop, weak=False)
    # Somebody listens, so Celery leaves our logging as it is.
    signals.setup_logging.connect(_keep_logging, weak=False)
    worker = Worker(runtime, stopping=stopping.is_set)
    register(app, worker, wake)
    try:
        app.Worker(
            pool="solo",
            queues=[queue.value for queue in queues],
            hostname=f"maintd@{runtime.owner}",
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            quiet=True,
            loglevel=runtime.settings.log_level.upper(),
        ).start()
    finally:
        worker.close()


def _keep_logging(**_: object) -> None:
    """Logging is set up already."""
