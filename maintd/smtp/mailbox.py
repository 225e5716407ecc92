"""What the sink accepted, on disk: a file for each message and one line for each in an index.

The index is the proof: a message is acknowledged only after its line is written, with a single write to a descriptor
that only appends. Whatever process is killed whenever, every acknowledged message is in the index.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from maintd.errors import MaintdError

_INDEX = "index.jsonl"
_MESSAGES = "messages"
_HEADERS_WITHIN = 16_384  # bytes of a message in which its header is looked for


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """One accepted message.

    Attributes:
        seq: 1, 2, … in the order of acceptance.
        at: When, ISO 8601, UTC.
        sender: Envelope sender.
        recipients: Envelope recipients.
        message_id: Its Message-ID with angle brackets, empty if it has none.
        campaign: Its `X-Maintd-Campaign`, empty if it has none.
        size: Octets, without dot-stuffing.
    """

    seq: int
    at: str
    sender: str
    recipients: tuple[str, ...]
    message_id: str
    campaign: str
    size: int


class Mailbox:
    """A directory that messages are appended to by one process at a time."""

    def __init__(self, directory: Path, *, store: bool) -> None:
        """Opens or creates it; an existing one is continued.

        Args:
            directory: Where the index and the messages are.
            store: Whether the messages themselves are kept, beside their index lines.

        Raises:
            MaintdError: Another process is writing to it.
        """
        self._messages = directory / _MESSAGES
        self._store = store
        self._messages.mkdir(parents=True, exist_ok=True)
        self._index = os.open(directory / _INDEX, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            self._take_over(directory)
        except BaseException:
            os.close(self._index)
            raise

    def _take_over(self, directory: Path) -> None:
        try:
            fcntl.flock(self._index, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MaintdError(
                f"another sink is writing to {directory}; stop it or name another directory"
            ) from None
        os.ftruncate(self._index, _whole_lines(directory))
        self._seq = max((accepted.seq for accepted in read_index(directory)), default=0)

    def append(self, message: bytes, *, at: datetime, sender: str, recipients: list[str]) -> None:
        """Keeps one message; once this returns it survives the death of any process.

        Raises:
            OSError: The disk is full or worse; the message is not in the index.
        """
        seq = self._seq + 1
        accepted = Accepted(
            seq=seq,
            at=at.isoformat(),
            sender=sender,
            recipients=tuple(recipients),
            message_id=_header(message, b"message-id"),
            campaign=_header(message, b"x-maintd-campaign"),
            size=len(message),
        )
        if self._store:
            (self._messages / f"{seq}.eml").write_bytes(message)
        self._write_line(json.dumps(vars(accepted), ensure_ascii=False).encode() + b"\n")
        self._seq = seq

    def _write_line(self, line: bytes) -> None:
        written = os.write(self._index, line)
        if written < len(line):
            os.ftruncate(self._index, os.fstat(self._index).st_size - written)
            raise OSError(f"only {written} of {len(line)} bytes of an index line could be written")

    def close(self) -> None:
        """Lets another process write."""
        os.close(self._index)


def read_index(mailbox: Path) -> Iterator[Accepted]:
    """Reads what was accepted, in order, also while a sink is writing; a torn last line was never acknowledged.

    Args:
        mailbox: The sink's directory; nothing was accepted if it has no index yet.
    """
    index = mailbox / _INDEX
    if not index.exists():
        return
    with index.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                fields = json.loads(line)
                yield Accepted(**{**fields, "recipients": tuple(fields["recipients"])})


def _whole_lines(directory: Path) -> int:
    """How many bytes of the index are whole lines; only a crash in mid-write leaves more."""
    content = (directory / _INDEX).read_bytes()
    return content.rfind(b"\n") + 1


def _header(message: bytes, name: bytes) -> str:
    """One header field by its lower-case name, unfolded; found without parsing the message."""
    end = message.find(b"\r\n\r\n", 0, _HEADERS_WITHIN)
    head = b"\n" + message[: end if end >= 0 else _HEADERS_WITHIN]
    start = head.lower().find(b"\n" + name + b":")
    if start < 0:
        return ""
    return _unfolded(head[start + len(name) + 2 :])


def _unfolded(rest: bytes) -> str:
    """The field body that `rest` begins with: RFC 5322 §2.2.3, a line that begins with white space continues it."""
    first, *more = rest.split(b"\r\n")
    for line in more:
        if line[:1] not in (b" ", b"\t"):
            break
        first += line
    return first.decode("utf-8", "replace").strip()
