"""What a connection to a relay promises: one verdict a message, and never more than is known.

RFC 1047: between the relay's decision to accept a message and the sender's reading of its reply, nobody can say on
which side the message is. `Verdict.UNCERTAIN` names exactly that window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from maintd.errors import Unavailable
from maintd.smtp.lines import NOTHING, Lines
from maintd.smtp.reply import Reply

#: Why a reply of a class that its command does not have ends the session.
NONSENSE = "the relay's answer makes no sense at this step"
#: How long to wait for the reply to QUIT, on which nothing depends, in seconds.
GOODBYE_S = 5.0

#: What a message is told whose session had ended before its turn.
CLOSED = "the connection is closed"


class Phase(StrEnum):
    """The step of a connection, or of a message on it, at which something was decided."""

    CONNECT = "connect"  #: TCP connection, greeting, EHLO
    TLS = "tls"  #: STARTTLS, the handshake and the EHLO after it
    AUTH = "auth"  #: AUTH
    RENDER = "render"  #: making the message, before anything was offered to the relay
    MAIL = "mail"  #: MAIL FROM; also what was refused on our side before anything was written
    RCPT = "rcpt"  #: RCPT TO
    DATA = "data"  #: DATA, up to the moment before the message is written
    DOT = "dot"  #: the message with its terminating dot, and the wait for the reply to it


class Verdict(StrEnum):
    """What is known about a message after it was tried."""

    ACCEPTED = "accepted"  #: a positive reply to the dot was read: the relay has it
    REJECTED = "rejected"  #: a 5yz reply was read, or it cannot be sent to this relay at all
    DEFERRED = "deferred"  #: a 4yz reply was read
    UNSENT = (
        "unsent"  #: the connection was lost or given up before any byte of the dot: certainly not accepted
    )
    UNCERTAIN = "uncertain"  #: the dot may have been written and no reply to it was read


class Unsendable(Exception):
    """A message cannot be made, or cannot be sent to this relay; nothing was written.

    Attributes:
        phase: `RENDER` or `MAIL`.
    """

    def __init__(self, reason: str, *, phase: Phase = Phase.MAIL) -> None:
        super().__init__(reason)
        self.phase = phase


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """One message to one recipient.

    Attributes:
        sender: Envelope MAIL FROM; empty for the null return path.
        recipient: Envelope RCPT TO.
        content: Header and body.
        ending: The rest of the body, if other messages end alike.
        smtputf8: The envelope or the header needs RFC 6531.
    """

    sender: str
    recipient: str
    content: Lines
    ending: Lines = NOTHING
    smtputf8: bool

    @property
    def octets(self) -> bytes:
        """The whole message."""
        return self.content.octets + self.ending.octets


@dataclass(frozen=True, kw_only=True)
class Result:
    """How the sending of one message ended.

    Attributes:
        verdict: What is known.
        phase: The step at which it ended.
        reply: The reply that decided it, if one was read.
        detail: For people, when there is no reply: what happened. Printable and short.
    """

    verdict: Verdict
    phase: Phase
    reply: Reply | None
    detail: str

    @classmethod
    def decided(cls, phase: Phase, reply: Reply) -> Result:
        """The relay said yes to the dot, or no at any step."""
        refusal = Verdict.REJECTED if reply.permanent else Verdict.DEFERRED
        verdict = Verdict.ACCEPTED if reply.positive else refusal
        return cls(verdict=verdict, phase=phase, reply=reply, detail="")

    @classmethod
    def broken_off(cls, phase: Phase, detail: str, *, reply: Reply | None = None) -> Result:
        """The session ended at this step without an answer that means anything."""
        verdict = Verdict.UNCERTAIN if phase is Phase.DOT else Verdict.UNSENT
        return cls(verdict=verdict, phase=phase, reply=reply, detail=detail)

    @property
    def tried(self) -> bool:
        """Whether anything of the message was offered to the relay; the session may have ended before its turn."""
        return not (self.is_ours or (self.verdict is Verdict.UNSENT and self.detail.startswith(CLOSED)))

    @property
    def is_ours(self) -> bool:
        """Whether the message was refused on this side, so that the relay has not heard of it."""
        return self.verdict is Verdict.REJECTED and self.reply is None

    @classmethod
    def unsendable(cls, why: Unsendable) -> Result:
        """There is no such message, or this relay cannot be given it; nothing was written."""
        return cls(verdict=Verdict.REJECTED, phase=why.phase, reply=None, detail=str(why))


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long to wait for each reply, in seconds.

    RFC 5321 §4.5.3.2 asks for 5 minutes for the greeting, MAIL and RCPT, 2 minutes for DATA and 10 minutes for the dot,
    where giving up early means a doubt.

    Attributes:
        connect_s: Each step of opening: connection, greeting, EHLO, TLS, AUTH.
        command_s: Each of MAIL, RCPT, DATA, RSET.
        dot_s: Writing the message and waiting for the reply to its dot.
    """

    connect_s: float
    command_s: float
    dot_s: float


class OpenFailed(Unavailable):
    """A connection to the relay could not be opened.

    Attributes:
        phase: `CONNECT`, `TLS` or `AUTH`.
        reply: The relay's refusal, if it was one.
    """

    def __init__(self, message: str, *, phase: Phase, reply: Reply | None) -> None:
        super().__init__(message)
        self.phase = phase
        self.reply = reply


class Watcher(Protocol):
    """Who sends: is asked, and told, at the moments that count. Called in the session's event loop; must not block."""

    def may_write_dot(self, index: int) -> bool:
        """Whether the dot of a message may be written: asked immediately before, after everything else went well.

        False drops the connection: this message and all later ones are `UNSENT`.
        """
        ...

    def result(self, index: int, result: Result) -> None:
        """Takes in what became of a message: exactly once for each, in order, as soon as it is known."""
        ...


class Messages(Protocol):
    """What is to be sent, in order. Each is taken once, when its turn comes, so that it need not be made before."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, index: int, /) -> Outgoing:
        """One of them.

        Raises:
            Unsendable: It cannot be made.
        """
        ...


class Session(Protocol):
    """An open connection to a relay that sends one message after the other."""

    @property
    def usable(self) -> bool:
        """Whether it is idle and messages can be sent."""
        ...

    async def send_all(self, messages: Messages, *, watcher: Watcher) -> None:
        """Sends messages in order; never raises for what the relay or the network does.

        Returns when every message has its result; no dot is open then. The first refusal of the relay to go on ends
        the session, and all that could not be tried is `UNSENT`.

        Cancelled, or when the watcher raises, it drops the connection at once. Messages without a result get none then:
        those whose dot was permitted are in doubt, the others were certainly not sent.

        Args:
            messages: What to send; one that cannot be made, or cannot be sent to this relay, is `REJECTED` and nothing
                of it written.
            watcher: Is asked before each dot and told each result, by the index in `messages`.
        """
        ...

    async def close(self) -> None:
        """Says goodbye if idle, else drops the connection."""
        ...

    def abort(self) -> None:
        """Drops the connection and whatever is not yet written."""
        ...


async def send_one(session: Session, message: Outgoing, *, may_write_dot: Callable[[], bool]) -> Result:
    """Sends a single message; see `Session.send_all`."""
    single = _Single(may_write_dot)
    await session.send_all([message], watcher=single)
    return single.results[0]


class _Single:
    """Watches over one message."""

    def __init__(self, may_write_dot: Callable[[], bool]) -> None:
        self._may_write_dot = may_write_dot
        self.results: list[Result] = []

    def may_write_dot(self, index: int) -> bool:
        return self._may_write_dot()

    def result(self, index: int, result: Result) -> None:
        self.results.append(result)
