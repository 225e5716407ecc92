"""A batch while a process holds it: its marks, its outcomes, its heartbeat."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import timedelta

from sqlalchemy.engine import Connection

from maintd.clock import Clock
from maintd.database import Database, first_line
from maintd.errors import ClaimLost, Unavailable
from maintd.ledger import batches, campaigns, deliveries
from maintd.ledger.batches import Batch
from maintd.ledger.campaigns import Campaign
from maintd.ledger.deliveries import Delivery, Outcome
from maintd.ledger.states import CampaignState, DeliveryState
from maintd.ledger.timeline import LedgerHeld, Timeline
from maintd.mail.recording.recorder import Recorder, RecorderFailed
from maintd.mail.recording.recover import resend_as_allowed
from maintd.mail.sending.allowance import Allowance
from maintd.mail.verdicts.outcomes import cut_off

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Pumped:
    """What one working of the pump did.

    Attributes:
        settled: Deliveries by the state they came to.
        finished: Campaigns of which nothing is left to send.
    """

    settled: dict[DeliveryState, int] = field(default_factory=dict)
    finished: list[int] = field(default_factory=list)

    def count(self, outcomes: Iterable[Outcome]) -> None:
        """Adds outcomes that were written."""
        for outcome in outcomes:
            self.settled[outcome.state] = self.settled.get(outcome.state, 0) + 1


@dataclass(frozen=True, kw_only=True)
class Marked:
    """What became of a window when it was marked.

    Attributes:
        going: Deliveries that are to be mailed now.
        waiting: Deliveries that no limit has room for now.
    """

    going: list[Delivery]
    waiting: list[Delivery]


class HeldBatch:
    """A claimed batch: the only place where its row and its deliveries are written."""

    def __init__(
        self,
        campaign: Campaign,
        batch: Batch,
        *,
        ledger: Database,
        clock: Clock,
        lease: timedelta,
        pumped: Pumped,
        recorder: Recorder | None = None,
        timeline: Timeline | None = None,
        allowance: Allowance | None = None,
    ) -> None:
        self.campaign = campaign
        self.batch = batch
        self._ledger = ledger
        self._timeline = timeline or Timeline(ledger)
        self._clock = clock
        self._lease_s = lease.total_seconds()
        self._pumped = pumped
        self._held_at_s = clock.monotonic_s()
        #: Outcomes that are known and not yet written: they ride in the next commit.
        self.known: list[Outcome] = []
        self._recorder = recorder
        self._allowance = allowance
        self._trouble: RecorderFailed | None = None
        #: No further dot is permitted.
        self.closing = False
        #: The ledger has all that is known of it, and it is no longer ours.
        self.settled = False
        #: Recipients whose dot was permitted and whose outcome is not known yet.
        self._permitted: set[bytes] = set()
        #: Recipients of the marked window whose outcome is not known yet, and their ordinals.
        self._on_wire: dict[bytes, int] = {}

    @property
    def window_s(self) -> float:
        """What a window should take at most, so that its tokens do not run out."""
        return self._allowance.window_s if self._allowance else math.inf

    @property
    def set_aside(self) -> bool:
        """Whether the lane is going to be, with what is known and not yet written."""
        return self._allowance is not None and self._allowance.is_throttled(self.known)

    def load(self) -> list[Delivery]:
        """The deliveries still to be sent, in order; settles them all instead when the campaign has expired."""
        campaign, batch, now = self.campaign, self.batch, self._clock.now()
        if campaign.expires_at is not None and campaign.expires_at <= now:
            with self._timeline.write() as connection:
                batches.beat(connection, batch)
                deliveries.settle_range(
                    connection,
                    batch.stretch,
                    to=DeliveryState.EXPIRED,
                    now=now,
                    detail=f"expired at {campaign.expires_at.isoformat()}",
                )
        with self._ledger.read() as connection:
            return deliveries.pending(connection, batch.stretch)

    def mark(self, window: list[Delivery]) -> Marked:
        """Commits that the dots of a window may be written, and what is known of the one before.

        Of the window goes what was not suppressed meanwhile, as far as the limits let it; the mark does not reach
        beyond that.

        Raises:
            ClaimLost: Nothing was marked.
            LedgerHeld: Nothing was marked, and nothing that is known may be written.
        """
        started_s = self._clock.monotonic_s()
        hi = max(delivery.ordinal for delivery in window) + 1
        stretch = replace(self.batch.stretch, lo=window[0].ordinal, hi=hi)
        with self._timeline.forward() as connection:
            batches.mark(connection, self.batch, wire_hi=hi)
            self._settle(connection)
            keys = deliveries.suppress(connection, stretch, now=self._clock.now())
            to_send = [delivery for delivery in window if delivery.recipient_key in keys]
            count = self._take(connection, wanted=len(to_send))
            if count < len(to_send):
                batches.mark(connection, self.batch, wire_hi=to_send[count].ordinal)
        self._written(started_s)
        going, waiting = to_send[:count], to_send[count:]
        self._on_wire = {delivery.recipient_key: delivery.ordinal for delivery in going}
        return Marked(going=going, waiting=waiting)

    def _take(self, connection: Connection, *, wanted: int) -> int:
        return self._allowance.take(connection, wanted=wanted) if self._allowance else wanted

    def permit(self, delivery: Delivery) -> bool:
        """Whether the dot of a delivery may be written: claim and token still hold, and the recorder has the intent."""
        if self.closing or not self.may_send() or not (self._allowance is None or self._allowance.lasts()):
            return False
        if self._recorder is not None:
            try:
                self._recorder.intend(self.batch.id, delivery.recipient_key)
            except RecorderFailed as error:
                self._trouble = error
                return False
        self._permitted.add(delivery.recipient_key)
        return True

    def check(self) -> None:
        """Whether the recorder still takes entries.

        Raises:
            RecorderFailed: It does not: no further dot may be written.
        """
        if self._trouble is not None:
            raise self._trouble

    def learn(self, delivery: Delivery, outcome: Outcome | None) -> None:
        """Takes in what became of a delivery of the marked window; None: it was certainly not sent."""
        self._on_wire.pop(delivery.recipient_key, None)
        self._permitted.discard(delivery.recipient_key)
        if outcome is None:
            return
        self.known.append(outcome)
        if self._recorder is not None and outcome.fact:
            try:
                self._recorder.read(self.batch.id, outcome)
            except RecorderFailed as error:
                logger.warning("%s; what was read goes into the ledger all the same", error)

    def finish(self) -> None:
        """Writes what is known and closes the batch."""
        with self._timeline.write() as connection:
            batches.done(connection, self.batch)
            self._settle(connection)
        self._written(self._clock.monotonic_s())
        self.settled = True

    def leave(self) -> None:
        """Writes what is known and leaves the rest to anybody: whatever is not settled then was not sent.

        What went onto the wire and was cut off from its answer is doubtful, and settled as such.
        """
        self.closing = True
        doubts = {key: ordinal for key, ordinal in self._on_wire.items() if key in self._permitted}
        self.known.extend(cut_off(key, ordinal=ordinal) for key, ordinal in doubts.items())
        self._on_wire.clear()
        try:
            with self._timeline.write() as connection:
                batches.release(connection, self.batch, wire_hi=self.batch.lo)
                self._settle(connection)
            self._written(self._clock.monotonic_s())
            self.settled = True
        except ClaimLost:
            self.keep_facts()

    def keep_facts(self) -> None:
        """Writes the replies that were read, although the batch is somebody else's now: a fact stays a fact.

        A campaign that has finished meanwhile sends again, if one of them says "later". One that the ledger has
        forgotten gets nothing: its number may be another's now.
        """
        facts = [outcome for outcome in self.known if outcome.fact]
        now, again = self._clock.now(), False
        with self._timeline.write() as connection:
            if (known := campaigns.of_uid(connection, self.campaign.uid)) is not None:
                campaign = campaigns.lock(connection, known.id)
                deliveries.settle(connection, campaign.id, facts, now=now)
                later = any(fact.state is DeliveryState.DEFERRED for fact in facts)
                if later and campaign.state is CampaignState.FINISHED:
                    again = campaigns.move(connection, campaign.id, to=CampaignState.SENDING, now=now)
        if again:
            name = self.campaign.name
            logger.info(
                "campaign %s sends again: a late answer puts a message off", name, extra={"campaign": name}
            )
        self.known.clear()
        self.settled = True

    def may_send(self) -> bool:
        """Whether the claim certainly still holds: asked before every dot."""
        return self._clock.monotonic_s() - self._held_at_s < self._lease_s

    @contextlib.asynccontextmanager
    async def kept(self, *, heartbeat: timedelta, look: timedelta) -> AsyncIterator[None]:
        """Moves the batch's counter, and looks whether its campaign still sends, while the block runs."""
        tasks = [
            asyncio.create_task(self._regularly(self._move_counter, every=heartbeat)),
            asyncio.create_task(self._regularly(self._look, every=look)),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _regularly(self, act: Callable[[], None], *, every: timedelta) -> None:
        while True:
            await asyncio.sleep(every.total_seconds())
            try:
                await asyncio.to_thread(act)
            except (ClaimLost, LedgerHeld):
                self.closing = True
                return
            except Exception as error:  # noqa: BLE001 - a heartbeat that fails is one that is missing, no more
                logger.warning("heartbeat failed: %s", first_line(error))

    def _move_counter(self) -> None:
        started_s = self._clock.monotonic_s()
        with self._timeline.write() as connection:
            batches.beat(connection, self.batch)
        self._held_at_s = max(self._held_at_s, started_s)

    def _look(self) -> None:
        # The next mark finds the same, but on a slow relay it may be minutes away.
        try:
            self._timeline.look()
            with self._ledger.read() as connection:
                self.closing |= not campaigns.is_sending(connection, self.campaign.id)
        except LedgerHeld:
            raise
        except Unavailable:
            return

    def _settle(self, connection: Connection) -> None:
        now = self._clock.now()
        deliveries.settle(connection, self.campaign.id, self.known, now=now)
        if any(outcome.state is DeliveryState.UNCERTAIN for outcome in self.known):
            resend_as_allowed(connection, self.campaign, self.batch.stretch, now=now)
        if self._allowance is not None:
            self._allowance.heed(connection, self.known)

    def _written(self, started_s: float) -> None:
        self._held_at_s = max(self._held_at_s, started_s)
        self._pumped.count(self.known)
        self.known.clear()
