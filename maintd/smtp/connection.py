"""A session that knows how it has fared, and when it has done its share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from maintd.smtp.session import Messages, Phase, Result, Session, Verdict, Watcher

#: Refusals in a row that are not about a recipient, until another connection is tried: some relays have had enough of
#: one connection and say so to every message.
MOST_REFUSALS = 5


class Connection:
    """A session to send over; see `Session` for what it promises."""

    def __init__(self, session: Session, *, messages: int | None, permitted: Callable[[], bool]) -> None:
        """Begins to count.

        Args:
            session: A new one.
            messages: How many it may carry; None: any number.
            permitted: Whether a message may be begun on it now.
        """
        self._session = session
        self._permitted = permitted
        self._refusals = 0
        self._withdrawn = False
        #: How many messages it may still carry. Give it no more.
        self.room = sys.maxsize if messages is None else messages
        #: It was given a message, and not taken back.
        self.tried = False
        #: The relay has taken a message on it, or said something about a recipient.
        self.proved = False
        #: What became of the latest message.
        self.said = ""

    @property
    def usable(self) -> bool:
        """Whether it is idle and should get another message."""
        return self._session.usable and self.room > 0 and self._refusals < MOST_REFUSALS and self._permitted()

    async def send_all(self, messages: Messages, *, watcher: Watcher) -> None:
        """Sends messages in order; see `Session.send_all`."""
        await self._session.send_all(messages, watcher=_Counting(self, watcher))

    async def close(self) -> None:
        """Says goodbye if idle, else drops the connection."""
        await self._session.close()

    def abort(self) -> None:
        """Drops the connection and whatever is not yet written."""
        self._session.abort()

    def may_write_dot(self, permission: Callable[[], bool]) -> bool:
        """Whether a message may be sent after all. If not, the connection ends by us and not by the relay."""
        self._withdrawn = not (self._permitted() and permission())
        return not self._withdrawn

    def count(self, result: Result) -> None:
        """Takes in what became of a message."""
        if not result.tried or self._withdrawn:
            return
        self.tried = True
        self.room -= 1
        self.said = str(result.reply or result.detail)
        refused = result.verdict in (Verdict.REJECTED, Verdict.DEFERRED) and result.reply is not None
        if result.verdict is Verdict.ACCEPTED or (refused and result.phase is Phase.RCPT):
            self.proved, self._refusals = True, 0
        elif refused:
            self._refusals += 1


class _Counting:
    """Stands between a session and who watches it."""

    def __init__(self, connection: Connection, watcher: Watcher) -> None:
        self._connection = connection
        self._watcher = watcher

    def may_write_dot(self, index: int) -> bool:
        return self._connection.may_write_dot(partial(self._watcher.may_write_dot, index))

    def result(self, index: int, result: Result) -> None:
        self._connection.count(result)
        self._watcher.result(index, result)
