"""Bad behaviour of the relay: at every step of a message, by chance, and noted down.

The notes are evidence: each fault that can leave a message in doubt excuses one doubt and not more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import IO

from maintd.smtp import sink
from maintd.smtp.faults import Action, Moment, Step, Then


class RelayFault(StrEnum):
    """What the relay does instead of its duty."""

    DROP = "drop"  #: closes the connection without an answer
    HANG = "hang"  #: never answers again
    SLOW = "slow"  #: answers as usual, later
    LATER = "later"  #: 451
    NO = "no"  #: 554
    CLOSING = "closing"  #: 421, and closes
    GARBAGE = "garbage"  #: bytes that are no reply
    NUL = "nul"  #: a NUL within the code of a reply
    PARTIAL = "partial"  #: the beginning of a reply, and closes
    TWICE = "twice"  #: the usual answer, two times at once
    SWALLOW = "swallow"  #: no answer to this command, and the usual ones to those behind it
    TAKE_AND_DROP = "take-and-drop"  #: accepts the message, and closes before it says so
    TAKE_AND_HANG = "take-and-hang"  #: accepts the message and never says so
    TAKE_AND_FIN = "take-and-fin"  #: accepts the message, says so, and closes at once
    HOLD = "hold"  #: keeps back its answer until a blow has fallen
    HOLD_LONG = "hold-long"  #: keeps it back for so long that whoever waits may have given up


_STEPS = (Step.CONNECT, Step.HELLO, Step.RESET, *(Step.MAIL, Step.RCPT, Step.DATA, Step.DOT) * 3)
_ANYWHERE = (
    RelayFault.DROP,
    RelayFault.HANG,
    RelayFault.SLOW,
    RelayFault.LATER,
    RelayFault.CLOSING,
    RelayFault.GARBAGE,
    RelayFault.NUL,
    RelayFault.PARTIAL,
    RelayFault.TWICE,
    RelayFault.SWALLOW,
)
_AT_DOT = (RelayFault.TAKE_AND_DROP, RelayFault.TAKE_AND_HANG, RelayFault.TAKE_AND_FIN)
#: Read, and then it is known that the message is not accepted: no doubt comes of them.
_DEFINITE = frozenset({RelayFault.LATER, RelayFault.NO, RelayFault.CLOSING, RelayFault.SLOW, RelayFault.HOLD})

_USUAL = {Step.CONNECT: "220 sink.invalid ESMTP", Step.DATA: "354 End with a dot"}
_LATE_S = 0.15
#: Nobody gives up an answer that comes sooner.
PATIENT_S = 4.0
_STORM = 100  # answers


@dataclass(frozen=True, kw_only=True)
class Weather:
    """How often which fault happens at which step; what is not listed does not.

    Attributes:
        chances: Of one answer.
        storm: What happens to every answer at a step for a while, from so many accepted messages on.
        lax: It takes MAIL within a transaction, and keeps the recipients that it has.
    """

    chances: tuple[tuple[Step, RelayFault, float], ...]
    storm: tuple[int, Step, RelayFault] | None = None
    lax: bool = False

    def __str__(self) -> str:
        storm = [f"storm {self.storm[1]}:{self.storm[2]}"] if self.storm else []
        return ", ".join([*(f"{step}:{fault}" for step, fault, _ in self.chances), *storm]) or "clear"


CLEAR = Weather(chances=())


def any_weather(draw: random.Random, *, people: int) -> Weather:
    """Some weather: clear, or up to four kinds of faults; now and then one more that is a storm."""
    kinds = [(step, fault) for step in _STEPS for fault in _ANYWHERE]
    kinds += [(Step.DOT, fault) for fault in _AT_DOT] * 3
    kinds += [(step, RelayFault.NO) for step in (Step.MAIL, Step.RCPT, Step.DATA, Step.DOT)]
    chosen = draw.sample(kinds, draw.choice([0, 1, 2, 4]))
    storms = [(Step.DOT, RelayFault.TAKE_AND_DROP), (Step.DOT, RelayFault.DROP), (Step.DATA, RelayFault.NO)]
    storm = (int(draw.uniform(0, 0.9) * people), *draw.choice(storms)) if draw.random() < 0.1 else None
    return Weather(chances=tuple((*kind, _chance(draw, kind)) for kind in chosen), storm=storm)


def _chance(draw: random.Random, kind: tuple[Step, RelayFault]) -> float:
    step, fault = kind
    rare = step not in (Step.CONNECT, Step.HELLO, Step.RESET)
    hangs = fault in (RelayFault.HANG, RelayFault.TAKE_AND_HANG, RelayFault.SWALLOW)
    return draw.uniform(0.001, 0.004 if hangs else 0.03) if rare else draw.uniform(0.1, 0.5)


@dataclass(frozen=True, kw_only=True)
class Noted:
    """One thing that the relay did.

    Attributes:
        recipient: Of the message concerned; empty before there is one.
    """

    step: Step
    fault: RelayFault
    recipient: str

    @property
    def leaves_doubt(self) -> bool:
        """Whether a message may be in doubt because of it: at its dot, or because the replies went out of step."""
        if self.fault in (RelayFault.TWICE, RelayFault.SWALLOW):
            return self.step in (Step.MAIL, Step.RCPT, Step.DATA, Step.DOT, Step.RESET)
        return self.step is Step.DOT and self.fault not in _DEFINITE


@dataclass
class Relay:
    """The script of a sink: the weather, and the grip in which answers are held. Called in the sink's event loop.

    Attributes:
        noted: Everything that it did.
        calm: It behaves.
        held_from: Answers to dots are held once so many messages have been accepted.
    """

    weather: Weather
    draw: random.Random
    accepted: Callable[[], int]
    notes: Path
    noted: list[Noted] = field(default_factory=list)
    calm: bool = False
    held_from: int | None = None
    _grip: asyncio.Event = field(default_factory=asyncio.Event)
    _held: list[tuple[Moment, float]] = field(default_factory=list)
    _storm_left: int = _STORM
    _file: IO[str] | None = None

    def __call__(self, moment: Moment) -> Action | None:
        if self.calm:
            return None
        if moment.step is Step.DOT and self.held_from is not None and self.accepted() >= self.held_from:
            return self._hold(moment)
        fault = self._fault(moment.step)
        if fault is None:
            return None
        self._note(moment, fault)
        return _ACTIONS[fault](_USUAL.get(moment.step, "250 2.0.0 OK"), moment.step)

    @property
    def holding(self) -> int:
        """How many answers it holds back."""
        return len(self._held)

    def release(self) -> None:
        """Gives the answers that are held; to be called in the event loop of the sink."""
        now_s = asyncio.get_running_loop().time()
        for moment, since_s in self._held:
            self._note(moment, RelayFault.HOLD_LONG if now_s - since_s > PATIENT_S else RelayFault.HOLD)
        self._held.clear()
        self.held_from = None
        self._grip.set()
        self._grip = asyncio.Event()

    def settle_down(self) -> None:
        """Behaves from now on."""
        self.calm = True
        self.release()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _fault(self, step: Step) -> RelayFault | None:
        if self.weather.storm is not None and self._storm_left:
            begins, at, fault = self.weather.storm
            if step is at and self.accepted() >= begins:
                self._storm_left -= 1
                return fault
        for at, fault, chance in self.weather.chances:
            if step is at and self.draw.random() < chance:
                return fault
        return None

    def _hold(self, moment: Moment) -> Action:
        self._held.append((moment, asyncio.get_running_loop().time()))
        accept = self.draw.random() < 0.5
        reply = "250 2.0.0 Kept" if accept else "451 4.3.0 Not now"
        return Action(reply=reply, accept=accept, after=self._grip)

    def _note(self, moment: Moment, fault: RelayFault) -> None:
        noted = Noted(step=moment.step, fault=fault, recipient=moment.recipient)
        self.noted.append(noted)
        if self._file is None:
            self._file = self.notes.open("a", buffering=1)
        self._file.write(json.dumps(vars(noted)) + "\n")


def _later(usual: str, step: Step) -> Action:
    late = asyncio.Event()
    asyncio.get_running_loop().call_later(_LATE_S, late.set)
    return Action(reply=usual, accept=step is Step.DOT, after=late)


def _twice(usual: str, step: Step) -> Action:
    line = usual.encode() + b"\r\n"
    return Action(reply=line + line, accept=step is Step.DOT)


_ACTIONS: Mapping[RelayFault, Callable[[str, Step], Action]] = {
    RelayFault.DROP: lambda _usual, _step: Action(then=Then.DROP),
    RelayFault.HANG: lambda _usual, _step: Action(then=Then.HANG),
    RelayFault.SLOW: _later,
    RelayFault.LATER: lambda _usual, _step: Action(reply="451 4.3.0 Later"),
    RelayFault.NO: lambda _usual, _step: Action(reply="554 5.7.1 No"),
    RelayFault.CLOSING: lambda _usual, _step: Action(reply="421 4.3.2 Closing", then=Then.DROP),
    RelayFault.GARBAGE: lambda _usual, _step: Action(reply=b"\xff\xfe banana\r\n"),
    RelayFault.NUL: lambda _usual, _step: Action(reply=b"25\x000 2.0.0 OK\r\n"),
    RelayFault.PARTIAL: lambda _usual, _step: Action(reply=b"250-to be", then=Then.DROP),
    RelayFault.TWICE: _twice,
    RelayFault.SWALLOW: lambda _usual, _step: Action(),
    RelayFault.TAKE_AND_DROP: lambda _usual, _step: Action(accept=True, then=Then.DROP),
    RelayFault.TAKE_AND_HANG: lambda _usual, _step: Action(accept=True, then=Then.HANG),
    RelayFault.TAKE_AND_FIN: lambda usual, _step: Action(reply=usual, accept=True, then=Then.DROP),
}


@contextlib.contextmanager
def lax_sinks() -> Iterator[None]:
    """While the block runs, sinks of this process take MAIL within a transaction and keep its recipients."""
    strict = sink._HANDLERS[b"MAIL"]

    def take(connection: sink.Connection, line: bytes) -> None:
        connection._sender = None
        strict(connection, line)

    sink._HANDLERS[b"MAIL"] = take
    try:
        yield
    finally:
        sink._HANDLERS[b"MAIL"] = strict
