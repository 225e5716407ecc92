"""The tasks: one call inwards each."""

from __future__ import annotations

import logging

from celery import Celery, Task

from maintd.broker.wake import TASK
from maintd.errors import MaintdError, Unavailable
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

    @app.task(
        name="maintd.trigger",
        bind=True,
        autoretry_for=(Unavailable,),
        max_retries=None,
        retry_backoff=5,
        retry_backoff_max=300,
    )
    def start_job(self: Task, job: str) -> None:
        # The message may come twice; its id makes it one run all the same.
        run = trigger(job, worker.runtime, key=self.request.id)
        wake({Queue(run.queue)})
