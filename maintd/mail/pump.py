"""The pump: takes batches of sending campaigns and puts them on the wire, one window after the other.

The order of steps is the guarantee. A window is *marked* in the ledger, in a commit, before any of its dots is
written; its outcomes ride in the commit that marks the next one. Whoever dies, everything unsettled below the mark is
doubtful and named, and everything above it was certainly not sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy.engine import Connection

from maintd.clock import Clock, new_token
from maintd.database import Database
from maintd.errors import ClaimLost, JobFailed
from maintd.ledger import batches, campaigns, deliveries
from maintd.ledger.batches import Batch, NotSending
from maintd.ledger.campaigns import Campaign
from maintd.ledger.deliveries import Delivery, Outcome
from maintd.ledger.states import CampaignState, DeliveryState
from maintd.mail.compose import Composer
from maintd.mail.message import UnsafeHeader
from maintd.mail.outcomes import UNSENT_TRIES, cut_off, outcome_of, refused_here
from maintd.mail.templates import Bundle, RenderFailed
from maintd.smtp.pool import SessionPool
from maintd.smtp.session import Outgoing, Result, Session, Verdict

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PumpSettings:
    """How a pump works.

    Attributes:
        batch: Deliveries in one claim.
        lease: Somebody whose counter stood still that long has lost its claim.
        heartbeat: How often a counter moves at least.
        redirect: The address that gets everything, for staging.
    """

    batch: int
    lease: timedelta
    heartbeat: timedelta
    redirect: str | None


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


class Pump:
    """Sends what the ledger says is to be sent."""

    def __init__(
        self,
        *,
        ledger: Database,
        sessions: SessionPool,
        settings: PumpSettings,
        clock: Clock,
        owner: str,
    ) -> None:
        self._ledger = ledger
        self._sessions = sessions
        self._settings = settings
        self._clock = clock
        self._owner = owner
        self._composers: dict[int, Composer] = {}

    async def run(self, *, stopping: Callable[[], bool]) -> Pumped:
        """Works until nothing is left to claim or it is told to stop; what was begun is always brought to its end.

        Campaigns take turns by the batch, so that none starves another.

        Raises:
            Unavailable: The relay or the ledger does not answer; what was claimed has been left for others.
        """
        pumped = Pumped()
        async with contextlib.aclosing(self._sessions):
            found = True
            while found and not stopping():
                found = False
                for campaign in await asyncio.to_thread(self._sending):
                    if stopping():
                        break
                    batch = await asyncio.to_thread(self._claim, campaign)
                    if batch is not None:
                        found = True
                        await self._send_batch(campaign, batch, pumped, stopping)
                    if await asyncio.to_thread(self._finish, campaign):
                        pumped.finished.append(campaign.id)
        return pumped

    def _sending(self) -> list[Campaign]:
        with self._ledger.read() as connection:
            sending = campaigns.sending(connection)
        self._composers = {c.id: self._composers[c.id] for c in sending if c.id in self._composers}
        return sending

    def _claim(self, campaign: Campaign) -> Batch | None:
        if not self._can_compose(campaign):
            return None
        with self._ledger.write() as connection:
            return batches.claim(
                connection,
                campaign.id,
                size=self._settings.batch,
                token=new_token(),
                owner=self._owner,
                now=self._clock.now(),
            )

    def _finish(self, campaign: Campaign) -> bool:
        with self._ledger.write() as connection:
            return campaigns.finish_if_done(connection, campaign.id, now=self._clock.now())

    def _can_compose(self, campaign: Campaign) -> bool:
        """Whether this campaign's messages can be made at all; pauses it otherwise, so that the others go on."""
        try:
            self._composer(campaign)
        except (JobFailed, RenderFailed, ValueError) as error:
            reason = f"its messages cannot be made: {error}"
            logger.error("campaign paused: %s", reason, extra={"campaign": campaign.name})
            with self._ledger.write() as connection:
                campaigns.move(
                    connection, campaign.id, to=CampaignState.PAUSED, now=self._clock.now(), reason=reason
                )
            return False
        return True

    def _composer(self, campaign: Campaign) -> Composer:
        if campaign.id not in self._composers:
            with self._ledger.read() as connection:
                name, files = campaigns.template_files(connection, campaign.template)
            self._composers[campaign.id] = Composer(
                campaign,
                Bundle(name=name, files=files),
                redirect=self._settings.redirect,
            )
        return self._composers[campaign.id]

    async def _send_batch(
        self, campaign: Campaign, batch: Batch, pumped: Pumped, stopping: Callable[[], bool]
    ) -> None:
        composer = self._composers[campaign.id]
        held = HeldBatch(
            campaign, batch, ledger=self._ledger, clock=self._clock, lease=self._settings.lease, pumped=pumped
        )
        try:
            async with held.beating(every=self._settings.heartbeat):
                await _Windows(held, composer, self._sessions, clock=self._clock).send_all(stopping)
        except NotSending:
            logger.info("campaign does not send any more", extra={"campaign": campaign.name})
            await asyncio.to_thread(held.leave)
        except ClaimLost as error:
            logger.warning("%s", error, extra={"campaign": campaign.name})
            await asyncio.to_thread(held.keep_facts)
        except JobFailed as error:
            # Nothing of this campaign can be made; the others must not wait behind it.
            await asyncio.to_thread(self._pause, campaign, str(error))
            await asyncio.to_thread(held.leave)
        except BaseException:
            await asyncio.to_thread(held.leave)
            raise

    def _pause(self, campaign: Campaign, reason: str) -> None:
        logger.error("campaign %s is paused: %s", campaign.name, reason)
        with self._ledger.write() as connection:
            campaigns.move(
                connection, campaign.id, to=CampaignState.PAUSED, now=self._clock.now(), reason=reason
            )


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
    ) -> None:
        self.campaign = campaign
        self.batch = batch
        self._ledger = ledger
        self._clock = clock
        self._lease_s = lease.total_seconds()
        self._pumped = pumped
        self._held_at_s = clock.monotonic_s()
        #: Outcomes that are known and not yet written: they ride in the next commit.
        self.known: list[Outcome] = []
        #: Recipients of the marked window whose outcome is not known yet.
        self._on_wire: set[bytes] = set()

    def load(self) -> list[Delivery]:
        """The deliveries still to be sent, in order; settles them all instead when the campaign has expired."""
        campaign, batch, now = self.campaign, self.batch, self._clock.now()
        if campaign.expires_at is not None and campaign.expires_at <= now:
            with self._ledger.write() as connection:
                batches.beat(connection, batch)
                deliveries.settle_range(
                    connection,
                    campaign.id,
                    lo=batch.lo,
                    hi=batch.hi,
                    to=DeliveryState.EXPIRED,
                    now=now,
                    detail=f"expired at {campaign.expires_at.isoformat()}",
                )
        with self._ledger.read() as connection:
            return deliveries.pending(connection, campaign.id, lo=batch.lo, hi=batch.hi)

    def mark(self, window: list[Delivery]) -> set[bytes]:
        """Commits that the dots of a window may be written, and what is known of the one before.

        Returns:
            The recipients of the window that are still to be mailed: not those suppressed meanwhile.

        Raises:
            ClaimLost: Nothing was marked.
        """
        started_s = self._clock.monotonic_s()
        lo, hi = window[0].ordinal, max(delivery.ordinal for delivery in window) + 1
        with self._ledger.write() as connection:
            batches.mark(connection, self.batch, wire_hi=hi)
            self._settle(connection)
            deliveries.suppress(connection, self.campaign.id, lo=lo, hi=hi, now=self._clock.now())
            to_send = deliveries.pending_keys(connection, self.campaign.id, lo=lo, hi=hi)
        self._written(started_s)
        self._on_wire = to_send & {delivery.recipient_key for delivery in window}
        return self._on_wire.copy()

    def learn(self, delivery: Delivery, outcome: Outcome | None) -> None:
        """Takes in what became of a delivery of the marked window; None: it was certainly not sent."""
        self._on_wire.discard(delivery.recipient_key)
        if outcome is not None:
            self.known.append(outcome)

    def finish(self) -> None:
        """Writes what is known and closes the batch."""
        with self._ledger.write() as connection:
            batches.done(connection, self.batch)
            self._settle(connection)
        self._written(self._clock.monotonic_s())

    def leave(self) -> None:
        """Writes what is known and leaves the rest to anybody: whatever is not settled then was not sent.

        What went onto the wire and was cut off from its answer is doubtful, and settled as such.
        """
        self.known.extend(cut_off(key) for key in self._on_wire)
        self._on_wire.clear()
        try:
            with self._ledger.write() as connection:
                batches.release(connection, self.batch, wire_hi=self.batch.lo)
                self._settle(connection)
            self._written(self._clock.monotonic_s())
        except ClaimLost:
            self.keep_facts()

    def keep_facts(self) -> None:
        """Writes the replies that were read, although the batch is somebody else's now: a fact stays a fact."""
        facts = [outcome for outcome in self.known if outcome.fact]
        with self._ledger.write() as connection:
            deliveries.settle(connection, self.campaign.id, facts, now=self._clock.now())
        self.known.clear()

    def may_send(self) -> bool:
        """Whether the claim certainly still holds: asked before every dot."""
        return self._clock.monotonic_s() - self._held_at_s < self._lease_s

    @contextlib.asynccontextmanager
    async def beating(self, *, every: timedelta) -> AsyncIterator[None]:
        """Moves the batch's counter while the block runs."""
        task = asyncio.create_task(self._beat(every.total_seconds()))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _beat(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                await asyncio.to_thread(self._move_counter)
            except ClaimLost:
                return  # the next mark finds the same, and may_send() has run out by itself
            except Exception as error:  # noqa: BLE001 - a heartbeat that fails is one that is missing, no more
                logger.warning("heartbeat failed: %s", error)

    def _move_counter(self) -> None:
        started_s = self._clock.monotonic_s()
        with self._ledger.write() as connection:
            batches.beat(connection, self.batch)
        self._held_at_s = max(self._held_at_s, started_s)

    def _settle(self, connection: Connection) -> None:
        now = self._clock.now()
        deliveries.settle(connection, self.campaign.id, self.known, now=now)
        doubts = any(outcome.state is DeliveryState.UNCERTAIN for outcome in self.known)
        if doubts and self.campaign.spec["uncertain"] == "never_lose":
            deliveries.resend_doubtful(
                connection,
                self.campaign.id,
                lo=self.batch.lo,
                hi=self.batch.hi,
                now=now,
                max_copies=self.campaign.spec["max_copies"],
            )

    def _written(self, started_s: float) -> None:
        self._held_at_s = max(self._held_at_s, started_s)
        self._pumped.count(self.known)
        self.known.clear()


class _Windows:
    """Sends a batch window by window: as many messages as there are connections, one open dot on each."""

    def __init__(self, held: HeldBatch, composer: Composer, sessions: SessionPool, *, clock: Clock) -> None:
        self._held = held
        self._clock = clock
        self._composer = composer
        self._sessions = sessions
        self._unsent: dict[bytes, int] = {}

    async def send_all(self, stopping: Callable[[], bool]) -> None:
        """Sends every delivery of the batch, or leaves it in order when asked to stop."""
        line = deque(await asyncio.to_thread(self._held.load))
        while line:
            if stopping():
                await asyncio.to_thread(self._held.leave)
                return
            await self._send_window(line)
        await asyncio.to_thread(self._held.finish)

    async def _send_window(self, line: deque[Delivery]) -> None:
        sessions = await self._sessions.ready(len(line))
        window = [line.popleft() for _ in sessions]
        messages = await asyncio.to_thread(self._compose, window)
        to_send = await asyncio.to_thread(self._held.mark, window)
        sent = [
            (delivery, message, session)
            for (delivery, message), session in zip(messages, sessions, strict=False)
            if delivery.recipient_key in to_send
        ]
        results = await asyncio.gather(*(self._send(session, message) for _, message, session in sent))
        for (delivery, _, _), result in zip(reversed(sent), reversed(results), strict=True):
            self._take(delivery, result, line)

    def _compose(self, window: list[Delivery]) -> list[tuple[Delivery, Outgoing]]:
        messages = []
        for delivery in window:
            try:
                messages.append((delivery, self._composer.message(delivery)))
            except (RenderFailed, UnsafeHeader) as error:
                self._held.known.append(refused_here(delivery, str(error)))
        return messages

    async def _send(self, session: Session, message: Outgoing) -> Result:
        return await session.send(message, may_send=self._held.may_send)

    def _take(self, delivery: Delivery, result: Result, line: deque[Delivery]) -> None:
        if result.verdict is Verdict.UNSENT and not self._too_often_unsent(delivery):
            self._held.learn(delivery, None)
            line.appendleft(delivery)
        else:
            self._held.learn(delivery, outcome_of(delivery, result, now=self._clock.now()))

    def _too_often_unsent(self, delivery: Delivery) -> bool:
        tries = self._unsent.get(delivery.recipient_key, 0) + 1
        self._unsent[delivery.recipient_key] = tries
        return tries >= UNSENT_TRIES
