"""A relay to test against: the real sink on loopback, a session to it, and scripts for its bad behaviour."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from maintd.clock import SystemClock
from maintd.smtp.faults import Action, Moment, Script, Step, Then
from maintd.smtp.plain import PlainSession, open_session
from maintd.smtp.relays import Relay, Security
from maintd.smtp.session import Outgoing, Timeouts
from maintd.smtp.sink import Sink

PATIENT = Timeouts(connect_s=30, command_s=30, dot_s=30)
CONTENT = b"From: a@example.com\r\nMessage-ID: <1@example.com>\r\nX-Maintd-Campaign: weekly\r\n\r\nHello\r\n"


@dataclass
class Once:
    """Acts at the first occurrence of a step, and never again."""

    step: Step
    action: Action
    done: bool = False

    def __call__(self, moment: Moment) -> Action | None:
        if self.done or moment.step is not self.step:
            return None
        self.done = True
        return self.action


@dataclass
class Always:
    """Acts at each of these steps."""

    actions: dict[Step, Action]

    def __call__(self, moment: Moment) -> Action | None:
        return self.actions.get(moment.step)


@dataclass
class Hanging:
    """Never answers a step, and tells when it is reached."""

    step: Step
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, moment: Moment) -> Action | None:
        if moment.step is not self.step:
            return None
        self.reached.set()
        return Action(then=Then.HANG)


@dataclass
class Watching:
    """Does nothing unusual and remembers every command."""

    lines: list[str] = field(default_factory=list)

    def __call__(self, moment: Moment) -> Action | None:
        self.lines.append(moment.line)
        return None

    def first(self, verb: str) -> str:
        return next(line for line in self.lines if line.startswith(verb))


def message(
    recipient: str = "b@example.com",
    *,
    sender: str = "a@example.com",
    content: bytes = CONTENT,
    smtputf8: bool = False,
) -> Outgoing:
    return Outgoing(sender=sender, recipient=recipient, content=content, smtputf8=smtputf8)


def always() -> bool:
    return True


def local_relay(port: int, **fields: str) -> Relay:
    return Relay(host="127.0.0.1", port=port, security=Security.PLAIN, **fields)


@contextlib.asynccontextmanager
async def sink_and_session(
    mailbox: Path | None = None,
    *,
    script: Script | None = None,
    timeouts: Timeouts = PATIENT,
    sink_type: Callable[..., Sink] = Sink,
) -> AsyncIterator[tuple[Sink, PlainSession]]:
    sink = sink_type(mailbox, clock=SystemClock(), script=script)
    port = await sink.start()
    session = await open_session(local_relay(port), timeouts=timeouts, hello="client.example")
    try:
        yield sink, session
    finally:
        session.abort()
        await sink.close()
