"""The pump: takes batches of sending campaigns and puts them on the wire, one window after the other.

The order of steps is the guarantee. A window is *marked* in the ledger, in a commit, before any of its dots is
written; its outcomes ride in the commit that marks the next one. Whoever dies, everything unsettled below the mark is
doubtful and named, and everything above it was certainly not sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from maintd.clock import Clock, new_token
from maintd.database import Database
from maintd.errors import ClaimLost, JobFailed
from maintd.ledger import batches, campaigns
from maintd.ledger.batches import Batch, NotSending, Ready
from maintd.ledger.campaigns import Campaign
from maintd.ledger.states import CampaignState
from maintd.ledger.timeline import Timeline
from maintd.mail.campaign import CampaignSpec
from maintd.mail.compose import Composer
from maintd.mail.content.templates import Bundle, RenderFailed
from maintd.mail.recording.entries import Binding
from maintd.mail.recording.recorder import Recorder
from maintd.mail.sending.allowance import SOON, Allowance, Limits, Outlook, Validity, look
from maintd.mail.sending.finish import finish_if_done
from maintd.mail.sending.held import HeldBatch, Pumped
from maintd.mail.sending.pace import Pace
from maintd.mail.sending.turn import Turn
from maintd.mail.sending.windows import Windows
from maintd.mail.verdicts.breaker import Breaker
from maintd.smtp.pool import SessionPool

logger = logging.getLogger(__name__)

#: While everything waits for a limit: how often to see whether there is something else, or a stop.
_LOOK_AGAIN = timedelta(milliseconds=250)


@dataclass(frozen=True, kw_only=True)
class PumpSettings:
    """How a pump works.

    Attributes:
        batch: Deliveries in one claim.
        depth: The most messages that a connection gets in one window.
        lease: Somebody whose counter stood still that long has lost its claim.
        heartbeat: How often a counter moves at least.
        look: How often a holder looks whether its campaign still sends.
        turn: How long a campaign goes on while others wait.
        urgent: Whether urgent campaigns are sent here; they come first.
        bulk: Whether all others are.
        redirect: The address that gets everything, for staging.
        limits: Those that are set.
    """

    batch: int
    depth: int
    lease: timedelta
    heartbeat: timedelta
    look: timedelta
    turn: timedelta
    urgent: bool
    bulk: bool
    redirect: str | None
    limits: Limits = field(default_factory=Limits)


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
        timeline: Timeline | None = None,
    ) -> None:
        self._ledger = ledger
        self._timeline = timeline or Timeline(ledger)
        self._sessions = sessions
        self._settings = settings
        self._clock = clock
        self._owner = owner
        self._recorder = recorder
        self._pace = Pace(most=settings.depth)
        self._validity = Validity()
        # By the uid of the campaign: a ledger that went back gives its number again.
        self._composers: dict[str, Composer] = {}
        #: Each from when its campaign last began to send.
        self._breakers: dict[tuple[str, datetime | None], Breaker] = {}
        #: See `Windows`.
        self._losses: dict[str, Counter[bytes]] = {}
        #: By urgency, the line whose turn was the last.
        self._last: dict[bool, tuple[int, int]] = {}
        #: Batches of which the ledger, away at that moment, has not got all that is known.
        self._unwritten: list[HeldBatch] = []
        #: To be told when a relay takes something; None once that was done.
        self._mail_flows: Callable[[], None] | None = None

    async def run(
        self,
        *,
        stopping: Callable[[], bool],
        budget: timedelta,
        mail_flows: Callable[[], None] | None = None,
    ) -> Pumped:
        """Works until nothing is left that may go out soon, the budget is spent or it is told to stop.

        The lines of all campaigns take turns, so that none starves another, and go on with them in the next working. A
        message that is on the wire is always brought to its end.

        Args:
            stopping: Whether an orderly stop was asked for; then no further message is sent.
            budget: How long windows may be begun.
            mail_flows: Told in a thread of its own, once, after the first window of which a relay took something.

        Raises:
            LedgerHeld: Nothing may be mailed; this pump and its recorder are to be given up as they are.
            Unavailable: The relay or the ledger does not answer; what was claimed has been left for others.
        """
        pumped = Pumped()
        self._mail_flows = mail_flows
        until_s = self._clock.monotonic_s() + budget.total_seconds()
        await self._write_what_is_known()
        await asyncio.to_thread(self._forget_what_is_over)
        passed: set[tuple[int, int]] = set()
        turn = self._settings.turn
        async with contextlib.aclosing(self._sessions):
            while not stopping() and self._clock.monotonic_s() < until_s:
                line, others_in = await asyncio.to_thread(self._next, passed)
                if line is None:
                    if others_in is None or others_in > SOON:
                        break
                    await asyncio.sleep(min(others_in, _LOOK_AGAIN).total_seconds())
                elif await self._take_turn(line, min(others_in or turn, turn), until_s, pumped, stopping):
                    passed.clear()
                else:
                    passed.add(line.place)
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

    def _forget_what_is_over(self) -> None:
        with self._ledger.read() as connection:
            sending = {campaign.uid: campaign.sending_since for campaign in campaigns.sending(connection)}
        self._composers = {key: self._composers[key] for key in self._composers.keys() & sending.keys()}
        self._losses = {key: self._losses[key] for key in self._losses.keys() & sending.keys()}
        self._breakers = {key: self._breakers[key] for key in self._breakers.keys() & sending.items()}

    def _next(self, passed: Collection[tuple[int, int]]) -> tuple[Ready | None, timedelta | None]:
        """Whose turn it is: the urgent before the others, and among equals one after the other, round and round.

        Args:
            passed: Lines of which there was nothing to claim although there seemed to be.

        Returns:
            That line, if a limit does not keep every one back; and how long the first of those waits that it does.
        """
        others_in = None
        for urgent in self._urgencies():
            outlook = self._look(urgent=urgent)
            others_in = min(filter(None, (others_in, outlook.opens_in)), default=None)
            ready = [one for one in outlook.open if one.place not in passed]
            if ready:
                following = _following(ready, self._last.get(urgent, (0, 0)))
                self._last[urgent] = following.place
                return following, others_in
        return None, others_in

    def _look(self, *, urgent: bool) -> Outlook:
        with self._ledger.read() as connection:
            return look(connection, self._settings.limits, urgent=urgent, now=self._clock.now())

    def _urgencies(self) -> list[bool]:
        taken = {True: self._settings.urgent, False: self._settings.bulk}
        return [urgent for urgent, here in taken.items() if here]

    async def _take_turn(
        self,
        line: Ready,
        length: timedelta,
        until_s: float,
        pumped: Pumped,
        stopping: Callable[[], bool],
    ) -> bool:
        """Sends of one line until its turn is over; False when there was nothing to claim."""
        if self._recorder is not None:
            self._recorder.roll(uid=new_token())
        campaign, batch = await asyncio.to_thread(self._claim, line)
        if batch is None:
            return False
        turn = Turn(
            line,
            look=self._look,
            clock=self._clock,
            length=length,
            until_s=until_s,
            urgent_first=self._settings.urgent,
        )
        allowance = Allowance(line, self._settings.limits, validity=self._validity, clock=self._clock)
        await self._send_batch(campaign, batch, allowance, turn, pumped, stopping)
        if await asyncio.to_thread(finish_if_done, self._ledger, campaign, now=self._clock.now()):
            pumped.finished.append(campaign.id)
        return True

    def _claim(self, line: Ready) -> tuple[Campaign, Batch | None]:
        with self._ledger.read() as connection:
            campaign = campaigns.get(connection, line.campaign_id)
        if not self._can_compose(campaign):
            return campaign, None
        with self._timeline.write() as connection:
            batch = batches.claim(
                connection,
                campaign.id,
                lane=line.lane,
                size=self._settings.batch,
                token=new_token(),
                owner=self._owner,
                recorder=self._recorder.name if self._recorder else None,
            )
        return campaign, batch

    def _can_compose(self, campaign: Campaign) -> bool:
        """Whether this campaign's messages can be made at all; pauses it otherwise, so that the others go on."""
        try:
            self._composer(campaign)
        except (JobFailed, RenderFailed, ValueError) as error:
            self._pause(campaign, f"its messages cannot be made: {error}")
            return False
        return True

    def _composer(self, campaign: Campaign) -> Composer:
        if campaign.uid not in self._composers:
            with self._ledger.read() as connection:
                name, files = campaigns.template_files(connection, campaign.template)
            self._composers[campaign.uid] = Composer(
                campaign,
                Bundle(name=name, files=files),
                redirect=self._settings.redirect,
            )
        return self._composers[campaign.uid]

    def _breaker(self, campaign: Campaign) -> Breaker:
        key = (campaign.uid, campaign.sending_since)
        if key not in self._breakers:
            stop_at = CampaignSpec.model_validate(campaign.spec).stop_at
            self._breakers[key] = Breaker(connections=self._sessions.connections, refused=stop_at.refused)
        return self._breakers[key]

    async def _send_batch(
        self,
        campaign: Campaign,
        batch: Batch,
        allowance: Allowance,
        turn: Turn,
        pumped: Pumped,
        stopping: Callable[[], bool],
    ) -> None:
        composer = self._composers[campaign.uid]
        held = HeldBatch(
            campaign,
            batch,
            ledger=self._ledger,
            clock=self._clock,
            lease=self._settings.lease,
            pumped=pumped,
            recorder=self._recorder,
            timeline=self._timeline,
            allowance=allowance,
        )
        windows = Windows(
            held,
            composer,
            self._sessions,
            clock=self._clock,
            pace=self._pace,
            breaker=self._breaker(campaign),
            turn=turn,
            stopping=stopping,
            losses=self._losses.setdefault(campaign.uid, Counter()),
            mail_flows=self._tell_that_mail_flows,
        )
        if self._recorder is not None:
            self._recorder.begin(batch.id, Binding.of(campaign))
        try:
            async with held.kept(heartbeat=self._settings.heartbeat, look=self._settings.look):
                await windows.send_all()
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

    async def _tell_that_mail_flows(self) -> None:
        tell, self._mail_flows = self._mail_flows, None
        if tell is not None:
            await asyncio.to_thread(tell)

    def _pause(self, campaign: Campaign, reason: str) -> None:
        """Stops a campaign that cannot go on by itself, so that the others need not wait behind it."""
        with self._ledger.write() as connection:
            # A person who has resumed it meanwhile knows what had happened before.
            if campaigns.lock(connection, campaign.id).sending_since != campaign.sending_since:
                return
            now = self._clock.now()
            paused = campaigns.move(connection, campaign.id, to=CampaignState.PAUSED, now=now, reason=reason)
        if paused:
            logger.error(
                "campaign %s is paused: %s", campaign.name, reason, extra={"campaign": campaign.name}
            )


def _following(ready: Sequence[Ready], last: tuple[int, int]) -> Ready:
    """The first behind the last one; behind the very last comes the first."""
    return next((one for one in ready if one.place > last), ready[0])
