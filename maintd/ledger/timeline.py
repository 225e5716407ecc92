"""Where in its own history the ledger is, and whether anything may happen outside.

Every commit that lets something happen outside moves the ledger's sequence: the mark of a window of mail, a firing, the
end of an enrolment. Each host remembers how far it has seen the ledger come. A ledger that stands before that has
forgotten what was done since: it was restored from a backup, or it is a standby that lagged behind. It is held then, by
a word in itself that every host reads, until a person accepts it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from maintd.database import Database
from maintd.errors import MaintdError, Unavailable
from maintd.ledger.tables import meta, timeline
from maintd.ledger.witness import Point, Witness, WitnessDamaged


class LedgerHeld(Unavailable):
    """The ledger is held: nothing may happen outside before a person has accepted it."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the ledger is held: {reason}. No mail is sent and no job runs until `maintd ledger accept`; "
            "`maintd ledger status` says more"
        )
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a ledger stands.

    Attributes:
        point: In its history.
        held: Why nothing may happen outside; None when all is well.
    """

    point: Point
    held: str | None


def standing(connection: Connection) -> Standing:
    """Where the ledger stands."""
    return _standing(connection.execute(sa.select(*_COLUMNS)).one())


def move(connection: Connection) -> Standing:
    """Moves the sequence. The last statement of its transaction, because everybody who moves it waits for this row."""
    moved = sa.update(timeline).values(sequence=timeline.c.sequence + 1).returning(*_COLUMNS)
    return _standing(connection.execute(moved).one())


def hold(connection: Connection, reason: str) -> None:
    """Holds the ledger; one that is held already keeps its reason."""
    connection.execute(sa.update(timeline).where(timeline.c.held.is_(None)).values(held=reason))


def accept(connection: Connection, was: Standing, *, epoch: int) -> bool:
    """Begins an epoch and lets the ledger go; False when somebody else has done so meanwhile."""
    assert epoch > was.point.epoch
    accepted = connection.execute(
        sa.update(timeline).where(timeline.c.epoch == was.point.epoch).values(epoch=epoch, held=None)
    )
    return accepted.rowcount == 1


_LEDGER_ID = sa.select(meta.c.value).where(meta.c.name == "ledger_id").scalar_subquery().label("ledger_id")
_COLUMNS = (timeline.c.epoch, timeline.c.sequence, timeline.c.held, _LEDGER_ID)


def _standing(row: sa.Row[Any, Any, Any, Any]) -> Standing:
    point = Point(ledger_id=row.ledger_id, epoch=row.epoch, sequence=row.sequence)
    return Standing(point=point, held=row.held)


class _WentBack(MaintdError):
    """The ledger cannot be, or is not certain to be, the one that this host has seen."""


class Timeline:
    """The ledger's history as one host knows it: the way to every write that depends on its going forward only."""

    def __init__(self, ledger: Database, *, witness: Witness | None = None, host: str = "this host") -> None:
        """Looks at nothing yet.

        Args:
            ledger: Whose history it is.
            witness: What this host has seen of it. Without one only a hold that others wrote is noticed.
            host: What reasons call this host.
        """
        self._ledger = ledger
        self._witness = witness
        self._host = host

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction that may write, in a ledger that has not gone back.

        Raises:
            LedgerHeld: It is held, or was just found to have gone back and is held from now on; nothing was written.
            Unavailable: The ledger does not answer, or the witness cannot be read.
        """
        with self._holding():
            seen = self._seen()
            with self._ledger.write() as connection:
                self._check(standing(connection), seen)
                yield connection

    @contextlib.contextmanager
    def forward(self) -> Iterator[Connection]:
        """The same, and when the block has ended something may happen outside: the sequence moves.

        The witness sees that before anything happens, so a ledger that lacks this commit will be noticed.

        Raises:
            LedgerHeld: As with `write`.
            Unavailable: The ledger does not answer, or the witness cannot be written; nothing may happen outside.
        """
        with self.write() as connection:
            yield connection
            moved = move(connection)
            if moved.held is not None:
                raise LedgerHeld(moved.held)
        self._remember(moved.point)

    def look(self) -> None:
        """Looks whether anything may happen outside, and remembers how far the ledger has come.

        Raises:
            LedgerHeld: It is held, or was just found to have gone back and is held from now on.
            Unavailable: The ledger does not answer, or the witness cannot be read or written.
        """
        with self._holding():
            seen = self._seen()
            with self._ledger.read() as connection:
                found = standing(connection)
            self._check(found, seen)
        if seen is None or seen.is_before(found.point):
            self._remember(found.point)

    def trouble(self) -> str | None:
        """Why nothing may happen outside; None when all is well. Nothing is written anywhere.

        Raises:
            Unavailable: The ledger does not answer, or the witness cannot be read.
        """
        try:
            seen = self._seen()
            with self._ledger.read() as connection:
                self._check(standing(connection), seen)
        except LedgerHeld as held:
            return held.reason
        except _WentBack as back:
            return str(back)
        return None

    def accept(self, was: Standing) -> Point | None:
        """Begins the next epoch, later than any that ledger or witness have seen, and lets the ledger go.

        Args:
            was: How the ledger stood when a person decided.

        Returns:
            Where it stands now; None when somebody else has accepted it meanwhile.

        Raises:
            Unavailable: The ledger does not answer, or the witness cannot be written.
        """
        epoch = 1 + max(was.point.epoch, self._epoch_seen())
        with self._ledger.write() as connection:
            if not accept(connection, was, epoch=epoch):
                return None
            point = standing(connection).point
        if self._witness is not None:
            self._witness.accept(point)
        return point

    def _remember(self, point: Point) -> None:
        try:
            if self._witness is not None:
                self._witness.advance(point)
        except WitnessDamaged as damaged:
            raise Unavailable(str(damaged)) from damaged  # the next look finds the same, and holds the ledger

    def _epoch_seen(self) -> int:
        try:
            seen = self._seen()
        except _WentBack:
            return 0
        return seen.epoch if seen is not None else 0

    def _seen(self) -> Point | None:
        """To be asked before the ledger is: others may move both meanwhile."""
        try:
            return None if self._witness is None else self._witness.seen()
        except WitnessDamaged as damaged:
            raise _WentBack(f"how far {self._host} has seen it come is unknown: {damaged}") from None

    def _check(self, found: Standing, seen: Point | None) -> None:
        if found.held is not None:
            raise LedgerHeld(found.held)
        if seen is None:
            return
        if seen.ledger_id != found.point.ledger_id:
            raise _WentBack(
                f"the state directory of {self._host} belongs to another ledger ({seen.ledger_id}); "
                f"this one is {found.point.ledger_id}"
            )
        if found.point.is_before(seen):
            raise _WentBack(
                f"it went back in time: it stands at {found.point}, and {self._host} has seen it at {seen}"
            )

    @contextlib.contextmanager
    def _holding(self) -> Iterator[None]:
        try:
            yield
        except _WentBack as back:
            with self._ledger.write() as connection:
                hold(connection, str(back))
            raise LedgerHeld(str(back)) from None
