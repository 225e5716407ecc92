"""The cap on the connections to a relay, over all processes of all hosts: each connection needs a lease."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

from maintd.clock import Clock
from maintd.errors import Unavailable
from maintd.smtp.relays import Relay

logger = logging.getLogger(__name__)

#: Of the time that a lease is granted for. The last tenth is for closing the connection: nothing closes at once.
_USABLE = 0.9
#: No message is begun in the last quarter, so that hardly ever one is cut off from its answer.
_RESERVE = 0.25
_RENEWED_EVERY = 0.25


class LeaseBook(Protocol):
    """Where the leases of all processes are counted. Its methods block, and may be called from any thread."""

    def take_leases(self, relay: str, tokens: Sequence[str], *, cap: int, ttl: timedelta) -> set[str]:
        """Grants new leases as far as there is room.

        It does not while it cannot know of every lease that was granted and may still be held.

        Raises:
            Unavailable: It does not answer.
        """
        ...

    def renew_leases(self, relay: str, tokens: Sequence[str], *, cap: int, ttl: timedelta) -> set[str]:
        """Renews leases that are still held; those it has lost as far as there is room.

        Returns:
            Those that are renewed.

        Raises:
            Unavailable: It does not answer.
        """
        ...

    def drop_leases(self, relay: str, tokens: Sequence[str]) -> None:
        """Ends leases.

        Raises:
            Unavailable: It does not answer; they run out by themselves.
        """
        ...


@dataclass(kw_only=True, eq=False)
class Lease:
    """The right to one connection, which lasts as long as it is renewed.

    Attributes:
        until_s: When the connection must be closed, on this process's monotonic clock.
        on_end: Closes it at once.
    """

    token: str
    until_s: float
    on_end: Callable[[], object] = field(default=lambda: None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Cap:
    """How leases are had.

    Attributes:
        book: Where they are counted.
        ttl: How long each is granted for; equal in all processes.
        new_token: Makes names that nobody else has.
        left_to_others: So many of a relay's connections this process leaves free, though it may always have one.
    """

    book: LeaseBook
    ttl: timedelta
    new_token: Callable[[], str]
    left_to_others: int = 0


class Leases:
    """One process's leases on connections to one relay; they are renewed as long as there are any."""

    def __init__(self, relay: Relay, *, most: int, cap: Cap, clock: Clock) -> None:
        """Begins with none.

        Args:
            relay: Where the connections lead.
            most: The cap.
            cap: How leases are had.
            clock: Tells when they end.
        """
        self._relay = relay
        self._most = most
        self._cap = cap
        self._clock = clock
        self._ttl_s = cap.ttl.total_seconds()
        self._held: dict[str, Lease] = {}
        self._keeper: asyncio.Task[None] | None = None
        #: One question at a time: a renewal must not bring back what was given back beside it.
        self._turn = asyncio.Lock()
        self._away = False

    def lasts(self, lease: Lease) -> bool:
        """Whether a message may be begun on its connection."""
        return self._clock.monotonic_s() < lease.until_s - _RESERVE * self._ttl_s

    async def take(self, count: int) -> list[Lease]:
        """Takes new leases: as many as there are, none at worst.

        Raises:
            Unavailable: The book does not answer.
        """
        tokens = [self._cap.new_token() for _ in range(count)]
        most = max(1, self._most - self._cap.left_to_others)
        async with self._turn:
            until_s = self._granted_now()
            granted = await asyncio.to_thread(
                self._cap.book.take_leases, self._relay.key, tokens, cap=most, ttl=self._cap.ttl
            )
        leases = [Lease(token=token, until_s=until_s) for token in tokens if token in granted]
        self._held |= {lease.token: lease for lease in leases}
        if leases and (self._keeper is None or self._keeper.done()):
            self._keeper = asyncio.create_task(self._keep())
        return leases

    async def give_back(self, leases: Iterable[Lease]) -> None:
        """Ends leases whose connections are closed or about to be in this turn of the event loop."""
        tokens = [lease.token for lease in leases if self._held.pop(lease.token, None)]
        if tokens:
            await asyncio.sleep(0)  # a connection that is dropped is closed with the loop's next turn
            async with self._turn:
                with contextlib.suppress(Unavailable):  # then they run out
                    await asyncio.to_thread(self._cap.book.drop_leases, self._relay.key, tokens)

    async def aclose(self) -> None:
        """Ends all of them."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self.give_back(list(self._held.values()))

    async def _keep(self) -> None:
        while self._held:
            await asyncio.sleep(min(_RENEWED_EVERY * self._ttl_s, self._left_s()))
            with contextlib.suppress(TimeoutError):  # an answer that comes later is of no use
                async with asyncio.timeout(self._left_s()):
                    await self._renew()
            self._end_what_is_over()

    async def _renew(self) -> None:
        async with self._turn:
            tokens, until_s = list(self._held), self._granted_now()
            try:
                renewed = await asyncio.to_thread(
                    self._cap.book.renew_leases, self._relay.key, tokens, cap=self._most, ttl=self._cap.ttl
                )
            except Unavailable as error:
                self._tell_once(error)
                return
        self._away = False
        for token in renewed & self._held.keys():
            self._held[token].until_s = until_s

    def _tell_once(self, error: Unavailable) -> None:
        if not self._away:
            self._away = True
            logger.warning("connections to %s cannot be counted: %s", self._relay.where, error)

    def _end_what_is_over(self) -> None:
        now_s = self._clock.monotonic_s()
        for lease in [lease for lease in self._held.values() if lease.until_s <= now_s]:
            del self._held[lease.token]
            lease.on_end()

    def _granted_now(self) -> float:
        """Until when a lease lasts that is asked for now: it is granted later, so it ends later there than here."""
        return self._clock.monotonic_s() + _USABLE * self._ttl_s

    def _left_s(self) -> float:
        ends = (lease.until_s for lease in self._held.values())
        return max(0.0, min(ends, default=math.inf) - self._clock.monotonic_s())
