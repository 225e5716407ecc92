"""Bad behaviour on order: what a script may make the sink do instead of its duty."""

from __future__ import annotations

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
        reply: Written instead of the usual reply, without the last line end; None writes nothing. Unless it begins
            with the digit of the usual reply, the command has no effect.
        accept: At `DOT`: the message is stored and indexed first.
        then: What follows.
    """

    reply: str | None = None
    accept: bool = False
    then: Then = Then.GO_ON


class Script(Protocol):
    """Decides at every step; called in the sink's event loop."""

    def __call__(self, moment: Moment) -> Action | None:
        """Returns what to do instead of the usual, or None for the usual."""
        ...
