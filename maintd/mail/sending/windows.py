"""Sending a held batch window by window."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from maintd.clock import Clock
from maintd.errors import JobFailed, Unavailable
from maintd.ledger.deliveries import Delivery
from maintd.mail.compose import Composer
from maintd.mail.content.message import UnsafeHeader
from maintd.mail.content.templates import RenderFailed
from maintd.mail.sending.held import HeldBatch
from maintd.mail.sending.pace import Pace
from maintd.mail.sending.turn import Turn
from maintd.mail.verdicts.breaker import Breaker
from maintd.mail.verdicts.failures import Failure, failure_of
from maintd.mail.verdicts.outcomes import outcome_of
from maintd.smtp.pool import SessionPool
from maintd.smtp.session import Outgoing, Phase, Result, Session, Unsendable, Verdict

logger = logging.getLogger(__name__)

#: How often a connection may be lost before the dot until a message itself is suspected and waits its turn.
_UNSENT_TRIES = 3
#: How many messages a session has made in one go. One by one, between what the sockets want, they take almost twice as
#: long; all of a window at once, and the relays have nothing to do meanwhile.
_AT_ONCE = 8
#: Of what is told of a template that fails, in characters.
_LONGEST = 500


class Windows:
    """Sends a batch window by window: a few messages for every connection, one open dot on each."""

    def __init__(
        self,
        held: HeldBatch,
        composer: Composer,
        sessions: SessionPool,
        *,
        clock: Clock,
        pace: Pace,
        breaker: Breaker,
        turn: Turn,
        stopping: Callable[[], bool],
        losses: Counter[bytes],
        mail_flows: Callable[[], Awaitable[None]],
    ) -> None:
        """Prepares to send.

        Args:
            held: The batch.
            composer: Makes its messages.
            sessions: Where they go.
            clock: Measures the windows.
            pace: The process's.
            breaker: The campaign's.
            turn: The line's: when it is over, the rest of the batch is left to whoever is next.
            stopping: Whether an orderly stop was asked for: no further dot is written then.
            losses: The campaign's: how often a connection was lost over a recipient's message in a window of which
                nothing was taken. That ends the holding of a batch, and its first message may be the cause.
            mail_flows: Told after every window of which something was taken.
        """
        self._held = held
        self._clock = clock
        self._composer = composer
        self._redirect = composer.redirect.mailbox if composer.redirect else None
        self._sessions = sessions
        self._pace = pace
        self._tries: dict[bytes, int] = {}
        self._losses = losses
        self._mail_flows = mail_flows
        self._again: list[Delivery] = []
        self._breaker = breaker
        self._turn = turn
        self._stopping = stopping
        #: A dot was refused: the claim, the campaign or this process comes to its end, or a token has run out.
        self._withdrawn = False
        #: The limits have no room for the rest of the batch, or the relay wants less of its lane.
        self._held_back = False
        self._results: list[Result] = []

    async def send_all(self) -> None:
        """Sends every delivery of the batch, or leaves it in order at the border of a window."""
        line = deque(await asyncio.to_thread(self._held.load))
        while line:
            if await self._ends_here():
                await asyncio.to_thread(self._held.leave)
                return
            await self._send_window(line)
        await asyncio.to_thread(self._held.finish)

    async def _ends_here(self) -> bool:
        ended = self._withdrawn or self._held_back or self._held.closing or self._stopping()
        return ended or await self._turn.over()

    async def _send_window(self, line: deque[Delivery]) -> None:
        sessions = await self._sessions.ready(len(line))
        depth = min(self._pace.depth, *(session.room for session in sessions))
        window = [line.popleft() for _ in range(min(len(line), len(sessions) * depth))]
        marked = await asyncio.to_thread(self._held.mark, window)
        began_s = self._clock.monotonic_s()
        await self._send(sessions, marked.going)
        self._steer(took_s=self._clock.monotonic_s() - began_s)
        back = sorted([*self._again, *marked.waiting], key=lambda delivery: delivery.ordinal, reverse=True)
        line.extendleft(back)
        self._again.clear()
        self._held_back = bool(marked.waiting) or self._held.set_aside
        self._held.check()
        self._check_breaker()
        await self._check_relay()

    def _check_breaker(self) -> None:
        if self._breaker.tripped is not None:
            resume = f"maintd campaigns resume {self._held.campaign.name}"
            raise JobFailed(f"{self._breaker.tripped}, then `{resume}`")

    async def _check_relay(self) -> None:
        results, self._results = self._results, []
        if not _nothing_taken(results):
            await self._mail_flows()
            return
        if self._withdrawn:
            return
        if len(results) > 1 or self._held_back:
            self._losses.update(key for key, tries in self._tries.items() if tries)
        if len(results) > 1 and not self._held_back:
            said = results[0].detail or results[0].reply
            raise Unavailable(f"the relay takes no message: {said}")

    async def _send(self, sessions: Sequence[Session], going: Sequence[Delivery]) -> None:
        """Gives every session its share, and waits until no dot is open."""
        size = max(1, -(-len(going) // len(sessions)))
        shares = [_Share(self, going[start : start + size]) for start in range(0, len(going), size)]
        ended = await asyncio.gather(
            *(
                session.send_all(share, watcher=share)
                for session, share in zip(sessions, shares, strict=False)
            ),
            return_exceptions=True,  # until every session has ended: a batch is left only when nobody sends
        )
        for error in ended:
            if error is not None:
                raise error

    def _steer(self, *, took_s: float) -> None:
        if _nothing_taken(self._results):
            return  # it says nothing of how fast the relay is
        self._pace.took(took_s, of_s=self._held.window_s)

    def make(self, delivery: Delivery) -> Outgoing | Unsendable:
        """The message of a delivery, or why it cannot be made."""
        if self._breaker.tripped is not None:
            return Unsendable("nothing is made any more", phase=Phase.RENDER)
        try:
            return self._composer.message(delivery)
        except (RenderFailed, UnsafeHeader) as error:
            return Unsendable(str(error)[:_LONGEST], phase=Phase.RENDER)
        except Exception as error:
            logger.exception("a message cannot be made", extra={"campaign": self._held.campaign.name})
            return Unsendable(type(error).__name__, phase=Phase.RENDER)

    def may_write_dot(self, delivery: Delivery) -> bool:
        """Asked by a session immediately before a dot."""
        stops = self._stopping() or self._breaker.tripped is not None
        permitted = not stops and self._held.permit(delivery)
        self._withdrawn = self._withdrawn or not permitted
        return permitted

    def take(self, delivery: Delivery, result: Result) -> None:
        """Told by a session what became of a message, as soon as it knows."""
        if not result.is_ours:
            self._results.append(result)
        if self._is_left(delivery, result):
            self._held.learn(delivery, None)
            self._again.append(delivery)
            return
        now, campaign = self._clock.now(), self._held.campaign
        outcome = outcome_of(
            delivery,
            result,
            now=now,
            sending_since=campaign.sending_since or now,
            expires_at=campaign.expires_at,
            redirect=self._redirect,
        )
        self._tries.pop(delivery.recipient_key, None)
        if self._losses.pop(delivery.recipient_key, 0) and result.verdict is Verdict.UNSENT:
            # Or the relay is the cause: the others go first, no more.
            outcome = replace(outcome, counted=False)
        self._breaker.take(outcome)
        self._held.learn(delivery, outcome)

    def _is_left(self, delivery: Delivery, result: Result) -> bool:
        """Whether a delivery waits for another window: certainly not sent, and nothing found out about it."""
        if result.is_ours:
            return self._breaker.tripped is not None
        return result.verdict is Verdict.UNSENT and not self._too_often_unsent(delivery, result)

    def _too_often_unsent(self, delivery: Delivery, result: Result) -> bool:
        tries = self._tries.get(delivery.recipient_key, 0) + int(result.tried and not self._withdrawn)
        self._tries[delivery.recipient_key] = tries
        return tries + self._losses[delivery.recipient_key] >= _UNSENT_TRIES


def _nothing_taken(results: Sequence[Result]) -> bool:
    """Whether the relay let nothing through: it was lost, or wants less, each time."""
    return all(result.verdict is Verdict.UNSENT or _is_throttled(result) for result in results)


def _is_throttled(result: Result) -> bool:
    reply = result.reply
    return reply is not None and failure_of(result.phase, reply, first=False) is Failure.THROTTLE


class _Share:
    """What one session gets of a window: its messages, made when their turn comes, and who is told of them."""

    def __init__(self, windows: Windows, deliveries: Sequence[Delivery]) -> None:
        self._windows = windows
        self._deliveries = deliveries
        self._made: dict[int, Outgoing | Unsendable] = {}

    def __len__(self) -> int:
        return len(self._deliveries)

    def __getitem__(self, index: int) -> Outgoing:
        if index not in self._made:
            some = self._deliveries[index : index + _AT_ONCE]
            self._made = dict(enumerate(map(self._windows.make, some), start=index))
        made = self._made.pop(index)
        if isinstance(made, Unsendable):
            raise made
        return made

    def may_write_dot(self, index: int) -> bool:
        return self._windows.may_write_dot(self._deliveries[index])

    def result(self, index: int, result: Result) -> None:
        self._windows.take(self._deliveries[index], result)
