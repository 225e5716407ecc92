"""What a worker process does when it is woken: takes due work from the ledger until there is none."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Collection
from datetime import timedelta
from functools import partial

from maintd.clock import new_token
from maintd.config.settings import Settings
from maintd.errors import Unavailable
from maintd.execution import executor, mailings
from maintd.execution.patience import Patience
from maintd.execution.queues import MAIL_QUEUES, Queue, queues_with_mail
from maintd.execution.runtime import Runtime, limits_of
from maintd.keyspace import Keyspace, redis_url_of
from maintd.ledger import campaigns
from maintd.ledger.engine import identity
from maintd.ledger.timeline import LedgerHeld
from maintd.mail.recording.recorder import Recorder, this_boot, this_machine
from maintd.mail.recording.recover import Scene, recover_orphans
from maintd.mail.recording.volatile import refuse_volatile
from maintd.mail.sending.pump import Pump, PumpSettings
from maintd.smtp.leases import Cap
from maintd.smtp.pool import SessionPool
from maintd.smtp.relays import Relay, parse_relays
from maintd.smtp.route import Manner
from maintd.smtp.session import Timeouts

logger = logging.getLogger(__name__)

#: The most messages that a connection gets in one window; a slow relay gets fewer.
DEPTH = 100
#: How often a holder looks whether its campaign still sends: a pause bites within a second.
_LOOK = timedelta(milliseconds=500)
#: Long enough that taking turns costs nothing, short enough that a small campaign is not kept waiting.
_TURN = timedelta(seconds=2)


class Worker:
    """One process's capacity to work. Its event loop lives as long as the process."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        stopping: Callable[[], bool],
        queues: Collection[Queue] = frozenset(Queue),
    ) -> None:
        """Prepares the pump; no relay is contacted yet.

        Args:
            runtime: The surroundings.
            stopping: Whether an orderly stop was asked for.
            queues: What it is woken for. Woken for either queue of mail, it sends what belongs to any of them.

        Raises:
            Problems: The URL of a relay is not usable.
        """
        self.runtime = runtime
        self._stopping = stopping
        self._mail_queues = MAIL_QUEUES & set(queues)
        self._loop = asyncio.Runner()
        self._keyspace = _keyspace(runtime.settings)
        self._sessions = _sessions(runtime, self._keyspace, urgent=Queue.MAIL_URGENT in self._mail_queues)
        self._recorder: Recorder | None = None
        self._pump: Pump | None = None
        self._patience = Patience(runtime.clock)
        #: Why the ledger is held, as it was logged.
        self._held: str | None = None
        #: Why no mail goes out, as the ledger was told; "" until it was told anything.
        self._told: str | None = ""
        if self._mail_queues and (redirected := where_all_mail_goes(runtime.settings)):
            logger.warning("%s", redirected)

    def work(self, queue: Queue) -> set[Queue]:
        """Takes due work of a queue until there is none or the budget is spent.

        Returns:
            Queues that have new work.

        Raises:
            Unavailable: The ledger does not answer.
        """
        try:
            self.runtime.timeline.look()
            self._held = None
            return self._work(queue)
        except LedgerHeld as held:
            if held.reason != self._held:
                logger.warning("%s", held)
            self._held = held.reason
            self._stop_mailing()
            return set()

    def _work(self, queue: Queue) -> set[Queue]:
        clock, budget = self.runtime.clock, self.runtime.settings.wake_budget
        began_s = clock.monotonic_s()
        drained = executor.drain(queue, self.runtime, stopping=self._stopping, budget=budget)
        if queue not in MAIL_QUEUES:
            return drained.wakes
        return drained.wakes | self._mail(budget - timedelta(seconds=clock.monotonic_s() - began_s))

    def close(self) -> None:
        """Ends the event loop and the flight recorder."""
        self._loop.close()
        self._keyspace.close()
        self._stop_mailing()

    def _stop_mailing(self) -> None:
        """Gives up whatever it holds; what it knows and the ledger does not stays in the recording."""
        if self._recorder is not None:
            self._recorder.close()
        self._recorder = self._pump = None

    def _mail(self, budget: timedelta) -> set[Queue]:
        if self._patience.waits():
            return set()
        try:
            ready = self._pump_once(budget)
        except LedgerHeld:
            raise
        except Unavailable as error:
            self._patience.failed()
            self._tell(f"waits: {error}")
            return set()
        self._patience.worked()
        self._tell(None)
        return ready

    def _tell(self, why: str | None) -> None:
        """Says once why no mail goes out, in the log and with every campaign that waits for it."""
        if why == self._told:
            return
        self._told = why
        if why is not None:
            logger.warning("mail %s; it is tried again, at growing intervals of up to a minute", why)
        with contextlib.suppress(Unavailable), self.runtime.ledger.write() as connection:
            campaigns.tell_why_waiting(connection, why)

    def _pump_once(self, budget: timedelta) -> set[Queue]:
        runtime, pump = self.runtime, self.ready_to_mail()
        try:
            self._loop.run(
                pump.run(stopping=self._stopping, budget=budget, mail_flows=partial(self._tell, None))
            )
        finally:
            if self._recorder is not None:
                self._recorder.rest()
        steps = mailings.conclude(runtime.ledger, now=runtime.clock.now())
        with runtime.ledger.read() as connection:
            ready = queues_with_mail(connection, limits_of(runtime.settings), now=runtime.clock.now())
        return steps | (self._mail_queues & ready)

    def ready_to_mail(self) -> Pump:
        """This process's pump; before it begins, what the dead of this host left is taken over.

        Raises:
            LedgerHeld: Nothing may be mailed.
            Problems: The state directory is not fit for mail.
            Unavailable: The ledger does not answer, or the recorder cannot be written.
        """
        if self._pump is None:
            runtime = self.runtime
            check_state_dir(runtime.settings)
            runtime.timeline.look()
            scene = scene_of(runtime)
            doubtful = recover_orphans(runtime.ledger, scene=scene, now=runtime.clock.now())
            if doubtful:
                logger.warning("a sender of this host had died; %d messages are uncertain", doubtful)
            self._recorder = Recorder.create(
                scene.directory,
                uid=new_token(),
                boot_id=scene.boot_id,
                machine_id=scene.machine_id,
                clock=runtime.clock,
                keep=runtime.settings.recorder_keep,
            )
            self._pump = self._make_pump(self._recorder)
        return self._pump

    def _make_pump(self, recorder: Recorder) -> Pump:
        settings = self.runtime.settings
        return Pump(
            ledger=self.runtime.ledger,
            sessions=self._sessions,
            settings=PumpSettings(
                batch=settings.mail_batch,
                depth=DEPTH,
                lease=settings.lease,
                heartbeat=settings.heartbeat,
                look=_LOOK,
                turn=_TURN,
                urgent=Queue.MAIL_URGENT in self._mail_queues,
                bulk=Queue.MAIL_BULK in self._mail_queues,
                redirect=settings.mail_redirect,
                limits=limits_of(settings),
            ),
            clock=self.runtime.clock,
            owner=self.runtime.owner,
            recorder=recorder,
            timeline=self.runtime.timeline,
        )


def where_all_mail_goes(settings: Settings) -> str | None:
    """What everybody should know while all mail is redirected; None if none is."""
    if settings.mail_redirect is None:
        return None
    return f"all mail goes to {settings.mail_redirect} and none to its recipient: MAINTD_MAIL_REDIRECT"


def check_state_dir(settings: Settings) -> None:
    """Whether mail may rely on the state directory.

    Raises:
        Problems: It is in memory or shared with other machines, and that is not allowed.
    """
    if settings.state_dir_volatile == "refuse":
        refuse_volatile(settings.state_dir)


def scene_of(runtime: Runtime) -> Scene:
    """Where this host's flight recorders of this ledger are: another ledger's prove nothing here.

    Raises:
        Unavailable: The ledger does not answer.
    """
    with runtime.ledger.read() as connection:
        ledger_id = identity(connection).ledger_id
    directory = runtime.settings.state_dir / "recorders" / ledger_id
    return Scene(directory=directory, boot_id=this_boot(), machine_id=this_machine())


def _keyspace(settings: Settings) -> Keyspace:
    # It counts connections only: an answer that takes longer than this comes too late to renew a lease.
    return Keyspace(redis_url_of(settings), patience=settings.lease / 8)


def _sessions(runtime: Runtime, keyspace: Keyspace, *, urgent: bool) -> SessionPool:
    settings = runtime.settings
    # Of a relay with a cap one connection is left to what is urgent.
    cap = Cap(book=keyspace, ttl=settings.lease, new_token=new_token, left_to_others=0 if urgent else 1)
    return SessionPool(
        relays_of(settings),
        connections=settings.smtp_connections,
        manner=Manner(
            timeouts=timeouts_of(settings),
            hello=settings.smtp_hello,
            clock=runtime.clock,
            draw=random.SystemRandom().random,
            cap=cap,
        ),
    )


def relays_of(settings: Settings) -> list[Relay]:
    """The relays of these settings.

    Raises:
        Problems: The URL of one is not usable.
    """
    return parse_relays(settings.smtp_url.get_secret_value(), where="MAINTD_SMTP_URL")


def timeouts_of(settings: Settings) -> Timeouts:
    """The SMTP timeouts of these settings."""
    return Timeouts(
        connect_s=settings.smtp_connect_timeout.total_seconds(),
        command_s=settings.smtp_command_timeout.total_seconds(),
        dot_s=settings.smtp_dot_timeout.total_seconds(),
    )
