"""Open connections to the relays, kept while there is something to send."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from maintd.errors import Unavailable
from maintd.smtp.connection import Connection
from maintd.smtp.relays import Relay
from maintd.smtp.route import Manner, Route
from maintd.smtp.shares import shares


class SessionPool:
    """At most so many connections, divided by weight between the relays that take mail.

    All of them belong to one event loop and one user.
    """

    def __init__(self, relays: Sequence[Relay], *, connections: int, manner: Manner) -> None:
        """Opens nothing yet.

        Args:
            relays: At least one.
            connections: The most of this pool, to all of them together.
            manner: How connections are opened.

        Raises:
            ValueError: A relay has a cap, and there is nobody to count.
        """
        self._routes = [Route(relay, manner) for relay in relays]
        self._connections = connections
        self._draw = manner.draw
        self._start = manner.draw()

    @property
    def connections(self) -> int:
        """How many connections there can be."""
        return self._connections

    async def ready(self, wanted: int) -> list[Connection]:
        """Idle, usable connections: as many as wanted, as allowed and as the relays let us open; at least one.

        Not to be called while one of them is sending.

        Raises:
            Unavailable: Not a single one could be opened; says what each relay said.
        """
        for route in self._routes:
            await route.tidy()
        await self._fill(min(max(wanted, len(self._open())), self._connections))
        for route in self._routes:
            route.probe()
        if not self._open():
            raise Unavailable("; ".join(route.said for route in self._routes if route.said))
        for route in self._routes:
            route.report()
        return self._some(min(wanted, self._connections))

    def _some(self, count: int) -> list[Connection]:
        """So many of the open ones, by weight: a window that is too small for all of them has no favourites."""
        counts = shares(
            count,
            weights=[route.relay.weight or 1 for route in self._routes],
            limits=[len(route.connections) for route in self._routes],
            start=self._draw(),
        )
        taken = zip(self._routes, counts, strict=True)
        return [connection for route, share in taken for connection in route.connections[:share]]

    async def aclose(self) -> None:
        """Says goodbye on every connection."""
        await asyncio.gather(*(route.aclose() for route in self._routes))
        self._start = self._draw()

    def _open(self) -> list[Connection]:
        return [connection for route in self._routes for connection in route.connections]

    async def _fill(self, total: int) -> None:
        tried: list[Route] = []
        while among := [route for route in self._candidates() if route not in tried]:
            await self._divide(total, among)
            tried += among
            if self._open():
                return

    def _candidates(self) -> list[Route]:
        """Who should take mail: those in service, stand-bys only without any other; where nobody is, everybody."""
        in_service = [route for route in self._routes if route.in_service]
        return [route for route in in_service if route.relay.weight] or in_service or self._routes

    async def _divide(self, total: int, among: Sequence[Route]) -> None:
        counts = shares(
            total,
            weights=[route.relay.weight or 1 for route in among],
            limits=[route.limit for route in among],
            start=self._start,
        )
        due = dict(zip(among, counts, strict=True))
        lacking = {route: count - len(route.connections) for route, count in due.items()}
        lacking = {route: count for route, count in lacking.items() if count > 0}
        await self._shed(len(self._open()) + sum(lacking.values()) - total, due)
        await asyncio.gather(*(route.open(count) for route, count in lacking.items()))

    async def _shed(self, excess: int, due: dict[Route, int]) -> None:
        """Closes what others are due, where there is more than is due."""
        for route in self._routes:
            count = min(excess, len(route.connections) - due.get(route, 0))
            if count > 0:
                excess -= count
                await route.shed(count)
