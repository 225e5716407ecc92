"""Open connections to one relay, kept while there is something to send."""

from __future__ import annotations

import asyncio
import logging

from maintd.smtp.opening import open_session
from maintd.smtp.relays import Relay
from maintd.smtp.session import OpenFailed, Session, Timeouts

logger = logging.getLogger(__name__)


class SessionPool:
    """At most so many sessions; all of them belong to one event loop and one user."""

    def __init__(self, relay: Relay, *, connections: int, timeouts: Timeouts, hello: str) -> None:
        self._relay = relay
        self._connections = connections
        self._timeouts = timeouts
        self._hello = hello
        self._sessions: list[Session] = []
        #: What the relay allows, found by asking for more; forgotten when the pool is closed.
        self._most = connections

    @property
    def connections(self) -> int:
        """How many sessions there can be."""
        return self._connections

    async def ready(self, wanted: int) -> list[Session]:
        """Idle, usable sessions: as many as wanted, as allowed and as the relay lets us open; at least one.

        Raises:
            OpenFailed: Not a single one could be opened.
        """
        self._sessions = [session for session in self._sessions if session.usable]
        missing = min(wanted, self._most) - len(self._sessions)
        if missing > 0:
            await self._open(missing)
        return self._sessions[:wanted]

    async def _open(self, count: int) -> None:
        opened = await asyncio.gather(*(self._open_one() for _ in range(count)), return_exceptions=True)
        refusals = []
        for session in opened:
            if isinstance(session, OpenFailed):
                refusals.append(session)
            elif isinstance(session, BaseException):
                raise session
            else:
                self._sessions.append(session)
        if refusals and not self._sessions:
            raise refusals[0]
        if refusals:
            self._most = len(self._sessions)
            logger.warning("relay allows %d connections: %s", self._most, refusals[0])

    async def _open_one(self) -> Session:
        return await open_session(self._relay, timeouts=self._timeouts, hello=self._hello)

    async def aclose(self) -> None:
        """Says goodbye on every connection."""
        sessions, self._sessions, self._most = self._sessions, [], self._connections
        await asyncio.gather(*(session.close() for session in sessions), return_exceptions=True)
