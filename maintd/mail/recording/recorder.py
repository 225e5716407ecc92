"""The flight recorder: what a mail process did with each dot, in a file that outlives it.

An intent is written before the dot's bytes are handed to the socket, the reply as soon as it was read. Both are plain
writes into the page cache: they survive the death of the process by any signal. Nothing is forced to the disk, so they
may not survive the machine, and a reader takes that into account: see `recording.judge`.

A file is made under a temporary name, locked, given its header and only then named `<uid>.rec`. So a `.rec` that
nobody has locked belongs to the dead, and a `.tmp` was never used. When the ledger has everything that is in a file it
becomes `<uid>.done`, or `<uid>.damaged`, and is kept for some days: it makes a ledger good that went back in time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from maintd.clock import Clock
from maintd.errors import Unavailable
from maintd.ledger.deliveries import Outcome
from maintd.mail.recording.entries import (
    Binding,
    Header,
    batch_bytes,
    header_bytes,
    intent_bytes,
    reply_bytes,
)

#: A message takes some 100 bytes: this is a recording of 150,000, which is read in a good second at most.
ROLL_AT = 16 * 2**20

#: How long a recording is kept that the ledger has: longer than a backup is old when it is needed.
KEEP = timedelta(days=3)
DONE, DAMAGED = ".done", ".damaged"

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MACHINE_ID = Path("/etc/machine-id")


class RecorderFailed(Unavailable):
    """The recorder cannot be written: no entry, no dot."""


def recording_path(directory: Path, name: str) -> Path:
    """Where the recorder of that name writes."""
    return directory / f"{name}.rec"


def this_boot() -> str:
    """The running kernel's id, another after every boot (random(4)); empty where the system has none."""
    return _first_line(_BOOT_ID)


def this_machine() -> str:
    """The machine's id (machine-id(5)), else one that is made of the host's name."""
    known = _first_line(_MACHINE_ID)
    # A system that boots for the first time says "uninitialized".
    if re.fullmatch(r"[0-9a-f]{32}", known):
        return known
    return hashlib.sha256(platform.node().encode()).hexdigest()[:32]


class Recorder:
    """One process's recorder. Use it from one thread.

    A batch names the recorder when it is claimed, by `name`: call `roll` before a claim, `begin` right after it,
    `settled` when the ledger has all that is known of the batch, and `rest` when there is nothing to mail.
    """

    def __init__(self, new_file: Callable[[str], _File], *, uid: str, clock: Clock) -> None:
        self._new_file = new_file
        self._clock = clock
        #: What the batches that are claimed from now on name.
        self.name = uid
        self._file: _File | None = new_file(uid)
        self._rests = False
        self._open: set[int] = set()
        #: Batches of which nothing is written yet, not even whose they are.
        self._blank: dict[int, Binding] = {}

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        uid: str,
        boot_id: str,
        machine_id: str,
        clock: Clock,
        keep: timedelta = KEEP,
    ) -> Recorder:
        """Starts a recorder.

        Args:
            directory: Where recordings are; made if it is not there.
            uid: Random, never used before; at most 48 bytes.
            boot_id: See `this_boot`.
            machine_id: See `this_machine`.
            clock: Dates the recordings.
            keep: How long recordings are kept that the ledger has; older ones go whenever a file is begun.

        Raises:
            RecorderFailed: The file cannot be written.
        """

        def new_file(uid: str) -> _File:
            now = clock.now()
            header = Header(uid=uid, boot_id=boot_id, machine_id=machine_id, pid=os.getpid(), created_at=now)
            return _new_file(directory, header, kept_since=now - keep)

        return cls(new_file, uid=uid, clock=clock)

    def begin(self, batch_id: int, binding: Binding) -> None:
        """A batch that names this recorder was claimed: the recording is kept until it is settled.

        Args:
            batch_id: The batch.
            binding: Whose it is; goes before its first intent.
        """
        self._open.add(batch_id)
        self._blank[batch_id] = binding

    def intend(self, batch_id: int, recipient_key: bytes) -> None:
        """Writes that a dot is about to be handed to the socket.

        Raises:
            RecorderFailed: Nothing was written; the dot must not be either.
        """
        file = self._writing
        self._open.add(batch_id)
        if batch_id in self._blank:
            file.append(*batch_bytes(batch_id, self._blank[batch_id], after=file.crc))
            del self._blank[batch_id]
        file.append(*intent_bytes(batch_id, recipient_key, after=file.crc))

    def read(self, batch_id: int, outcome: Outcome) -> None:
        """Writes what a reply did that was read just now.

        Args:
            batch_id: The batch of the delivery.
            outcome: A fact. Details beyond 200 bytes are cut; empty texts count as none.

        Raises:
            RecorderFailed: Nothing was written. What was read stands all the same and belongs in the ledger.
            ValueError: The outcome is not a fact.
        """
        file = self._writing
        self._open.add(batch_id)
        file.append(*reply_bytes(batch_id, outcome, after=file.crc))

    def settled(self, batch_id: int) -> None:
        """The ledger has, in a commit, all that is known of a batch, and this process holds it no longer."""
        self._open.discard(batch_id)
        self._blank.pop(batch_id, None)

    def roll(self, *, uid: str, at: int = ROLL_AT) -> None:
        """Goes on after a rest, or starts a new file if the ledger has everything of one that is done with.

        A new file has a new name: a batch that still names one that was put away finds it gone, which proves nothing.

        Args:
            uid: Of the new file.
            at: Bytes from which on a file is done with; a broken one always is.

        Raises:
            RecorderFailed: The new file cannot be written; the old one, if it is still ours, is still in use.
        """
        if self._open:
            return
        if self._file is not None and not self._file.lock():
            self._file.close()  # somebody reads it, or has read it and put it away
            self._file = None
        self._rests = False
        old = self._file
        if old is None or old.size >= at or old.broken:
            self._file, self.name = self._new_file(uid), uid
            if old is not None:
                old.settle(now=self._clock.now())

    def rest(self) -> None:
        """Lets others have its file, unless a batch is open: who does not mail keeps nobody from reading it."""
        if self._file is not None and not self._open:
            self._file.unlock()
            self._rests = True

    def close(self) -> None:
        """Lets its file go. If a batch is open it is left for a successor to settle that from it."""
        file, self._file = self._file, None
        if file is not None:
            if self._open or not file.lock():
                file.close()
            else:
                file.settle(now=self._clock.now())

    @property
    def _writing(self) -> _File:
        if self._file is None or self._rests:
            raise RecorderFailed("the flight recorder rests: nothing is mailed before it goes on")
        return self._file


@dataclass(kw_only=True)
class _File:
    """A recording that is being written; its lock is held as long as it is open.

    Attributes:
        crc: Of everything in it, which the next entry's continues.
        size: In bytes.
        begins: The size of its header.
        broken: It ends in half an entry: what came behind that could not be read.
    """

    path: Path
    fd: int
    crc: int = 0
    size: int = 0
    begins: int = 0
    broken: bool = False

    def append(self, data: bytes, crc: int) -> None:
        """Writes all of it, or nothing and fails."""
        try:
            if self.broken:
                raise OSError("half an entry of an earlier failure could not be taken back")
            written = os.write(self.fd, data)
            if written < len(data):
                self._take_back()
                raise OSError(f"there was room for {written} of the {len(data)} bytes of an entry")
        except OSError as error:
            raise _failed(self.path.parent, error) from error
        self.crc = crc
        self.size += written

    def _take_back(self) -> None:
        self.broken = True
        os.ftruncate(self.fd, self.size)
        self.broken = False

    def settle(self, *, now: datetime) -> None:
        """Puts it away, for the ledger has it all, or deletes it if there is nothing in it; and closes it."""
        # While it is still locked, so that nobody takes it for an orphan. One that stays becomes an orphan.
        with contextlib.suppress(OSError):
            if self.size == self.begins:
                self.path.unlink()
            else:
                put_away(self.path, damaged=self.broken, now=now)
        self.close()

    def lock(self) -> bool:
        """Makes sure that it is held and is what its name says; False when somebody else has it or had it."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.path.samestat(os.fstat(self.fd), self.path.stat())
        except OSError:
            return False

    def unlock(self) -> None:
        """Lets others have it for a while."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Lets the lock go; nothing can be written any more."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def put_away(path: Path, *, damaged: bool, now: datetime) -> Path:
    """Renames a recording whose every readable entry the ledger has; from now on it is kept for its time.

    Raises:
        OSError: It stays what it was.
    """
    os.utime(path, (now.timestamp(), now.timestamp()))
    return path.rename(path.with_suffix(DAMAGED if damaged else DONE))


def _new_file(directory: Path, header: Header, *, kept_since: datetime) -> _File:
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _alone_in(directory):
            _sweep(directory)
            _forget(directory, before=kept_since)
            return _create(recording_path(directory, header.uid), header)
    except OSError as error:
        raise _failed(directory, error) from error


def _sweep(directory: Path) -> None:
    # Of those that were killed in `_create`: whoever is in there now would hold the directory's lock.
    for leftover in directory.glob("*.tmp"):
        leftover.unlink()


def _forget(directory: Path, *, before: datetime) -> None:
    """Deletes what was put away before."""
    for path in directory.iterdir():
        if path.suffix in (DONE, DAMAGED) and path.stat().st_mtime < before.timestamp():
            path.unlink()


def _create(path: Path, header: Header) -> _File:
    if path.exists():
        raise OSError(f"there is a recording {path.name} already")
    temporary = path.with_suffix(".tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
    file = _File(path=path, fd=os.open(temporary, flags, 0o600))
    try:
        fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.append(*header_bytes(header))
        file.begins = file.size
        temporary.rename(path)
    except BaseException:
        file.close()
        raise
    return file


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _failed(directory: Path, error: OSError) -> RecorderFailed:
    return RecorderFailed(
        f"the flight recorder in {directory} cannot be written: {error.strerror or error}; "
        "nothing is mailed from here until it can: make room there, or look at its permissions"
    )


def _first_line(path: Path) -> str:
    try:
        return path.read_text().partition("\n")[0].strip()
    except OSError:
        return ""
