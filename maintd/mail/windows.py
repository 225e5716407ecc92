"""Sending a held batch window by window."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from maintd.clock import Clock
from maintd.errors import JobFailed
from maintd.ledger.deliveries import Delivery
from maintd.mail.compose import Composer
from maintd.mail.held import HeldBatch
from maintd.mail.message import UnsafeHeader
from maintd.mail.outcomes import MOST_OMINOUS, UNSENT_TRIES, is_ominous, outcome_of, refused_here
from maintd.mail.templates import RenderFailed
from maintd.smtp.pool import SessionPool
from maintd.smtp.session import Outgoing, Result, Session, Verdict

logger = logging.getLogger(__name__)


class Windows:
    """Sends a batch window by window: as many messages as there are connections, one open dot on each."""

    def __init__(self, held: HeldBatch, composer: Composer, sessions: SessionPool, *, clock: Clock) -> None:
        self._held = held
        self._clock = clock
        self._composer = composer
        self._sessions = sessions
        self._unsent: dict[bytes, int] = {}
        self._streak = 0

    async def send_all(self, stopping: Callable[[], bool]) -> None:
        """Sends every delivery of the batch, or leaves it in order when asked to stop."""
        line = deque(await asyncio.to_thread(self._held.load))
        while line:
            if stopping():
                await asyncio.to_thread(self._held.leave)
                return
            await self._send_window(line)
            if self._streak >= MOST_OMINOUS:
                raise JobFailed(
                    f"{self._streak} messages in a row were refused or uncertain whoever they were for; the last: "
                    f"{self._held.known[-1].detail}"
                )
        await asyncio.to_thread(self._held.finish)

    async def _send_window(self, line: deque[Delivery]) -> None:
        sessions = await self._sessions.ready(len(line))
        window = [line.popleft() for _ in sessions]
        messages = await asyncio.to_thread(self._compose, window)
        self._streak += len(window) - len(messages)
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
            except Exception as error:
                logger.exception("a message cannot be made", extra={"campaign": self._held.campaign.name})
                self._held.known.append(refused_here(delivery, type(error).__name__))
        return messages

    async def _send(self, session: Session, message: Outgoing) -> Result:
        return await session.send(message, may_send=self._held.may_send)

    def _take(self, delivery: Delivery, result: Result, line: deque[Delivery]) -> None:
        if result.verdict is Verdict.UNSENT and not self._too_often_unsent(delivery):
            self._held.learn(delivery, None)
            line.appendleft(delivery)
        else:
            self._held.learn(delivery, outcome_of(delivery, result, now=self._clock.now()))
        self._streak = self._streak + 1 if is_ominous(result) else 0

    def _too_often_unsent(self, delivery: Delivery) -> bool:
        tries = self._unsent.get(delivery.recipient_key, 0) + 1
        self._unsent[delivery.recipient_key] = tries
        return tries >= UNSENT_TRIES
