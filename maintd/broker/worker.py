"""A worker process: Celery's solo pool, one process, no fork."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import warnings
from collections.abc import Collection

from celery import Celery, signals
from celery.exceptions import CPendingDeprecationWarning
from celery.platforms import SecurityWarning
from celery.worker import state

from maintd.broker.tasks import register
from maintd.errors import Unavailable
from maintd.execution.queues import MAIL_QUEUES, Queue
from maintd.execution.runtime import Runtime
from maintd.execution.wake import Wake
from maintd.execution.worker import Worker

logger = logging.getLogger(__name__)


def run_worker(app: Celery, *, runtime: Runtime, wake: Wake, queues: Collection[Queue]) -> None:
    """Works until it is told to stop: SIGTERM or SIGINT lets it end in order."""
    stopping = threading.Event()

    def stop(number: int, _frame: object) -> None:
        logger.info("%s: ending in order", signal.Signals(number).name)
        stopping.set()
        state.should_stop = os.EX_OK  # what Celery's own handler does, without its shouting

    def ready(**_: object) -> None:
        gc.freeze()  # what was imported stays: the collector need not walk through all of it again and again
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)

    signals.worker_ready.connect(ready, weak=False)
    # Somebody listens, so Celery leaves our logging as it is.
    signals.setup_logging.connect(_keep_logging, weak=False)
    # It warns root of pickle, which no message of ours can be.
    warnings.simplefilter("ignore", SecurityWarning)
    # It warns of its next version whenever Redis goes away.
    warnings.simplefilter("ignore", CPendingDeprecationWarning)
    worker = Worker(runtime, stopping=stopping.is_set, queues=queues)
    register(app, worker, wake)
    if MAIL_QUEUES & set(queues):
        try:
            worker.ready_to_mail()
        except Unavailable as error:
            logger.warning("%s; tried again with the first mail", error)
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
