"""Forgetting what is long over: a small piece with every pass of the reconciler."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy.engine import Connection

from maintd.clock import Clock
from maintd.database import Database
from maintd.ledger import retention

#: Rows of one piece: on SQLite a sender waits for it for some tens of milliseconds at most.
_PIECE = 500
#: Between two walks through everything.
_REST = timedelta(hours=1)


class Retention:
    """Walks through misses, campaigns and runs, the oldest first, and rests."""

    def __init__(self, ledger: Database, *, keep: timedelta, clock: Clock) -> None:
        """Begins a walk.

        Args:
            ledger: What is walked through.
            keep: How long what is over is kept.
            clock: Says what is old, and measures the rests.
        """
        self._ledger = ledger
        self._keep = keep
        self._clock = clock
        self._walks: tuple[Callable[[Connection], int | None], ...] = (
            self._misses,
            self._campaigns,
            # Last, for campaigns keep their runs.
            self._runs,
        )
        self._walk = 0
        self._after = 0
        self._rests_until_s = clock.monotonic_s()

    def run_once(self) -> None:
        """Deletes one piece at most.

        Raises:
            Unavailable: The ledger does not answer.
        """
        if self._clock.monotonic_s() < self._rests_until_s:
            return
        with self._ledger.write() as connection:
            after = self._walks[self._walk](connection)
        if after is not None:
            self._after = after
            return
        self._walk, self._after = (self._walk + 1) % len(self._walks), 0
        if self._walk == 0:
            self._rests_until_s = self._clock.monotonic_s() + _REST.total_seconds()

    def _misses(self, connection: Connection) -> int | None:
        return retention.prune_misses(connection, after=self._after, before=self._before(), limit=_PIECE)

    def _runs(self, connection: Connection) -> int | None:
        return retention.prune_runs(connection, after=self._after, before=self._before(), limit=_PIECE)

    def _campaigns(self, connection: Connection) -> int | None:
        found = retention.old_campaign(connection, after=self._after, before=self._before())
        if found is None:
            return None
        left = retention.prune_campaign(connection, found, before=self._before(), limit=_PIECE)
        return self._after if left else found

    def _before(self) -> datetime:
        return self._clock.now() - self._keep
