"""The tasks: one call inwards each."""

from __future__ import annotations

import logging

from celery import Celery

from maintd.broker.wake import TASK
from maintd.errors import MaintdError
from maintd.execution.queues import Queue
from maintd.execution.trigger import trigger
from maintd.execution.wake import Wake
from maintd.execution.worker import Worker

logger = logging.getLogger(__name__)


def register(app: Celery, worker: Worker, wake: Wake) -> None:
    """Gives the application its tasks, bound to one worker."""

    @app.task(name=TASK)
    def wake_up(queue: str) -> None:
        try:
            wake(worker.work(Queue(queue)))
        except MaintdError as error:
            # The work is in the ledger; the next wake-up takes it again.
            logger.warning("%s; it is tried again", error, extra={"queue": queue})

    @app.task(name="maintd.trigger")
    def start_job(job: str) -> None:
        run = trigger(job, worker.runtime)
        wake({Queue(run.queue)})
