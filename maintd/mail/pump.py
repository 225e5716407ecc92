"""The pump: takes batches of sending campaigns and puts them on the wire, one window after the other.

The order of steps is the guarantee. A window is *marked* in the ledger, in a commit, before any of its dots is
written; its outcomes ride in the commit that marks the next one. Whoever dies, everything unsettled below the mark is
doubtful and named, and everything above it was certainly not sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from maintd.clock import Clock, new_token
from maintd.database import Database
from maintd.errors import ClaimLost, JobFailed
from maintd.ledger import batches, campaigns
from maintd.ledger.batches import Batch, NotSending
from maintd.ledger.campaigns import Campaign
from maintd.ledger.states import CampaignState
from maintd.mail.compose import Composer
from maintd.mail.held import HeldBatch, Pumped
from maintd.mail.outcomes import Streak
from maintd.mail.recorder import Recorder
from maintd.mail.templates import Bundle, RenderFailed
from maintd.mail.windows import Windows
from maintd.smtp.pool import SessionPool

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PumpSettings:
    """How a pump works.

    Attributes:
        batch: Deliveries in one claim.
        depth: The most messages that a connection gets in one window.
        lease: Somebody whose counter stood still that long has lost its claim.
        heartbeat: How often a counter moves at least.
        redirect: The address that gets everything, for staging.
    """

    batch: int
    depth: int
    lease: timedelta
    heartbeat: timedelta
    redirect: str | None


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
        recorder: Recorder | None = None,
    ) -> None:
        self._ledger = ledger
        self._sessions = sessions
        self._settings = settings
        self._clock = clock
        self._owner = owner
        self._recorder = recorder
        self._composers: dict[int, Composer] = {}
        self._streaks: dict[int, Streak] = {}
        #: Batches of which the ledger, away at that moment, has not got all that is known.
        self._unwritten: list[HeldBatch] = []

    async def run(self, *, stopping: Callable[[], bool]) -> Pumped:
        """Works until nothing is left to claim or it is told to stop; what was begun is always brought to its end.

        Campaigns take turns by the batch, so that none starves another.

        Raises:
            Unavailable: The relay or the ledger does not answer; what was claimed has been left for others.
        """
        pumped = Pumped()
        await self._write_what_is_known()
        async with contextlib.aclosing(self._sessions):
            found = True
            while found and not stopping():
                found = False
                for campaign in await asyncio.to_thread(self._sending):
                    if stopping():
                        break
                    if self._recorder is not None:
                        self._recorder.roll(uid=new_token())
                    batch = await asyncio.to_thread(self._claim, campaign)
                    if batch is not None:
                        found = True
                        await self._send_batch(campaign, batch, pumped, stopping)
                    if await asyncio.to_thread(self._finish, campaign):
                        pumped.finished.append(campaign.id)
        return pumped

    async def _write_what_is_known(self) -> None:
        """Before anything is claimed: replies that were read are facts, however long the ledger was away."""
        while self._unwritten:
            held = self._unwritten[0]
            await asyncio.to_thread(held.leave)
            self._let_go(self._unwritten.pop(0))

    def _let_go(self, held: HeldBatch) -> None:
        if not held.settled:
            self._unwritten.append(held)
        elif self._recorder is not None:
            self._recorder.settled(held.batch.id)

    def _sending(self) -> list[Campaign]:
        with self._ledger.read() as connection:
            sending = campaigns.sending(connection)
        self._composers = {c.id: self._composers[c.id] for c in sending if c.id in self._composers}
        self._streaks = {c.id: self._streaks[c.id] for c in sending if c.id in self._streaks}
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
                recorder=self._recorder.name if self._recorder else None,
            )

    def _finish(self, campaign: Campaign) -> bool:
        with self._ledger.write() as connection:
            return campaigns.finish_if_done(connection, campaign.id, now=self._clock.now())

    def _can_compose(self, campaign: Campaign) -> bool:
        """Whether this campaign's messages can be made at all; pauses it otherwise, so that the others go on."""
        try:
            self._composer(campaign)
        except (JobFailed, RenderFailed, ValueError) as error:
            self._pause(campaign, f"its messages cannot be made: {error}")
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
            campaign,
            batch,
            ledger=self._ledger,
            clock=self._clock,
            lease=self._settings.lease,
            pumped=pumped,
            recorder=self._recorder,
        )
        windows = Windows(
            held,
            composer,
            self._sessions,
            clock=self._clock,
            depth=self._settings.depth,
            streak=self._streaks.setdefault(campaign.id, Streak()),
        )
        if self._recorder is not None:
            self._recorder.begin(batch.id)
        try:
            async with held.beating(every=self._settings.heartbeat):
                await windows.send_all(stopping)
        except NotSending:
            logger.info("campaign does not send any more", extra={"campaign": campaign.name})
            await asyncio.to_thread(held.leave)
        except ClaimLost as error:
            logger.warning("%s", error, extra={"campaign": campaign.name})
            await asyncio.to_thread(held.keep_facts)
        except JobFailed as error:
            await asyncio.to_thread(held.leave)
            await asyncio.to_thread(self._pause, campaign, str(error))
        except BaseException:
            await asyncio.to_thread(held.leave)
            raise
        finally:
            self._let_go(held)

    def _pause(self, campaign: Campaign, reason: str) -> None:
        """Stops a campaign that cannot go on by itself, so that the others need not wait behind it."""
        logger.error("campaign %s is paused: %s", campaign.name, reason)
        with self._ledger.write() as connection:
            campaigns.move(
                connection, campaign.id, to=CampaignState.PAUSED, now=self._clock.now(), reason=reason
            )
