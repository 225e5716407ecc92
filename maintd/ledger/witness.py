"""What a host has seen of its ledger: a small file in its state directory that never goes back.

The file is one line of a fixed width, with a CRC, written in place under a lock; all processes of the host share it.
Only its first writing is forced to the disk. What later ones lose with the power of the machine makes the witness lag
behind by some seconds of work: a ledger that is older than that is noticed all the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from maintd.errors import MaintdError, Unavailable

_LINE = re.compile(r"(?P<text>(?P<id>\S{1,48}) +(?P<epoch>\d+) +(?P<sequence>\d+)) (?P<crc>[0-9a-f]{8})\n")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point in the history of a ledger.

    Attributes:
        ledger_id: Whose history; at most 48 characters, none of them a space.
        epoch: How often a person has accepted it after it had gone back.
        sequence: How many commits have let something happen outside.
    """

    ledger_id: str
    epoch: int
    sequence: int

    def is_before(self, other: Point) -> bool:
        """Whether the same ledger came here earlier. A later epoch is later, whatever the sequence."""
        return (self.epoch, self.sequence) < (other.epoch, other.sequence)

    def __str__(self) -> str:
        return f"{self.sequence:,} of epoch {self.epoch}"


class WitnessDamaged(MaintdError):
    """The file is not what was written."""


class Witness:
    """The newest point of a ledger's history that this host has seen."""

    def __init__(self, path: Path) -> None:
        """Looks at nothing yet.

        Args:
            path: Of the file, which need not exist.
        """
        self.path = path

    def seen(self) -> Point | None:
        """What was seen last; None before the first time.

        Raises:
            WitnessDamaged: Nobody can know.
            Unavailable: The file cannot be read.
        """
        with self._in_words("read"):
            try:
                with self.path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_SH)
                    return self._parse(file.read())
            except FileNotFoundError:
                return None

    def advance(self, point: Point) -> None:
        """Remembers a point, unless a later one was seen, or another ledger's.

        Raises:
            WitnessDamaged: Nobody can know what was seen.
            Unavailable: The file cannot be written.
        """
        with self._in_words("written"), self._alone() as fd:
            seen = self._parse(os.pread(fd, 1024, 0))
            if seen is None or (seen.ledger_id == point.ledger_id and seen.is_before(point)):
                _put(fd, point, durably=seen is None)

    def accept(self, point: Point) -> None:
        """Remembers a point whatever was seen before: a person said that this is the ledger from now on.

        Raises:
            Unavailable: The file cannot be written.
        """
        with self._in_words("written"), self._alone() as fd:
            os.ftruncate(fd, 0)
            _put(fd, point, durably=True)

    def _parse(self, data: bytes) -> Point | None:
        if not data:
            return None
        line = _LINE.fullmatch(data.decode("ascii", errors="replace"))
        if line is None or int(line["crc"], 16) != zlib.crc32(line["text"].encode()):
            raise WitnessDamaged(f"{self.path} is damaged")
        return Point(ledger_id=line["id"], epoch=int(line["epoch"]), sequence=int(line["sequence"]))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[int]:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _in_words(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Unavailable(
                f"{self.path}, which says how far the ledger had come, cannot be {what}: {error.strerror}; "
                "nothing is mailed from here until it can"
            ) from error


def _put(fd: int, point: Point, *, durably: bool) -> None:
    # Always as long as before, within one sector: there is no moment with half of it, and no need of room on the disk.
    text = f"{point.ledger_id:<48} {point.epoch:>10} {point.sequence:>19}"
    os.pwrite(fd, f"{text} {zlib.crc32(text.encode()):08x}\n".encode(), 0)
    if durably:
        os.fsync(fd)
