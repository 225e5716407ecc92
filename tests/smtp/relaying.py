"""A relay to test against: the real sink on loopback, a session to it, and scripts for its bad behaviour."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from maintd.clock import SystemClock
from maintd.smtp.faults import Action, Moment, Script, Step, Then
from maintd.smtp.lines import Lines
from maintd.smtp.opening import open_client, open_session
from maintd.smtp.pipelined import PipelinedSession
from maintd.smtp.plain import PlainSession
from maintd.smtp.relays import Relay, Security
from maintd.smtp.session import Outgoing, Result, Session, Timeouts, Verdict, send_one
from maintd.smtp.sink import Sink

HELLO = "client.example"
PATIENT = Timeouts(connect_s=30, command_s=30, dot_s=30)
CONTENT = b"From: a@example.com\r\nMessage-ID: <1@example.com>\r\nX-Maintd-Campaign: weekly\r\n\r\nHello\r\n"


class Kind(StrEnum):
    """How a message goes over the wire."""

    PLAIN = "plain"  #: over a session that does not pipeline
    FIRST = "first"  #: as the first of a pipelined session: step by step
    GROUPED = "grouped"  #: as a later one: MAIL, RCPT and DATA at once


class Blinded(selectors.DefaultSelector):
    """Misses what has come, once: as epoll does for a process that was stopped and goes on when its time is over."""

    blind = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if not self.blind:
            return super().select(timeout)
        self.blind = False
        return []


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


@dataclass
class Recording:
    """Permits every dot unless told otherwise, and remembers what it was asked and told."""

    withheld: frozenset[int] = frozenset()
    asked: list[int] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)

    def may_write_dot(self, index: int) -> bool:
        self.asked.append(index)
        return index not in self.withheld

    def result(self, index: int, result: Result) -> None:
        assert index == len(self.results)
        self.results.append(result)

    @property
    def verdicts(self) -> list[Verdict]:
        return [result.verdict for result in self.results]


def message(
    recipient: str = "b@example.com",
    *,
    sender: str = "a@example.com",
    content: bytes = CONTENT,
    ending: bytes = b"",
    smtputf8: bool = False,
) -> Outgoing:
    return Outgoing(
        sender=sender,
        recipient=recipient,
        content=Lines.of(content),
        ending=Lines.of(ending),
        smtputf8=smtputf8,
    )


def always() -> bool:
    return True


def local_relay(port: int, **fields: str) -> Relay:
    return Relay(host="127.0.0.1", port=port, security=Security.PLAIN, **fields)


async def open_kind(kind: Kind, relay: Relay, *, timeouts: Timeouts) -> Session:
    if kind is Kind.PLAIN:
        return PlainSession(await open_client(relay, timeouts=timeouts, hello=HELLO), timeouts=timeouts)
    session = await open_session(relay, timeouts=timeouts, hello=HELLO)
    assert isinstance(session, PipelinedSession)
    return session


def set_timeouts(session: Session, timeouts: Timeouts) -> None:
    """How long it waits from the next command on. Whoever is to be hasty only once must be patient before."""
    session._timeouts = timeouts  # type: ignore[attr-defined]


async def send(session: Session, outgoing: Outgoing, *, may_write_dot: Callable[[], bool] = always) -> Result:
    return await send_one(session, outgoing, may_write_dot=may_write_dot)


@contextlib.asynccontextmanager
async def sink_and_session(
    mailbox: Path | None = None,
    *,
    kind: Kind,
    script: Script | None = None,
    opening: Script | None = None,
    timeouts: Timeouts = PATIENT,
    sink_type: Callable[..., Sink] = Sink,
) -> AsyncIterator[tuple[Sink, Session]]:
    """A sink and a session in the state in which the next message goes so; the rest holds from then on."""
    sink = sink_type(mailbox, clock=SystemClock(), script=opening)
    session = await open_kind(kind, local_relay(await sink.start()), timeouts=PATIENT)
    if kind is Kind.GROUPED:
        sink.script = Always({Step.DOT: Action(reply="554 Not the first")})
        assert (await send(session, message("first@example.com"))).verdict is Verdict.REJECTED
        sink.transactions = 0
    sink.script = script
    set_timeouts(session, timeouts)
    try:
        yield sink, session
    finally:
        session.abort()
        await sink.close()
