"""What the flight recorders of all hosts say of each dot, read when nothing runs any more."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from maintd.ledger.deliveries import Outcome
from maintd.ledger.states import DeliveryState
from maintd.mail.recording.entries import Damaged, Entry, Header, Kind, read_entries, read_header
from tests.wire.site import lives


@dataclass(kw_only=True)
class Said:
    """What one process has on record of one recipient.

    Attributes:
        dots: That may have been written.
        unanswered: Those of which no reply was recorded.
        accepted: A reply says that the relay has it.
        last: What the reply to the last dot did; None while that has none.
    """

    dots: int = 0
    unanswered: int = 0
    accepted: bool = False
    last: Outcome | None = None

    def take(self, entry: Entry) -> None:
        """Takes in one more entry."""
        if entry.kind is Kind.INTENT:
            self.dots += 1
            self.unanswered += 1
            self.last = None
        elif entry.kind is Kind.REPLY:
            self.unanswered = max(0, self.unanswered - 1)
            self.last = entry.outcome()
            self.accepted |= self.last.state is DeliveryState.SENT


@dataclass(frozen=True, kw_only=True)
class Recordings:
    """Every recording of a performance.

    Attributes:
        said: By process and recipient.
        begun: When each process began its first one, whatever the wall clocks said.
    """

    said: Mapping[tuple[int, bytes], Said] = field(default_factory=dict)
    begun: Mapping[int, datetime] = field(default_factory=dict)

    def of(self, recipient_key: bytes) -> Mapping[int, Said]:
        """What is on record of one recipient, by process."""
        return {pid: said for (pid, key), said in self.said.items() if key == recipient_key}


def read(paths: Iterable[Path], *, in_truth: Callable[[datetime], datetime]) -> Recordings:
    """Reads recordings, each as far as it can be.

    Args:
        paths: Where they are.
        in_truth: When it was that the wall clocks of their writers showed a time.
    """
    said: dict[tuple[int, bytes], Said] = {}
    begun: dict[int, datetime] = {}
    for header, path in _in_order(paths):
        begun.setdefault(header.pid, in_truth(header.created_at))
        with contextlib.suppress(Damaged), path.open("rb") as file:
            for entry in read_entries(file):
                if entry.kind is not Kind.BATCH:
                    said.setdefault((header.pid, entry.recipient_key), Said()).take(entry)
    return Recordings(said=said, begun=begun)


def is_left(path: Path) -> bool:
    """Whether a recording with something in it is there whose writer has died."""
    header = _header(path)
    if header is None or lives(header.pid):
        return False
    with contextlib.suppress(Damaged, FileNotFoundError), path.open("rb") as file:
        return any(True for _ in read_entries(file))
    return False


def _header(path: Path) -> Header | None:
    try:
        with path.open("rb") as file:
            return read_header(file)
    except FileNotFoundError:
        return None


def _in_order(paths: Iterable[Path]) -> list[tuple[Header, Path]]:
    written = [(header, path) for path in paths if (header := _header(path)) is not None]
    return sorted(written, key=lambda one: one[0].created_at)
