"""A session that waits for each reply before the next command: five round trips a message, on every relay there is.

aiosmtplib connects and reads replies. Its own `sendmail` is not used: it hides the step at which a message failed, and
at the dot that is the difference between "not sent" and "nobody knows".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from aiosmtplib import SMTP
from aiosmtplib.errors import SMTPException, SMTPResponseException, SMTPServerDisconnected, SMTPTimeoutError
from aiosmtplib.protocol import SMTPProtocol

from maintd.smtp.opening import open_client
from maintd.smtp.relays import Relay
from maintd.smtp.reply import Reply, sanitised
from maintd.smtp.session import Outgoing, Phase, Result, Timeouts, Verdict
from maintd.smtp.transaction import Transaction, Unsendable, transaction

_GOODBYE_S = 5.0  # nothing depends on the reply to QUIT
_NONSENSE = "the relay's answer makes no sense at this step"


async def open_session(relay: Relay, *, timeouts: Timeouts, hello: str) -> PlainSession:
    """Opens a connection to the relay.

    Args:
        relay: Where to.
        timeouts: For opening and for every message.
        hello: The name to introduce ourselves by in EHLO.

    Raises:
        OpenFailed: The relay is away, refused us, or does not offer the TLS or AUTH that is asked for.
    """
    return PlainSession(await open_client(relay, timeouts=timeouts, hello=hello), timeouts=timeouts)


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

    async def send(self, message: Outgoing, *, may_send: Callable[[], bool]) -> Result:
        """Sends one message; see `Session.send`."""
        if not self.usable:
            return _result(Verdict.UNSENT, Phase.MAIL, detail="the connection is closed or busy")
        try:
            steps = transaction(message, extensions=self._extensions)
        except Unsendable as reason:
            return _result(Verdict.REJECTED, Phase.MAIL, detail=str(reason))
        self._busy = True
        try:
            return await self._carry_out(steps, may_send=may_send)
        except BaseException:
            self.abort()  # cancelled in mid-transaction: the next reply would be taken for another's
            raise
        finally:
            self._busy = False

    async def close(self) -> None:
        """Says goodbye if idle, else drops the connection."""
        try:
            if self.usable:
                await self._client.execute_command(b"QUIT", timeout=min(self._timeouts.command_s, _GOODBYE_S))
        except (SMTPException, OSError):
            pass  # it is over either way
        finally:
            self.abort()

    def abort(self) -> None:
        """Drops the connection and whatever is not yet written."""
        # Never close(): that goes on writing, in the background, a dot that was given up.
        self._transport.abort()

    async def _carry_out(self, steps: Transaction, *, may_send: Callable[[], bool]) -> Result:
        for phase, command in ((Phase.MAIL, steps.mail), (Phase.RCPT, steps.rcpt), (Phase.DATA, b"DATA")):
            ended = await self._command(command, phase=phase)
            if ended is not None:
                return ended
        if not may_send():
            return self._give_up(Phase.DATA, "withdrawn just before it was sent")
        if not self._alive:
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
            return _result(_refusal(reply), phase, reply=reply)
        expected = reply.intermediate if phase is Phase.DATA else reply.positive
        if not expected or self._out_of_step:
            return self._give_up(phase, _NONSENSE, reply=reply)
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
            reply = Reply.parse(*await self._protocol.read_response(timeout=self._timeouts.dot_s))
        except (SMTPException, OSError) as error:
            return self._give_up(Phase.DOT, _what_happened(error))
        if not (reply.positive or reply.refused):
            return self._give_up(Phase.DOT, _NONSENSE, reply=reply)
        if reply.closing or self._out_of_step:
            self.abort()
        return _result(Verdict.ACCEPTED if reply.positive else _refusal(reply), Phase.DOT, reply=reply)

    def _give_up(self, phase: Phase, detail: str, *, reply: Reply | None = None) -> Result:
        self.abort()
        verdict = Verdict.UNCERTAIN if phase is Phase.DOT else Verdict.UNSENT
        return _result(verdict, phase, reply=reply, detail=detail)


def _refusal(reply: Reply) -> Verdict:
    return Verdict.REJECTED if reply.permanent else Verdict.DEFERRED


def _result(verdict: Verdict, phase: Phase, *, reply: Reply | None = None, detail: str = "") -> Result:
    return Result(verdict=verdict, phase=phase, reply=reply, detail=detail)


def _what_happened(error: SMTPException | OSError) -> str:
    if isinstance(error, SMTPTimeoutError):
        return "no answer in time"
    if isinstance(error, SMTPServerDisconnected):
        return "the connection was lost"
    if isinstance(error, SMTPResponseException):
        return sanitised(f"the relay's answer is not SMTP: {error.message}")
    return sanitised(str(error))
