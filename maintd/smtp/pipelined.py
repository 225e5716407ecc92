"""A session that writes a message and the opening of the next one at once: one round trip a message instead of four.

RFC 2920 §3.1 lets MAIL, RCPT and DATA follow the dot of the message before without waiting, and in return asks that
every single reply is looked at. On the wire, → is written and ← is read:

    → body 1, dot, MAIL 2, RCPT 2, DATA 2        ← 250 for the dot, 250, 250, 354
    → body 2, dot, MAIL 3, RCPT 3, DATA 3        ← …

No more than one dot is ever open, so no more than one message of a connection can be in doubt.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass

from maintd.smtp.replies import RawReply
from maintd.smtp.reply import Reply
from maintd.smtp.results import InOrder
from maintd.smtp.session import (
    CLOSED,
    GOODBYE_S,
    NONSENSE,
    Messages,
    Phase,
    Result,
    Timeouts,
    Unsendable,
    Watcher,
)
from maintd.smtp.transaction import Transaction, transaction
from maintd.smtp.wire import BrokenOff, Wire

#: What each command of a group is answered with if all is well: the first digit.
_GROUP = ((Phase.MAIL, 2), (Phase.RCPT, 2), (Phase.DATA, 3))
#: Not understood, not implemented, out of order (RFC 5321 §4.2.2): nothing that is said about a message.
_CONFUSED = frozenset({500, 502, 503})
#: The enhanced codes of what is said of addresses (RFC 3463 §3.2).
_OF_ADDRESSES = "2.1."


@dataclass(frozen=True, kw_only=True, slots=True)
class _Turn:
    """A message whose turn comes."""

    index: int
    steps: Transaction

    @property
    def group(self) -> bytes:
        return b"%s\r\n%s\r\nDATA\r\n" % (self.steps.mail, self.steps.rcpt)


class PipelinedSession:
    """One connection to a relay that offers PIPELINING. See `Session` for what it promises.

    The first message goes step by step: what kind of relay this is is found out with one message, not with two.
    """

    def __init__(self, wire: Wire, *, extensions: Container[str], timeouts: Timeouts) -> None:
        """Takes over a connection that is ready for MAIL.

        Args:
            wire: The connection.
            extensions: Keywords of the relay's last EHLO reply, in lower case.
            timeouts: For every message.
        """
        self._wire = wire
        self._extensions = extensions
        self._timeouts = timeouts
        self._busy = False
        self._tried = False
        #: We gave it up. When only the connection is lost, replies that came before are still read.
        self._over = False
        #: A transaction was begun and did not come to its dot: unless RSET comes first, its recipient may get the next.
        self._unfinished = False
        #: This relay answers dots as others answer MAIL and RCPT; None before the first dot, behind which nothing is.
        self._dots_are_addressed: bool | None = None

    @property
    def usable(self) -> bool:
        """Whether it is idle and messages can be sent."""
        return not self._busy and self._wire.alive

    async def send_all(self, messages: Messages, *, watcher: Watcher) -> None:
        """Sends messages in order; see `Session.send_all`."""
        results = InOrder(watcher, count=len(messages))
        if not self.usable:
            results.rest(Result.broken_off(Phase.MAIL, f"{CLOSED} or busy"))
            return
        self._busy = True
        try:
            await self._send(self._sendable(messages, results), results, watcher)
            results.rest(Result.broken_off(Phase.MAIL, CLOSED))
        except BaseException:
            self.abort()  # cancelled in mid-transaction: the next reply would be taken for another's
            raise
        finally:
            self._busy = False

    async def close(self) -> None:
        """Says goodbye if idle, else drops the connection."""
        try:
            if self.usable:
                self._wire.write(b"QUIT\r\n", replies=1)
                await self._wire.reply(within_s=min(self._timeouts.command_s, GOODBYE_S))
        except BrokenOff:
            pass  # it is over either way
        finally:
            self.abort()

    def abort(self) -> None:
        """Drops the connection and whatever is not yet written."""
        self._over = True
        self._wire.break_off(CLOSED)

    def _sendable(self, messages: Messages, results: InOrder) -> Iterator[_Turn]:
        for index in range(len(messages)):
            try:
                yield _Turn(index=index, steps=transaction(messages[index], extensions=self._extensions))
            except Unsendable as why:
                results.put(index, Result.unsendable(why))

    async def _send(self, line: Iterator[_Turn], results: InOrder, watcher: Watcher) -> None:
        turn, opened = next(line, None), False
        while turn is not None and not self._over:
            together = self._tried
            ended = await (self._answers() if opened else self._open(turn))
            following = next(line, None)
            opened = ended is None and together and following is not None
            if ended is None:
                ended = await self._hand_over(turn, following if opened else None, watcher)
            results.put(turn.index, ended)
            turn = following

    async def _open(self, turn: _Turn) -> Result | None:
        """Carries out MAIL, RCPT and DATA; returns how the message ended there, None if its body may follow."""
        if not self._tried:
            self._tried = True
            return await self._open_by_steps(turn.steps)
        try:
            if self._unfinished:
                self._wire.write(b"RSET\r\n" + turn.group, replies=4)
                await self._reset()
            else:
                self._wire.write(turn.group, replies=3)
        except BrokenOff as error:
            return self._give_up(Phase.MAIL, str(error))
        return await self._answers()

    async def _reset(self) -> None:
        answer = await self._answer()
        if answer.code // 100 != 2:
            raise BrokenOff(f"the relay does not forget the message before: {answer.read()}")
        self._unfinished = False

    async def _open_by_steps(self, steps: Transaction) -> Result | None:
        for (phase, wanted), command in zip(_GROUP, (steps.mail, steps.rcpt, b"DATA"), strict=True):
            try:
                self._wire.write(command + b"\r\n", replies=1)
                answer = await self._answer()
            except BrokenOff as error:
                return self._give_up(phase, str(error))
            ended = self._judge(answer, phase=phase, wanted=wanted)
            if ended is not None:
                return ended
        return None

    async def _answers(self) -> Result | None:
        """Reads the replies to a group: its first failure decides, and what follows that must be a failure too."""
        ended: Result | None = None
        for phase, wanted in _GROUP:
            try:
                answer = await self._answer()
            except BrokenOff as error:
                return ended or self._give_up(phase, str(error))
            if ended is None:
                ended = self._judge(answer, phase=phase, wanted=wanted)
            else:
                await self._follow_up(answer, phase=phase)
        return ended

    async def _answer(self) -> RawReply:
        return await self._wire.reply(within_s=self._timeouts.command_s)

    def _judge(self, answer: RawReply, *, phase: Phase, wanted: int) -> Result | None:
        if answer.code // 100 == wanted:
            return None
        reply = answer.read()
        if not reply.refused or reply.code in _CONFUSED:
            return self._give_up(phase, NONSENSE, reply=reply)
        self._unfinished = True
        if reply.closing:
            self.abort()
        return Result.decided(phase, reply)

    async def _follow_up(self, answer: RawReply, *, phase: Phase) -> None:
        """Heeds a reply behind a refusal. The refusal stands, whatever comes of this."""
        if answer.refused and answer.code != 421:
            return
        if phase is Phase.DATA and answer.code // 100 == 3:
            await self._end_empty_message()
        else:
            self.abort()  # it closes, or takes a recipient for a message that it refused

    async def _end_empty_message(self) -> None:
        # RFC 2920 §3.1: DATA may be granted although every recipient was refused; then a lone dot is all that is legal.
        try:
            self._wire.write(b".\r\n", replies=1)
            answer = await self._answer()
        except BrokenOff:
            return
        if answer.code == 421:
            self.abort()

    async def _hand_over(self, turn: _Turn, following: _Turn | None, watcher: Watcher) -> Result:
        """Writes the message with its dot, and the group of the following one right behind it."""
        group, replies = (following.group, 3) if following is not None else (b"", 0)
        octets = b"".join((*turn.steps.pieces, group))
        if self._wire.alive and not watcher.may_write_dot(turn.index):
            return self._give_up(Phase.DATA, "withdrawn just before it was sent")
        try:
            self._wire.write(octets, replies=1 + replies)
        except BrokenOff as error:
            return self._give_up(Phase.DATA, str(error))
        try:
            answer = await self._wire.reply(within_s=self._timeouts.dot_s)
        except BrokenOff as error:
            return self._give_up(Phase.DOT, str(error))
        return self._outcome(answer.read())

    def _outcome(self, reply: Reply) -> Result:
        if not (reply.positive or reply.refused) or self._is_of_another(reply):
            return self._give_up(Phase.DOT, NONSENSE, reply=reply)
        if reply.closing or reply.code in _CONFUSED:
            self.abort()
        return Result.decided(Phase.DOT, reply)

    def _is_of_another(self, reply: Reply) -> bool:
        """Whether a yes to the dot is the one to the MAIL behind it: the relay has left its answer to the dot out."""
        addressed = reply.positive and (reply.enhanced or "").startswith(_OF_ADDRESSES)
        if self._dots_are_addressed is None:
            self._dots_are_addressed = addressed
        return addressed and not self._dots_are_addressed

    def _give_up(self, phase: Phase, detail: str, *, reply: Reply | None = None) -> Result:
        self.abort()
        return Result.broken_off(phase, detail, reply=reply)
