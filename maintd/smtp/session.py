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
from maintd.smtp.reply import Reply


class Phase(StrEnum):
    """The step of a connection, or of a message on it, at which something was decided."""

    CONNECT = "connect"  #: TCP connection, greeting, EHLO
    TLS = "tls"  #: STARTTLS, the handshake and the EHLO after it
    AUTH = "auth"  #: AUTH
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


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """One message to one recipient.

    Attributes:
        sender: Envelope MAIL FROM; empty for the null return path.
        recipient: Envelope RCPT TO.
        content: Header and body with CRLF line ends, not dot-stuffed.
        smtputf8: The envelope or the header needs RFC 6531.
    """

    sender: str
    recipient: str
    content: bytes
    smtputf8: bool


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


class Session(Protocol):
    """An open connection to a relay that sends one message after the other."""

    @property
    def usable(self) -> bool:
        """Whether it is idle and another message can be sent."""
        ...

    async def send(self, message: Outgoing, *, may_send: Callable[[], bool]) -> Result:
        """Sends one message; never raises for what the relay or the network does.

        Args:
            message: What to send.
            may_send: Asked immediately before the message with its dot is written, after everything else went well.
                False drops the connection: the verdict is `UNSENT`.
        """
        ...

    async def close(self) -> None:
        """Says goodbye if idle, else drops the connection."""
        ...

    def abort(self) -> None:
        """Drops the connection and whatever is not yet written."""
        ...
