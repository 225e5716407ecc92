"""What a worker process does when it is woken: takes due work from the ledger until there is none."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from maintd.config.settings import Settings
from maintd.errors import Unavailable
from maintd.execution import executor, mailings
from maintd.execution.patience import Patience
from maintd.execution.queues import MAIL_QUEUES, Queue
from maintd.execution.runtime import Runtime
from maintd.ledger import batches
from maintd.mail.pump import Pump, PumpSettings
from maintd.smtp.pool import SessionPool
from maintd.smtp.relays import parse_relay_url
from maintd.smtp.session import Timeouts

logger = logging.getLogger(__name__)


class Worker:
    """One process's capacity to work. Its event loop lives as long as the process."""

    def __init__(self, runtime: Runtime, *, stopping: Callable[[], bool]) -> None:
        """Prepares the pump; the relay is not contacted yet.

        Args:
            runtime: The surroundings.
            stopping: Whether an orderly stop was asked for.

        Raises:
            Problems: The relay's URL is not usable.
        """
        self.runtime = runtime
        self._stopping = stopping
        self._loop = asyncio.Runner()
        self._pump = _pump(runtime)
        self._patience = Patience(runtime.clock)

    def work(self, queue: Queue) -> set[Queue]:
        """Takes due work of a queue until there is none or the budget is spent.

        Returns:
            Queues that have new work.

        Raises:
            Unavailable: The ledger does not answer.
        """
        if queue in MAIL_QUEUES:
            return self._mail(queue)
        return executor.drain(
            queue, self.runtime, stopping=self._stopping, budget=self.runtime.settings.wake_budget
        ).wakes

    def close(self) -> None:
        """Ends the event loop."""
        self._loop.close()

    def _mail(self, queue: Queue) -> set[Queue]:
        if self._patience.waits():
            return set()
        try:
            ready = self._pump_once(queue)
        except Unavailable as error:
            wait = self._patience.failed()
            logger.warning("%s; tried again in %g s or later", error, wait.total_seconds())
            return set()
        self._patience.worked()
        return ready

    def _pump_once(self, queue: Queue) -> set[Queue]:
        clock = self.runtime.clock
        until_s = clock.monotonic_s() + self.runtime.settings.wake_budget.total_seconds()
        self._loop.run(self._pump.run(stopping=lambda: self._stopping() or clock.monotonic_s() > until_s))
        ready = mailings.conclude(self.runtime.ledger, now=clock.now())
        with self.runtime.ledger.read() as connection:
            return ready | ({queue} if batches.has_work(connection) else set())


def _pump(runtime: Runtime) -> Pump:
    settings = runtime.settings
    sessions = SessionPool(
        parse_relay_url(settings.smtp_url.get_secret_value(), where="MAINTD_SMTP_URL"),
        connections=settings.smtp_connections,
        timeouts=timeouts_of(settings),
        hello=settings.smtp_hello,
    )
    return Pump(
        ledger=runtime.ledger,
        sessions=sessions,
        settings=PumpSettings(
            batch=settings.mail_batch,
            lease=settings.lease,
            heartbeat=settings.heartbeat,
            redirect=settings.mail_redirect,
        ),
        clock=runtime.clock,
        owner=runtime.owner,
    )


def timeouts_of(settings: Settings) -> Timeouts:
    """The SMTP timeouts of these settings."""
    return Timeouts(
        connect_s=settings.smtp_connect_timeout.total_seconds(),
        command_s=settings.smtp_command_timeout.total_seconds(),
        dot_s=settings.smtp_dot_timeout.total_seconds(),
    )
