"""What the flight recorder of a dead process proves. A recording is read only by whoever holds its lock.

The kernel frees the lock when the process has died, whichever way: then no further entry and no further dot can come.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from maintd.ledger.deliveries import Outcome
from maintd.ledger.states import DeliveryState
from maintd.mail.recording.entries import Binding, Damaged, Entry, Header, Kind, read_entries, read_header
from maintd.mail.recording.recorder import put_away

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a recorder has on one batch.

    Attributes:
        header: None when it cannot be read: then the rest is empty.
        unanswered: Recipients whose dot may have been written and was not answered.
        outcomes: What the replies did that were read, by recipient.
        intact: Nothing but whole, right entries up to the end of the file.
    """

    header: Header | None
    batch_id: int
    unanswered: frozenset[bytes]
    outcomes: Mapping[bytes, Outcome]
    intact: bool

    def same_boot(self, *, boot_id: str, machine_id: str) -> bool:
        """Whether it was written on that machine since it booted; never where boots have no id."""
        return (
            self.header is not None
            and boot_id != ""
            and (self.header.boot_id, self.header.machine_id) == (boot_id, machine_id)
        )

    def fact(self, recipient_key: bytes) -> Outcome | None:
        """What certainly became of a delivery: a reply to its last dot, or an acceptance whatever came after."""
        outcome = self.outcomes.get(recipient_key)
        if outcome is None or (recipient_key in self.unanswered and not _accepted(outcome)):
            return None
        return outcome


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What is known of a dead process's batch.

    Attributes:
        outcomes: Facts, to be merged into the ledger: of the unsettled, and every acceptance of the batch besides.
        doubtful: Unsettled whose dot may have been written and whose reply, if there was one, nobody has.
        unsent: Unsettled whose dot was certainly not written.
    """

    outcomes: list[Outcome]
    doubtful: list[bytes]
    unsent: list[bytes]


def judge(
    recording: Recording | None,
    *,
    recorder: str | None,
    boot_id: str,
    machine_id: str,
    unsettled: Collection[bytes],
) -> Judgement:
    """Tells apart what a dead process's recording proves of a batch and what nobody can know.

    A reply that was read always counts. That an intent is missing counts only in the recorder that the batch names,
    intact, and written since this machine booted: whatever a power failure swallowed was written before.

    Args:
        recording: On that batch; None when it is not here or its writer lives.
        recorder: The recorder that the batch names.
        boot_id: Of the judge's machine; see `recorder.this_boot`.
        machine_id: Of the judge's machine.
        unsettled: The batch's recipients below its mark whose deliveries are not settled.
    """
    if recording is None:
        return Judgement(outcomes=[], doubtful=list(unsettled), unsent=[])
    facts = {key: fact for key in unsettled if (fact := recording.fact(key)) is not None}
    unknown = [key for key in unsettled if key not in facts]
    complete = (
        recording.intact
        and recording.header is not None
        and recording.header.uid == recorder
        and recording.same_boot(boot_id=boot_id, machine_id=machine_id)
    )
    doubtful = [key for key in unknown if not complete or key in recording.unanswered]
    besides = [fact for key, fact in recording.outcomes.items() if _accepted(fact) and key not in facts]
    return Judgement(
        outcomes=[*facts.values(), *besides],
        doubtful=doubtful,
        unsent=[key for key in unknown if complete and key not in recording.unanswered],
    )


class Orphan:
    """A recording whose writer has died, held by its one successor; or one that was put away."""

    def __init__(self, path: Path) -> None:
        self.path = path
        #: Why it cannot be read to its end; known when it was read.
        self.damage: str | None = None

    @property
    def name(self) -> str:
        """What batches name it by."""
        return self.path.stem

    def recording(self, batch_id: int) -> Recording:
        """What it has on one batch; memory goes with the size of the batch, not of the file."""
        with self.path.open("rb") as file:
            return read_recording(file, batch_id=batch_id)

    def entries(self) -> Iterator[Entry]:
        """Every entry that can be read, in the order of writing, in flat memory."""
        read = 0
        try:
            with self.path.open("rb") as file:
                for entry in read_entries(file):
                    read += 1
                    yield entry
        except (Damaged, OSError) as error:
            self.damage = f"{error}, from entry {read + 1:,} on"

    def attempts(self) -> Iterator[tuple[Binding, Entry, Outcome | None]]:
        """Every dot and every reply that can be read, with the campaign it is of, in the order of writing.

        Of a reply comes what it did. Memory holds a binding for each batch, no more.
        """
        bound: dict[int, Binding] = {}
        try:
            for entry in self.entries():
                if entry.kind is Kind.BATCH:
                    bound[entry.batch_id] = entry.binding()
                elif entry.batch_id in bound:
                    did = entry.outcome() if entry.kind is Kind.REPLY else None
                    yield bound[entry.batch_id], entry, did
        except Damaged as error:
            self.damage = str(error)

    def facts(self) -> Iterator[tuple[Binding, Outcome]]:
        """Every reply that can be read, with the campaign it is of, in the order of writing.

        Only acceptances hold whatever the ledger says meanwhile. A refusal or a deferral is about one attempt.
        """
        return ((binding, did) for binding, _, did in self.attempts() if did is not None)

    def put_away(self, *, now: datetime) -> None:
        """Keeps it for its time, for the ledger has all that can be read; a damaged one's name says so."""
        if self.damage is not None:
            logger.warning(
                "the recording %s is damaged: %s; what can be read counts, what is missing proves nothing",
                self.path,
                self.damage,
            )
        try:
            self.path = put_away(self.path, damaged=self.damage is not None, now=now)
        except OSError as error:
            logger.warning("the recording %s cannot be put away: %s", self.path, error.strerror)


@contextlib.contextmanager
def adopt(path: Path) -> Iterator[Orphan | None]:
    """Holds a recording of the dead while the block runs; None when its writer lives or somebody else has it."""
    file = _open(path)
    if file is None:
        yield None
        return
    with file:
        yield Orphan(path) if _lock(file) else None


def orphans(directory: Path) -> Iterator[Orphan]:
    """Every recording of the dead in a directory, one after the other, each held until the next is asked for."""
    for path in sorted(directory.glob("*.rec")):
        with adopt(path) as orphan:
            if orphan is not None:
                yield orphan


def read_recording(file: BinaryIO, *, batch_id: int) -> Recording:
    """Reads what a recorder has on one batch, up to the first thing that is not as it was written."""
    found = _Found()
    try:
        for entry in read_entries(file):
            if entry.batch_id == batch_id:
                found.take(entry)
        intact = True
    except (Damaged, OSError):
        intact = False
    return Recording(
        header=read_header(file),
        batch_id=batch_id,
        unanswered=frozenset(found.unanswered),
        outcomes=found.outcomes,
        intact=intact,
    )


@dataclass(kw_only=True)
class _Found:
    unanswered: set[bytes] = field(default_factory=set)
    outcomes: dict[bytes, Outcome] = field(default_factory=dict)

    def take(self, entry: Entry) -> None:
        key = entry.recipient_key
        if entry.kind is Kind.INTENT:
            self.unanswered.add(key)
            return
        if entry.kind is not Kind.REPLY:
            return
        outcome = entry.outcome()
        self.unanswered.discard(key)
        if key not in self.outcomes or not _accepted(self.outcomes[key]):
            self.outcomes[key] = outcome


def _accepted(outcome: Outcome) -> bool:
    return outcome.state is DeliveryState.SENT


def _open(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("the recording %s cannot be read: %s", path, error.strerror)
        return None


def _lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    # Between opening and locking another successor may have been done with it.
    try:
        return os.path.samestat(os.fstat(file.fileno()), Path(file.name).stat())
    except FileNotFoundError:
        return False
