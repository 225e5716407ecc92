"""What is to happen in one performance, made from its seed alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from tests.chaos.weather import CLEAR, Weather, any_weather


class Dialect(StrEnum):
    """What the ledger is kept in."""

    SQLITE = "sqlite"  #: a file
    POSTGRESQL = "postgresql"  #: a database of a server that all performances share, or of one of its own


class Troupe(StrEnum):
    """Which processes there are."""

    UP = "up"  #: one tree, `maintd up`
    APART = "apart"  #: a beat and workers that take all queues, each by itself
    HOSTS = "hosts"  #: the same, each worker with a state directory of its own, as on different hosts


class Policy(StrEnum):
    """What is done with a doubt."""

    NEVER_DUPLICATE = "never_duplicate"  #: parked, and named
    NEVER_LOSE = "never_lose"  #: sent again, as often as `max_copies` allows


class Fault(StrEnum):
    """What befalls the processes and what they stand on; see `faults` for how."""

    KILL_SENDER = "kill-sender"  #: SIGKILL of a process that holds a batch
    KILL_MAIN = "kill-main"  #: SIGKILL of `maintd up`, or of the beat
    KILL_ALL = "kill-all"  #: SIGKILL of every process at once
    TERMINATE = "terminate"  #: SIGTERM to `maintd up`, or to a worker
    FREEZE = "freeze"  #: SIGSTOP of a process that holds a batch, and SIGCONT after its lease
    CLOCK = "clock"  #: every wall clock steps by an hour, to or fro
    REDIS_KILLED = "redis-killed"  #: and back with what it had on its disk
    REDIS_EMPTIED = "redis-emptied"  #: and back with nothing
    WAKES_DOUBLED = "wakes-doubled"  #: many wake-ups more than there are slots
    WAKES_DROPPED = "wakes-dropped"  #: every wake-up that waits is taken out
    POWER_LOST = "power-lost"  #: all killed, the recordings' ends lost, and another boot
    DISK_FULL = "disk-full"  #: no room for the recorder for a while
    POSTGRESQL_CRASHED = "postgresql-crashed"  #: stopped at once, and started again
    LEDGER_RESTORED = (
        "ledger-restored"  #: a copy of this moment takes its place later, and an operator accepts it
    )
    RELAY_AWAY = "relay-away"  #: one stops listening and drops its connections, for a while
    SUPPRESS = "suppress"  #: some who were not claimed yet come onto the suppression list


#: The same in every draw, so that each is met in proportion.
_ALWAYS_POSSIBLE = (
    Fault.KILL_SENDER,
    Fault.KILL_SENDER,
    Fault.KILL_MAIN,
    Fault.KILL_ALL,
    Fault.TERMINATE,
    Fault.FREEZE,
    Fault.CLOCK,
    Fault.REDIS_KILLED,
    Fault.REDIS_EMPTIED,
    Fault.WAKES_DOUBLED,
    Fault.WAKES_DROPPED,
    Fault.POWER_LOST,
    Fault.DISK_FULL,
    Fault.LEDGER_RESTORED,
    Fault.RELAY_AWAY,
    Fault.SUPPRESS,
)
#: What is lost with them cannot be made good when the ledger is restored besides: the last replies, and who was
#: suppressed since.
_NOT_BESIDE_RESTORED = frozenset({Fault.POWER_LOST, Fault.SUPPRESS, Fault.LEDGER_RESTORED})


@dataclass(frozen=True, kw_only=True)
class Blow:
    """One fault at one moment.

    Attributes:
        at: The moment: how much of the audience the relay has accepted, from 0 to 1.
        held: The relay holds back its answers to dots from that moment until the fault has struck, so that a dot is
            open on every connection.
        away_s: How long whatever it takes away stays away.
        draw: Seed of what is left to choose when it strikes.
    """

    fault: Fault
    at: float
    held: bool
    away_s: float
    draw: int


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One performance.

    Attributes:
        people: How many are to be mailed.
        senders: Mail processes.
        connections: To the relay, of each of them.
        batch: Deliveries in one claim.
        blows: In the order of their moments.
        weather: How the relays behave until all blows have fallen.
        relays: How many there are: of two one gets twice as much as the other, a third one stands by.
        lanes: Some domains have limits of their own, and so have the campaign and all mail together.
        without: Guards of the product that are taken out.
    """

    seed: int
    people: int
    dialect: Dialect = Dialect.SQLITE
    policy: Policy = Policy.NEVER_DUPLICATE
    troupe: Troupe = Troupe.APART
    senders: int = 1
    connections: int = 4
    batch: int = 50
    blows: tuple[Blow, ...] = ()
    weather: Weather = CLEAR
    relays: int = 1
    lanes: bool = False
    without: frozenset[str] = frozenset()

    @property
    def own_server(self) -> bool:
        """Whether it needs a PostgreSQL server that nobody else uses."""
        return any(blow.fault is Fault.POSTGRESQL_CRASHED for blow in self.blows)

    @property
    def max_copies(self) -> int:
        """Messages to one person, at most."""
        return 3 if self.policy is Policy.NEVER_LOSE else 1

    def __str__(self) -> str:
        blows = " ".join(f"{blow.fault}@{blow.at:.0%}{'!' if blow.held else ''}" for blow in self.blows)
        where = f"{self.dialect} {self.troupe} {self.senders}x{self.connections}/{self.batch} {self.policy}"
        where += f" {self.relays} relays" * (self.relays > 1) + " lanes" * self.lanes
        return f"{where} | {blows} | {self.weather}"


def scenario_of(seed: int, *, people: int) -> Scenario:
    """The scenario of a seed."""
    draw = random.Random(seed)
    dialect = draw.choice(list(Dialect))
    policy = draw.choices(list(Policy), weights=[2, 1])[0]
    return Scenario(
        seed=seed,
        people=people,
        dialect=dialect,
        policy=policy,
        troupe=draw.choice(list(Troupe)),
        senders=draw.choice([1, 2, 2]),
        connections=draw.choice([2, 4, 8]),
        batch=draw.choice([20, 50, 200]),
        blows=_blows(draw, _possible(dialect)),
        weather=any_weather(draw, people=people),
        relays=draw.choice([1, 1, 2, 3]),
        lanes=draw.random() < 0.25,
    )


def _possible(dialect: Dialect) -> list[Fault]:
    crash = [Fault.POSTGRESQL_CRASHED] if dialect is Dialect.POSTGRESQL else []
    return [*_ALWAYS_POSSIBLE, *crash]


def _blows(draw: random.Random, possible: Sequence[Fault]) -> tuple[Blow, ...]:
    moments = sorted(_moment(draw) for _ in range(draw.choice([1, 2, 2, 3])))
    faults = _compatible([draw.choice(possible) for _ in moments])
    return tuple(
        Blow(
            fault=fault,
            at=at,
            held=at > 0 and draw.random() < 0.5,
            away_s=draw.choice([0.1, 0.5, 1.5, 3.0]),
            draw=draw.getrandbits(32),
        )
        for fault, at in zip(faults, moments, strict=True)
    )


def _compatible(faults: list[Fault]) -> list[Fault]:
    if Fault.LEDGER_RESTORED not in faults:
        return faults
    kept = faults.index(Fault.LEDGER_RESTORED)
    return [
        Fault.KILL_SENDER if fault in _NOT_BESIDE_RESTORED and place != kept else fault
        for place, fault in enumerate(faults)
    ]


def _moment(draw: random.Random) -> float:
    return 0.0 if draw.random() < 0.15 else draw.uniform(0.01, 0.98)
