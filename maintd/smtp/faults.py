"""Bad behaviour on order: what a script may make the sink do instead of its duty."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Step(StrEnum):
    """What the sink is about to answer."""

    CONNECT = "connect"  #: a new connection, before the greeting
    HELLO = "hello"  #: EHLO or HELO
    STARTTLS = "starttls"  #: STARTTLS
    AUTH = "auth"  #: AUTH
    MAIL = "mail"  #: MAIL FROM
    RCPT = "rcpt"  #: RCPT TO
    DATA = "data"  #: DATA
    DOT = "dot"  #: a whole message has been read, nothing is stored yet
    RESET = "reset"  #: RSET
    QUIT = "quit"  #: QUIT


class Then(StrEnum):
    """What the sink does after it has, or has not, replied."""

    GO_ON = "go_on"  #: reads on
    DROP = "drop"  #: closes the connection
    HANG = "hang"  #: keeps the connection and never answers again


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Where a script is asked.

    Attributes:
        step: What is about to be answered.
        message: How many MAIL commands the sink has seen, this one included, over all connections.
        recipient: The first recipient of this transaction so far, or that of the RCPT command; else empty.
        line: The command as it was received; empty at `CONNECT` and `DOT`.
    """

    step: Step
    message: int
    recipient: str
    line: str


@dataclass(frozen=True, kw_only=True)
class Action:
    """What to do instead of the usual.

    Attributes:
        reply: Written instead of the usual reply; None writes nothing. Text gets a line end, bytes are written as they
            are: parts of a reply, several of them, or no reply at all. Unless it begins with the digit by which this
            step succeeds, the command has no effect.
        accept: At `DOT`: the message is stored and indexed first.
        after: What is to happen before the reply; nothing that is behind it is read until then. Not at `STARTTLS`
            and `QUIT`.
        then: What follows.
    """

    reply: str | bytes | None = None
    accept: bool = False
    after: asyncio.Event | None = None
    then: Then = Then.GO_ON

    @property
    def octets(self) -> bytes:
        """What is written."""
        if isinstance(self.reply, str):
            return self.reply.encode() + b"\r\n"
        return self.reply or b""


class Script(Protocol):
    """Decides at every step; called in the sink's event loop."""

    def __call__(self, moment: Moment) -> Action | None:
        """Returns what to do instead of the usual, or None for the usual."""
        ...
