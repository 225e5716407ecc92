"""One relay as one process has found it: what is open to it, and whether it takes mail at present."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from maintd.clock import Clock
from maintd.errors import Unavailable
from maintd.retry import Backoff
from maintd.smtp.connection import Connection
from maintd.smtp.leases import Cap, Lease, Leases
from maintd.smtp.opening import open_session
from maintd.smtp.relays import Relay
from maintd.smtp.session import OpenFailed, Phase, Timeouts

logger = logging.getLogger(__name__)

_WAITS = Backoff(first=timedelta(seconds=1), longest=timedelta(minutes=5))
#: Connections in a row that ended before anything came of them, until the relay is to blame. One message by itself,
#: which is tried three times, must not set it aside.
_MOST_LOST = 4


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How connections are opened.

    Attributes:
        timeouts: For opening and for every message.
        hello: The name to introduce ourselves by in EHLO.
        clock: Measures how long a relay is set aside.
        draw: Gives numbers from 0.0 up to 1.0.
        cap: How leases are had; needed where a relay has a cap.
    """

    timeouts: Timeouts
    hello: str
    clock: Clock
    draw: Callable[[], float]
    cap: Cap | None = None


class Route:
    """The way to one relay.

    A relay that fails is set aside, each time for longer, until something comes of a connection to it again. One that
    opens after it had failed is on probation: it gets a single connection until that has proved itself.

    Attributes:
        connections: What is open.
        in_service: It has not failed, or has opened again since.
        said: Why it takes no mail, or no more of it, with its name.
    """

    def __init__(self, relay: Relay, manner: Manner) -> None:
        """Opens nothing yet.

        Raises:
            ValueError: The relay has a cap, and there is nobody to count.
        """
        self.relay = relay
        self.connections: list[Connection] = []
        self.in_service = True
        self.said = ""
        self._manner = manner
        self._leases = _leases(relay, manner)
        self._leased: dict[Connection, Lease] = {}
        #: What it allows, found by asking for more; forgotten when the pool is closed.
        self._most = sys.maxsize
        self._failures = 0
        self._aside_until_s = 0.0
        self._lost = 0
        self._probe: asyncio.Task[None] | None = None
        self._reported = False

    @property
    def limit(self) -> int:
        """How many connections it should get at most."""
        return 1 if self._failures else min(self._most, self.relay.connections or self._most)

    async def tidy(self) -> None:
        """Lets go of connections that are of no more use, and judges the relay by what came of them."""
        ended = [each for each in self.connections if not each.usable]
        self.connections = [each for each in self.connections if each not in ended]
        if any(each.proved for each in (*ended, *self.connections)):
            self._works()
        elif any(each.tried for each in ended):
            self._fares_ill(ended)
        await self._close(ended)

    async def open(self, count: int) -> None:
        """Opens so many connections, or as many as relay and cap allow."""
        try:
            leases = await self._take(count)
        except Unavailable as error:
            self._falls_short(f"no connection to {self.relay.where} may be opened: {error}")
            return
        opened = await asyncio.gather(*(self._open_one(lease) for lease in leases), return_exceptions=True)
        refusals = []
        for connection in opened:
            if isinstance(connection, OpenFailed):
                refusals.append(connection)
            elif isinstance(connection, BaseException):
                raise connection
            else:
                self.connections.append(connection)
                self.in_service = True
        if refusals:
            self._falls_short(str(refusals[0]))
        elif len(leases) < count:
            self._is_full()

    def probe(self) -> None:
        """Tries, beside the mail, whether it opens again, if it was set aside for long enough."""
        over = self._manner.clock.monotonic_s() >= self._aside_until_s
        if not self.in_service and over and (self._probe is None or self._probe.done()):
            self._probe = asyncio.create_task(self.open(1))

    async def shed(self, count: int) -> None:
        """Closes so many connections."""
        kept = len(self.connections) - count
        self.connections, surplus = self.connections[:kept], self.connections[kept:]
        await self._close(surplus)

    def report(self) -> None:
        """Says once in a spell that it takes no mail, for others take its share and nobody else would notice."""
        if not self.in_service and not self._reported:
            self._reported = True
            logger.warning("%s; other relays take its share meanwhile", self.said)

    async def aclose(self) -> None:
        """Closes everything; how the relay fared is remembered."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.gather(self._probe, return_exceptions=True)
        await self.tidy()
        await self.shed(len(self.connections))
        self._most = sys.maxsize
        if self._leases is not None:
            await self._leases.aclose()

    async def _take(self, count: int) -> Sequence[Lease | None]:
        return [None] * count if self._leases is None else await self._leases.take(count)

    async def _open_one(self, lease: Lease | None) -> Connection:
        try:
            async with asyncio.timeout(None) as limit:
                if lease is not None:
                    lease.on_end = lambda: limit.reschedule(0.0)
                session = await open_session(
                    self.relay, timeouts=self._manner.timeouts, hello=self._manner.hello
                )
        except TimeoutError:
            await self._give_back([lease])
            what = f"{self.relay.where} did not open: the lease ran out on which it was to be opened"
            raise OpenFailed(what, phase=Phase.CONNECT, reply=None) from None
        except OpenFailed:
            await self._give_back([lease])
            raise
        connection = Connection(
            session, messages=self.relay.messages, permitted=lambda: self._is_permitted(lease)
        )
        if lease is not None:
            lease.on_end = connection.abort
            self._leased[connection] = lease
        return connection

    def _is_permitted(self, lease: Lease | None) -> bool:
        return lease is None or (self._leases is not None and self._leases.lasts(lease))

    async def _close(self, connections: Sequence[Connection]) -> None:
        if connections:
            await asyncio.gather(*(each.close() for each in connections), return_exceptions=True)
            await self._give_back([self._leased.pop(each, None) for each in connections])

    async def _give_back(self, leases: Sequence[Lease | None]) -> None:
        if self._leases is not None:
            await self._leases.give_back([lease for lease in leases if lease is not None])

    def _works(self) -> None:
        if self._reported:
            logger.info("%s takes mail again", self.relay.where)
        self._failures, self._lost, self._reported, self.said = 0, 0, False, ""

    def _fares_ill(self, ended: Sequence[Connection]) -> None:
        self._lost += sum(each.tried for each in ended)
        if not self.connections and self._lost >= (1 if self._failures else _MOST_LOST):
            said = next(each.said for each in reversed(ended) if each.tried)
            self._fails(f"{self.relay.where} takes no message; the last it said: {said}")

    def _is_full(self) -> None:
        most = self.relay.connections
        self._most = len(self.connections)
        self.said = (
            f"all {most} connections that may be open to {self.relay.where} are taken by other processes, "
            "or Redis was started a moment ago and does not know yet"
        )

    def _falls_short(self, why: str) -> None:
        """No connection, or none any more, could be opened."""
        if not self.connections:
            self._fails(why)
            return
        self._most = len(self.connections)
        logger.warning("%d connections are open to %s, no more: %s", self._most, self.relay.where, why)

    def _fails(self, why: str) -> None:
        self.in_service, self.said, self._lost = False, why, 0
        self._failures += 1
        wait = _WAITS.wait(failures=self._failures, spread=self._manner.draw())
        self._aside_until_s = self._manner.clock.monotonic_s() + wait.total_seconds()


def _leases(relay: Relay, manner: Manner) -> Leases | None:
    if relay.connections is None:
        return None
    if manner.cap is None:
        raise ValueError(f"{relay.where} has a cap, and there is nobody to count")
    return Leases(relay, most=relay.connections, cap=manner.cap, clock=manner.clock)
