"""Waking workers with Celery messages."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator

from celery import Celery
from kombu.exceptions import OperationalError

from maintd.broker.app import make_app
from maintd.config.settings import Settings
from maintd.errors import Unavailable
from maintd.execution.queues import Queue
from maintd.execution.wake import Wake
from maintd.keyspace import Keyspace, redis_url_of

logger = logging.getLogger(__name__)

TASK = "maintd.wake"


class CeleryWake:
    """Puts wake tokens into queues: never more than there are processes to take them.

    A token that cannot be sent is no error: the work is in the ledger and the reconciler wakes again.
    """

    def __init__(self, app: Celery, keyspace: Keyspace, settings: Settings) -> None:
        self._app = app
        self._keyspace = keyspace
        self._settings = settings

    def __call__(self, queues: Iterable[Queue]) -> None:
        for queue in sorted(queues):
            try:
                self._fill(queue)
            except (Unavailable, OperationalError) as error:
                logger.warning("no wake-up for queue %s: %s", queue, error)

    def _fill(self, queue: Queue) -> None:
        for _ in range(_slots(queue, self._settings) - self._keyspace.queue_length(queue)):
            self._app.send_task(TASK, args=[queue.value], queue=queue.value, retry=False)


def _slots(queue: Queue, settings: Settings) -> int:
    if queue is Queue.MAIL_URGENT:
        return 1
    return settings.mail_processes if queue is Queue.MAIL_BULK else settings.worker_processes


@contextlib.contextmanager
def open_wake(settings: Settings) -> Iterator[Wake]:
    """Wakes workers from a process that is none itself."""
    url = redis_url_of(settings)
    with contextlib.closing(Keyspace(url)) as keyspace, make_app(settings, redis_url=url) as app:
        yield CeleryWake(app, keyspace, settings)
