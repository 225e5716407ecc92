"""A session that waits for each reply before the next command: four round trips a message, on every relay there is.

aiosmtplib connects and reads replies. Its own `sendmail` is not used: it hides the step at which a message failed, and
at the dot that is the difference between "not sent" and "nobody knows".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import cast

from aiosmtplib import SMTP
from aiosmtplib.errors import SMTPException, SMTPResponseException, SMTPServerDisconnected, SMTPTimeoutError
from aiosmtplib.protocol import SMTPProtocol

from maintd.smtp.reply import Reply, sanitised
from maintd.smtp.session import (
    CLOSED,
    GOODBYE_S,
    NONSENSE,
    Messages,
    Outgoing,
    Phase,
    Result,
    Timeouts,
    Unsendable,
    Watcher,
)
from maintd.smtp.transaction import Transaction, transaction


class PlainSession:
    """One connection, one message at a time. See `Session` for what it promises."""

    def __init__(self, client: SMTP, *, timeouts: Timeouts) -> None:
        """Takes over a connected client that has said EHLO."""
        # aiosmtplib forgets these three when it notices an end; what it calls closing would still write what it holds.
        self._protocol = cast(SMTPProtocol, client.protocol)
        self._transport = cast(asyncio.WriteTransport, client.transport)
        self._extensions = frozenset(client.esmtp_extensions)
        self._client = client
        self._timeouts = timeouts
        self._busy = False

    @property
    def usable(self) -> bool:
        """Whether it is idle and another message can be sent."""
        return not self._busy and self._alive

    @property
    def _alive(self) -> bool:
        return not self._transport.is_closing()

    async def send_all(self, messages: Messages, *, watcher: Watcher) -> None:
        """Sends messages in order; see `Session.send_all`."""
        if not self.usable:
            closed = Result.broken_off(Phase.MAIL, f"{CLOSED} or busy")
            for index in range(len(messages)):
                watcher.result(index, closed)
            return
        self._busy = True
        try:
            for index in range(len(messages)):
                message = partial(messages.__getitem__, index)
                may_write_dot = partial(watcher.may_write_dot, index)
                watcher.result(index, await self._send(message, may_write_dot=may_write_dot))
        except BaseException:
            self.abort()  # cancelled in mid-transaction: the next reply would be taken for another's
            raise
        finally:
            self._busy = False

    async def close(self) -> None:
        """Says goodbye if idle, else drops the connection."""
        try:
            if self.usable:
                await self._client.execute_command(b"QUIT", timeout=min(self._timeouts.command_s, GOODBYE_S))
        except (SMTPException, OSError):
            pass  # it is over either way
        finally:
            self.abort()

    def abort(self) -> None:
        """Drops the connection and whatever is not yet written."""
        # Never close(): that goes on writing, in the background, a dot that was given up.
        self._transport.abort()

    async def _send(self, message: Callable[[], Outgoing], *, may_write_dot: Callable[[], bool]) -> Result:
        if not self._alive:
            return Result.broken_off(Phase.MAIL, CLOSED)
        try:
            steps = transaction(message(), extensions=self._extensions)
        except Unsendable as why:
            return Result.unsendable(why)
        return await self._carry_out(steps, may_write_dot=may_write_dot)

    async def _carry_out(self, steps: Transaction, *, may_write_dot: Callable[[], bool]) -> Result:
        for phase, command in ((Phase.MAIL, steps.mail), (Phase.RCPT, steps.rcpt), (Phase.DATA, b"DATA")):
            ended = await self._command(command, phase=phase)
            if ended is not None:
                return ended
        if not self._alive:
            return self._give_up(Phase.DATA, "the connection was lost")
        if not may_write_dot():
            return self._give_up(Phase.DATA, "withdrawn just before it was sent")
        if self._transport.is_closing():  # who was asked may have dropped it
            return self._give_up(Phase.DATA, "the connection was lost")
        return await self._write_body(steps.body)

    async def _command(self, command: bytes, *, phase: Phase) -> Result | None:
        """Carries out one step; returns how the transaction ended there, or None if it goes on."""
        try:
            reply = Reply.parse(
                *await self._client.execute_command(command, timeout=self._timeouts.command_s)
            )
        except (SMTPException, OSError) as error:
            return self._give_up(phase, _what_happened(error))
        if reply.refused:
            await self._reset()
            return Result.decided(phase, reply)
        expected = reply.intermediate if phase is Phase.DATA else reply.positive
        if not expected or self._out_of_step:
            return self._give_up(phase, NONSENSE, reply=reply)
        return None

    @property
    def _out_of_step(self) -> bool:
        # A second reply behind the one that was asked for: aiosmtplib would take it for the next command's.
        return bool(getattr(self._protocol, "_buffer", b""))

    async def _reset(self) -> None:
        """Clears the relay's envelope after a refusal. If that fails the session ends; the refusal stands."""
        if self._out_of_step:
            self.abort()
            return
        try:
            response = await self._client.execute_command(b"RSET", timeout=self._timeouts.command_s)
            if response.code // 100 != 2:
                self.abort()
        except (SMTPException, OSError):
            self.abort()

    async def _write_body(self, body: bytes) -> Result:
        try:
            self._protocol.write(body)
            reply = await self._reply_to_dot()
        except (SMTPException, OSError) as error:
            return self._give_up(Phase.DOT, _what_happened(error))
        if not (reply.positive or reply.refused):
            return self._give_up(Phase.DOT, NONSENSE, reply=reply)
        if reply.closing or self._out_of_step:
            self.abort()
        return Result.decided(Phase.DOT, reply)

    async def _reply_to_dot(self) -> Reply:
        response = asyncio.ensure_future(self._protocol.read_response())
        try:
            await asyncio.wait([response], timeout=self._timeouts.dot_s)
            if not response.done():
                # Whoever was stopped for a while learns that the time is over before it learns what came meanwhile:
                # another round of the loop reads that first.
                await asyncio.wait([response], timeout=0)
            if not response.done():
                raise SMTPTimeoutError("no answer in time")
            return Reply.parse(*response.result())
        finally:
            response.cancel()

    def _give_up(self, phase: Phase, detail: str, *, reply: Reply | None = None) -> Result:
        self.abort()
        return Result.broken_off(phase, detail, reply=reply)


def _what_happened(error: SMTPException | OSError) -> str:
    if isinstance(error, SMTPTimeoutError):
        return "no answer in time"
    if isinstance(error, SMTPServerDisconnected):
        return "the connection was lost"
    if isinstance(error, SMTPResponseException):
        return sanitised(f"the relay's answer is not SMTP: {error.message}")
    return sanitised(str(error))
