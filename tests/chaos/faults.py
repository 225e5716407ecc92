"""How each fault befalls a theatre: once the block begins it has struck, and when the block ends all is given back."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

import sqlalchemy as sa

from maintd.execution.queues import Queue
from maintd.keyspace import PREFIX
from maintd.ledger.deliveries import Delivery
from maintd.ledger.states import DeliveryState
from maintd.ledger.tables import batches
from maintd.mail.recording.entries import Damaged, read_entries, read_header
from maintd.mail.suppress import suppress
from tests.chaos.cast import send
from tests.chaos.scenario import Blow, Fault, Troupe
from tests.chaos.theatre import LEASE_S, Theatre
from tests.wire.site import lives, until


class Cause(StrEnum):
    """What befell a process that explains its doubts."""

    KILLED = "killed"  #: its recorder is whole
    FROZEN = "frozen"  #: others judged it while it lived
    POWERLESS = "powerless"  #: the end of its recorder may be lost


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What befell a process, and when, whatever the wall clocks said."""

    cause: Cause
    at: datetime


@dataclass(kw_only=True)
class Toll:
    """What the faults have done, for the checker to reckon with.

    Attributes:
        fates: What befell processes, one thing after the other, by pid.
        suppressed: Addresses that must not be mailed: suppressed before their batch was cut.
        struck: How often each fault did.
        restored_at: When the ledger went back in time, whatever the wall clocks said.
        held: How often it was held because of that, and accepted.
        cut: Connections on which a dot may have been open when their relay went away.
        unorderly: Processes that did not stop when they were asked to.
    """

    fates: dict[int, list[Fate]] = field(default_factory=dict)
    suppressed: set[str] = field(default_factory=set)
    struck: dict[Fault, int] = field(default_factory=dict)
    restored_at: datetime | None = None
    held: int = 0
    cut: int = 0
    unorderly: int = 0

    def blame(self, pid: int, cause: Cause) -> None:
        """Notes what is about to befall a process."""
        self.fates.setdefault(pid, []).append(Fate(cause=cause, at=datetime.now(UTC)))


@contextlib.contextmanager
def befalling(blow: Blow, theatre: Theatre, toll: Toll) -> Iterator[None]:
    """One fault."""
    with _FAULTS[blow.fault](theatre, toll, blow):
        toll.struck[blow.fault] = toll.struck.get(blow.fault, 0) + 1
        yield


@contextlib.contextmanager
def _kill_sender(theatre: Theatre, toll: Toll, blow: Blow) -> Iterator[None]:
    pid = _sender(theatre, blow)
    if pid is not None:
        toll.blame(pid, Cause.KILLED)
        send(pid, signal.SIGKILL)
    yield
    time.sleep(blow.away_s)
    theatre.cast.play()


@contextlib.contextmanager
def _kill_main(theatre: Theatre, toll: Toll, blow: Blow) -> Iterator[None]:
    send(theatre.cast.main, signal.SIGKILL)
    yield
    time.sleep(blow.away_s)
    theatre.cast.play()


@contextlib.contextmanager
def _kill_all(theatre: Theatre, toll: Toll, blow: Blow) -> Iterator[None]:
    for pid in theatre.cast.senders():
        toll.blame(pid, Cause.KILLED)
    theatre.cast.kill_everybody()
    yield
    time.sleep(blow.away_s)
    theatre.cast.play()


@contextlib.contextmanager
def _terminate(theatre: Theatre, toll: Toll, blow: Blow) -> Iterator[None]:
    tree = theatre.scenario.troupe is Troupe.UP
    pid = theatre.cast.main if tree else _sender(theatre, blow)
    yield  # it waits for the answers that the relay holds back
    if pid is not None and not theatre.cast.terminate([pid]):
        toll.unorderly += 1
    theatre.cast.play()


@contextlib.contextmanager
def _freeze(theatre: Theatre, toll: Toll, blow: Blow) -> Iterator[None]:
    pid = _sender(theatre, blow)
    if pid is not None:
        toll.blame(pid, Cause.FROZEN)
        send(pid, signal.SIGSTOP)
    yield
    time.sleep(LEASE_S + blow.away_s)
    if pid is not None:
        _await_judgement(theatre, pid)
        send(pid, signal.SIGCONT)


def _await_judgement(theatre: Theatre, pid: int) -> None:
    """Waits until a process holds nothing: in vain if the judge is struck too, or if it was stopped in a commit."""
    with contextlib.suppress(AssertionError):
        until(lambda: pid not in theatre.holders(), what="a judgement", within_s=20)


@contextlib.contextmanager
def _step_clock(theatre: Theatre, toll: Toll, blow: Blow) -> Iterator[None]:
    step = random.Random(blow.draw).choice([timedelta(hours=1), timedelta(hours=-1)])
    theatre.world.step_clocks(theatre.world.offset + step)
    yield


@contextlib.contextmanager
def _kill_redis(theatre: Theatre, toll: Toll, blow: Blow) -> Iterator[None]:
    theatre.valkey.kill()
    yield
    time.sleep(blow.away_s)
    theatre.valkey.start()


@contextlib.contextmanager
def _empty_redis(theatre: Theatre, toll: Toll, blow: Blow) -> Iterator[None]:
    with _kill_redis(theatre, toll, blow):
        theatre.valkey.forget()
        yield


@contextlib.contextmanager
def _double_wakes(theatre: Theatre, toll: Toll, blow: Blow) -> Iterator[None]:
    for queue in (Queue.MAIL_BULK, Queue.MAINTENANCE):
        theatre.wake(queue=queue, times=20)
    yield


@contextlib.contextmanager
def _drop_wakes(theatre: Theatre, toll: Toll, blow: Blow) -> Iterator[None]:
    yield
    until_s = time.monotonic() + blow.away_s
    with theatre.valkey.client() as client:
        while time.monotonic() < until_s:
            client.delete(*(PREFIX + queue for queue in Queue))


@contextlib.contextmanager
def _lose_power(theatre: Theatre, toll: Toll, blow: Blow) -> Iterator[None]:
    for pid in theatre.cast.senders():
        toll.blame(pid, Cause.POWERLESS)
    theatre.cast.kill_everybody()
    draw = random.Random(blow.draw)
    for recording in theatre.recorders:
        _lose_end(recording, draw)
    theatre.world.boot(blow.draw % 10**8)
    yield
    time.sleep(blow.away_s)
    theatre.cast.play()


def _lose_end(recording: Path, draw: random.Random) -> None:
    """Cuts off what had not reached the disk: behind an entry, or in the middle of one, or nothing."""
    size = recording.stat().st_size
    cut = draw.choice([draw.choice(_entry_ends(recording)), draw.randint(0, size), size])
    with recording.open("r+b") as file:
        file.truncate(cut)


def _entry_ends(recording: Path) -> list[int]:
    """Where the header of a recording and each of its entries end, in bytes."""
    with recording.open("rb") as file:
        if read_header(file) is None:
            return [0]
        ends = [file.tell()]
        with contextlib.suppress(Damaged):
            ends += [file.tell() for _ in read_entries(file)]
    return ends


@contextlib.contextmanager
def _fill_disk(theatre: Theatre, toll: Toll, blow: Blow) -> Iterator[None]:
    theatre.world.fill_disk(full=True)
    yield
    time.sleep(blow.away_s)
    theatre.world.fill_disk(full=False)


@contextlib.contextmanager
def _crash_postgresql(theatre: Theatre, toll: Toll, blow: Blow) -> Iterator[None]:
    assert theatre.postgresql is not None
    theatre.postgresql.crash()
    yield
    time.sleep(blow.away_s)
    theatre.postgresql.start()


@contextlib.contextmanager
def _restore_ledger(theatre: Theatre, toll: Toll, blow: Blow) -> Iterator[None]:
    campaign = theatre.campaign()
    copied = campaign is not None and campaign.enrolled_at is not None
    if copied:
        theatre.backup.take()
    yield
    time.sleep(blow.away_s)
    if copied:
        for pid in theatre.cast.senders():
            toll.blame(pid, Cause.KILLED)
        theatre.cast.kill_everybody()
        theatre.restore_ledger()
        toll.restored_at = datetime.now(UTC)
        went_back = theatre.went_back()
        theatre.cast.play()
        if went_back:
            until(theatre.is_held, what="that the ledger is held", within_s=90)
            toll.held += 1
            _accept(theatre, toll)
        theatre.cast.play()


def _accept(theatre: Theatre, toll: Toll) -> None:
    """What an operator does: nothing runs, every host replays its recordings, and the last one accepts the ledger."""
    if not theatre.cast.terminate(theatre.cast.mains()):
        toll.unorderly += 1
    *others, last = theatre.states
    for state in others:
        theatre.cast.command("ledger", "replay", MAINTD_STATE_DIR=str(state))
    theatre.cast.command("ledger", "accept", "--yes", MAINTD_STATE_DIR=str(last))


@contextlib.contextmanager
def _relay_away(theatre: Theatre, toll: Toll, blow: Blow) -> Iterator[None]:
    toll.cut += theatre.scenario.senders * theatre.scenario.connections
    with theatre.relays.one_away(random.Random(blow.draw)):
        yield
        time.sleep(blow.away_s)


@contextlib.contextmanager
def _suppress(theatre: Theatre, toll: Toll, blow: Blow) -> Iterator[None]:
    campaign = theatre.campaign()
    if campaign is not None and campaign.enrolled_at is not None:
        line = [one for one in theatre.deliveries() if one.state is DeliveryState.PENDING]
        chosen = {one.address for one in line[-10:]}
        suppress(theatre.ledger, sorted(chosen), reason="asked", now=campaign.created_at)
        # What is not in a batch by now is marked later than that, and so is not to be sent.
        toll.suppressed |= chosen & {one.address for one in _not_cut(theatre)}
    yield


def _not_cut(theatre: Theatre) -> list[Delivery]:
    with theatre.ledger.read() as connection:
        cut = connection.scalar(sa.select(sa.func.max(batches.c.hi))) or 0
    line = theatre.deliveries()
    return [
        one
        for one in line
        if one.state is DeliveryState.PENDING and one.ordinal >= cut and one.copies == one.failures == 0
    ]


def _sender(theatre: Theatre, blow: Blow) -> int | None:
    """One that holds a batch, if there is one."""
    draw = random.Random(blow.draw)
    holders = [pid for pid in theatre.holders() if lives(pid)]
    senders = theatre.cast.senders()
    return draw.choice(sorted(holders) or sorted(senders) or [None])


_FAULTS: Mapping[Fault, Callable[[Theatre, Toll, Blow], AbstractContextManager[None]]] = {
    Fault.KILL_SENDER: _kill_sender,
    Fault.KILL_MAIN: _kill_main,
    Fault.KILL_ALL: _kill_all,
    Fault.TERMINATE: _terminate,
    Fault.FREEZE: _freeze,
    Fault.CLOCK: _step_clock,
    Fault.REDIS_KILLED: _kill_redis,
    Fault.REDIS_EMPTIED: _empty_redis,
    Fault.WAKES_DOUBLED: _double_wakes,
    Fault.WAKES_DROPPED: _drop_wakes,
    Fault.POWER_LOST: _lose_power,
    Fault.DISK_FULL: _fill_disk,
    Fault.POSTGRESQL_CRASHED: _crash_postgresql,
    Fault.LEDGER_RESTORED: _restore_ledger,
    Fault.RELAY_AWAY: _relay_away,
    Fault.SUPPRESS: _suppress,
}
