"""The beat: RedBeat is its alarm clock, the ledger its diary."""

from __future__ import annotations

import functools
import json
import logging
import signal
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from celery import Celery
from celery.beat import Service
from celery.schedules import BaseSchedule, schedstate
from redbeat.decoder import RedBeatJSONEncoder
from redbeat.schedulers import RedBeatScheduler, RedBeatSchedulerEntry

from maintd.clock import new_token
from maintd.errors import ClaimLost, Unavailable
from maintd.execution.kinds import queue_of
from maintd.execution.queues import MAIL_QUEUES, Queue
from maintd.execution.reconcile import Reconciler
from maintd.execution.runtime import Runtime
from maintd.execution.wake import Wake
from maintd.keyspace import Keyspace
from maintd.ledger import jobs
from maintd.ledger.engine import identity
from maintd.ledger.jobs import ListedJob
from maintd.ledger.timeline import LedgerHeld
from maintd.scheduling.occurrences import fire, is_scheduled

logger = logging.getLogger(__name__)

#: Jobs taken in one tick; the rest come with the next, at once.
_MOST_DUE = 2000


class LedgerSchedule(BaseSchedule):
    """The next instant of a job, as the ledger has it. Nothing is computed here: no zone, no rule, no drift."""

    def __init__(
        self, *, when: dict[str, Any] | None, next_at: datetime | None, app: Celery | None = None
    ) -> None:
        super().__init__(app=app)
        self.when = when
        self.next_at = next_at

    def remaining_estimate(self, last_run_at: datetime) -> timedelta | None:
        return None if self.next_at is None else self.next_at - last_run_at

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Never: only the ledger says that something is due."""
        return schedstate(is_due=False, next=60.0)


class _Encoder(RedBeatJSONEncoder):
    def default(self, obj: Any) -> Any:
        if isinstance(obj, LedgerSchedule):
            next_at = obj.next_at.isoformat() if obj.next_at else None
            return {"__type__": "maintd", "when": obj.when, "next_at": next_at}
        return super().default(obj)


class LedgerEntry(RedBeatSchedulerEntry):
    """A job as RedBeat's own tools show it."""

    @classmethod
    def of(cls, job: ListedJob, *, app: Celery) -> LedgerEntry:
        """The entry of a job."""
        schedule = LedgerSchedule(when=job.spec.get("when"), next_at=job.next_at, app=app)
        return cls(
            name=job.name,
            task="maintd.trigger",
            args=[job.name],
            kwargs={},
            options={},
            schedule=schedule,
            enabled=is_scheduled(job),
            app=app,
        )

    def definition(self) -> str:
        """Its JSON, in RedBeat's form, with a schedule of our own type."""
        names = ("name", "task", "args", "kwargs", "options", "schedule", "enabled")
        return json.dumps({name: getattr(self, name) for name in names}, cls=_Encoder)


class LedgerScheduler(RedBeatScheduler):
    """One beat: leads or stands by; never exits because another one leads."""

    Entry = LedgerEntry

    def __init__(
        self, app: Celery, *, runtime: Runtime, keyspace: Keyspace, wake: Wake, **options: Any
    ) -> None:
        self._runtime = runtime
        self._keyspace = keyspace
        self._wake = wake
        self._leadership = Leadership(keyspace, runtime)
        self._reconciler = Reconciler(runtime)
        self._reconciled_s: float | None = None
        self._troubles = _Troubles()
        super().__init__(app, **options)
        # RedBeat's own lock is acquired once, at start, and losing it is fatal there: ours is not.
        self.lock_key = None

    def setup_schedule(self) -> None:
        """Writes nothing: a standby must not touch what the leader works with."""

    def tick(self, **_: Any) -> float:
        """One look at what is due; how many seconds to sleep until the next."""
        try:
            sleep_s = self._tick()
        except ClaimLost as error:
            logger.warning("%s; it stands by", error)
            self._leadership.lost()
            return float(self.max_interval)
        except LedgerHeld as error:
            self._leadership.progressed()  # whoever leads goes on leading: another one could do no more
            self._troubles.met(
                error, over="the ledger is not held any more: runs begin and mail goes out again"
            )
            # A sender that sleeps with a batch in its hands finds out only when it is woken.
            if self._leadership.leads and self._is_time():
                self._wake(MAIL_QUEUES)
            return float(self.max_interval)
        except Unavailable as error:
            self._troubles.met(error, over=f"it is over: {error}")
            return float(self.max_interval)
        self._troubles.are_over()
        return sleep_s

    def close(self) -> None:
        self._leadership.resign()
        super().close()

    def _tick(self) -> float:
        leads = self._leadership.held()
        self._runtime.timeline.look()
        if not leads:
            self._reconciled_s = None
            return float(self.max_interval)
        self._mirror()
        now = self._runtime.clock.now()
        self._fire(self._keyspace.due_jobs(now=now, limit=_MOST_DUE), now=now)
        self._reconcile_in_turn(now=now)
        self._leadership.progressed()
        return self._until_next(now=now)

    def _mirror(self) -> None:
        """Builds the mirror anew when it is out of date: a job was applied, or Redis came back empty."""
        with self._runtime.ledger.read() as connection:
            built_from = f"{identity(connection).ledger_id}:{jobs.stamp(connection)}"
            if self._keyspace.mirrored() == built_from:
                return
            every = jobs.every(connection)
        self._keyspace.rebuild_mirror(
            self._leadership.token,
            definitions={job.name: LedgerEntry.of(job, app=self.app).definition() for job in every},
            next_at={job.name: job.next_at if is_scheduled(job) else None for job in every},
            built_from=built_from,
        )
        logger.info("mirrored %d jobs into Redis", len(every))

    def _fire(self, names: list[str], *, now: datetime) -> None:
        if not names:
            return
        fired = fire(self._runtime.timeline, names, now=now, queue_of=queue_of)
        self._keyspace.reschedule(self._leadership.token, fired.next_at)
        if fired.created:
            logger.info("%d runs are due", fired.created)
        self._wake(Queue(name) for name in fired.queues)

    def _reconcile_in_turn(self, *, now: datetime) -> None:
        if not self._is_time():
            return
        with self._runtime.ledger.read() as connection:
            due = jobs.due(connection, now=now, limit=_MOST_DUE)
        self._fire(due, now=now)
        self._wake(self._reconciler.run_once().queues)

    def _is_time(self) -> bool:
        every_s = self._runtime.settings.reconcile.total_seconds()
        now_s = self._runtime.clock.monotonic_s()
        if self._reconciled_s is not None and now_s - self._reconciled_s < every_s:
            return False
        self._reconciled_s = now_s
        return True

    def _until_next(self, *, now: datetime) -> float:
        next_s = self._keyspace.next_due()
        if next_s is None:
            return float(self.max_interval)
        return min(max(next_s - now.timestamp(), 0.0), float(self.max_interval))


class _Troubles:
    """What keeps a beat from its work: one line when it is met, and one when it is over."""

    def __init__(self) -> None:
        self._last = ""
        self._overs: dict[str, None] = {}

    def met(self, trouble: Unavailable, *, over: str) -> None:
        """A tick failed of it. Whether what was met before is over, a tick that fails does not tell."""
        if str(trouble) != self._last:
            logger.warning("%s; nothing is lost, it goes on when that is over", trouble)
        self._last = str(trouble)
        self._overs[over] = None

    def are_over(self) -> None:
        """A tick came through, so nothing is left of any of them."""
        for over in self._overs:
            logger.info(over)
        self._last = ""
        self._overs.clear()


class Leadership:
    """The leader's lock: renewed from a thread of its own, but only while the ticks come through."""

    def __init__(self, keyspace: Keyspace, runtime: Runtime) -> None:
        self._keyspace = keyspace
        self._clock = runtime.clock
        self._ttl = runtime.settings.beat_lock
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._held_until_s = 0.0
        self._progress_s = 0.0
        self._standing_by = False
        self.token = new_token()

    @property
    def leads(self) -> bool:
        """Whether this process leads as far as it knows; Redis is not asked."""
        return self._clock.monotonic_s() < self._held_until_s

    def held(self) -> bool:
        """Whether this process leads; if nobody does, it tries to.

        Raises:
            Unavailable: Redis does not answer.
        """
        if self.leads:
            return True
        now_s = self._clock.monotonic_s()
        self.token = new_token()
        if not self._keyspace.acquire_lock(self.token, ttl=self._ttl):
            self._stand_by()
            return False
        logger.info("this beat leads")
        self._standing_by = False
        self._progress_s = now_s
        self._held_until_s = now_s + self._ttl.total_seconds()
        if self._thread is None:
            self._thread = threading.Thread(target=self._renew, name="leadership", daemon=True)
            self._thread.start()
        return True

    def _stand_by(self) -> None:
        if not self._standing_by:
            logger.info("another beat leads; this one stands by")
        self._standing_by = True

    def progressed(self) -> None:
        """A tick came through to its end, the ledger included."""
        self._progress_s = self._clock.monotonic_s()

    def lost(self) -> None:
        """Somebody else leads, or the lock itself is gone: the next tick asks for it anew."""
        self._held_until_s = 0.0

    def resign(self) -> None:
        """Steps down at once, so that a standby need not wait."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self._keyspace.release_lock(self.token)
        except Unavailable as error:
            logger.warning("the lock runs out by itself: %s", error)

    def _renew(self) -> None:
        ttl_s = self._ttl.total_seconds()
        while not self._ended.wait(ttl_s / 3):
            now_s = self._clock.monotonic_s()
            if now_s >= self._held_until_s or now_s - self._progress_s > ttl_s:
                continue
            try:
                renewed = self._keyspace.renew_lock(self.token, ttl=self._ttl)
            except Exception as error:  # noqa: BLE001 - whatever it is, without this thread nobody renews any more
                logger.warning("cannot renew the leader's lock: %s", error)
                continue
            self._held_until_s = now_s + ttl_s if renewed else 0.0
            if not renewed:
                logger.warning("the leader's lock is gone or another's; this beat asks for it anew")


def run_beat(app: Celery, *, runtime: Runtime, keyspace: Keyspace, wake: Wake) -> None:
    """Runs a beat until it is told to stop."""
    scheduler: Callable[..., LedgerScheduler] = functools.partial(
        LedgerScheduler, runtime=runtime, keyspace=keyspace, wake=wake
    )
    service = Service(app, max_interval=runtime.settings.tick.total_seconds(), scheduler_cls=scheduler)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.stop())
    service.start()
