"""An open connection to a relay on which several replies may be awaited at once."""

from __future__ import annotations

import asyncio
import math
from collections import deque

from maintd.smtp.replies import NotSMTP, RawReply, ReplyStream
from maintd.smtp.session import CLOSED

_LOST = "the connection was lost"


class BrokenOff(Exception):
    """The connection is over; says why."""


class Wire(asyncio.Protocol):
    """Bytes out, replies in. Whatever goes wrong drops the connection at once; replies that came before still count.

    It never holds more than one writing: as every reply is awaited before the next, whoever answers while the transport
    is still full answers what it has not read.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        """Takes over a transport from the protocol that opened it; also one that `start_tls` made."""
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._stream = ReplyStream()
        self._replies: deque[RawReply] = deque()
        self._awaited = 0
        self._full = False
        self._why: str | None = CLOSED if transport.is_closing() else None
        self._waiter: asyncio.Future[None] | None = None
        self._deadline_s = math.inf
        self._timer: asyncio.TimerHandle | None = None
        transport.set_protocol(self)

    @property
    def alive(self) -> bool:
        """Whether something can be written."""
        return self._why is None

    def write(self, data: bytes, *, replies: int) -> None:
        """Hands bytes to the transport.

        Args:
            data: What to write.
            replies: How many replies answer it.

        Raises:
            BrokenOff: The connection is over; nothing was written.
        """
        if self._full:
            self.break_off("the relay answers what it has not read")
        if self._why is not None:
            raise BrokenOff(self._why)
        self._awaited += replies
        self._transport.write(data)

    async def reply(self, *, within_s: float) -> RawReply:
        """The next reply.

        Args:
            within_s: How long to wait for it, from now; then the connection is dropped.

        Raises:
            BrokenOff: The connection is over and no more replies are there.
        """
        if not self._replies:
            await self._arrival(within_s)
        self._awaited -= 1
        return self._replies.popleft()

    def break_off(self, why: str) -> None:
        """Drops the connection and whatever the transport still holds; the first reason stays."""
        if self._why is None:
            self._why = why
        # Never close(): that goes on writing, in the background, a dot that was given up.
        self._transport.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake()

    # One timer for the connection, not one for each reply: it looks at the deadline and sets itself again.

    async def _arrival(self, within_s: float) -> None:
        if self._why is None:
            self._deadline_s = self._loop.time() + within_s
            self._set_timer()
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if not self._replies:
            raise BrokenOff(self._why or _LOST)

    def _set_timer(self) -> None:
        if self._timer is not None and self._timer.when() > self._deadline_s:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline_s, self._look_at_the_clock)

    def _look_at_the_clock(self) -> None:
        self._timer = None
        if self._waiter is None:
            return
        if self._loop.time() < self._deadline_s:
            self._set_timer()
        else:
            # Whoever was stopped for a while learns that the time is over before it learns what came meanwhile (after
            # SIGCONT epoll_wait reports nothing): another round of the loop reads that first.
            self._timer = self._loop.call_later(0, self._time_is_over)

    def _time_is_over(self) -> None:
        self._timer = None
        if self._waiter is not None and not self._waiter.done():
            self.break_off("no answer in time")

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What the transport calls.

    def data_received(self, data: bytes) -> None:
        if self._why is not None:
            return
        try:
            self._replies.extend(self._stream.feed(data))
        except NotSMTP as error:
            self.break_off(f"the relay's answer is not SMTP: {error}")
            return
        unasked = len(self._replies) - self._awaited
        if unasked > 0 or (unasked == 0 and self._stream.partial):
            self.break_off("the relay said something that nobody asked for")
        elif self._replies:
            self._wake()

    def eof_received(self) -> None:
        self.break_off(_LOST)  # left to itself the transport would go on writing to a relay that hung up

    def connection_lost(self, exc: Exception | None) -> None:
        self.break_off(_LOST)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
