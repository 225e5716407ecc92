"""The flight recorder's file, byte by byte: what is written, and how much of what is found is believed.

All numbers are little-endian, all texts UTF-8, all instants microseconds since 1970 in UTC. A file is one header and
any number of entries:

    header  8s   magic, "maintdFR"
            H    version of this format, 2
            48s  uid of the recorder        } padded with NUL
            36s  boot id                    }
            64s  machine id                 }
            I    pid of the writer
            q    when it was created
            I    CRC

    entry   I    CRC
            B    kind: 1 dot intent, 2 reply read, 3 batch begun
            B    size of what follows the 16 bytes below: 0 of an intent
            q    id of the batch
            16s  key of the recipient; of a batch the uid of its campaign

    reply   B    state: 1 sent, 2 deferred, 3 rejected, 4 uncertain
            B    1: a deferral that counts among the failures of its delivery; 0: one that does not
            i    ordinal: the place in the line that the attempt had
            H    SMTP code; 0: none
            q    when a deferred delivery is due; 0: never
            B+   phase, enhanced status code, detail, type of failure: each the size of a text and the text; 0: none

    batch   B+   job, edition: likewise

Every CRC is the CRC-32 of all that was written so far but the CRCs themselves. So an entry is believed only behind
everything it was written behind: one that was altered, lost, doubled or moved ends the file there.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import BinaryIO, NamedTuple

from maintd.ledger.campaigns import Campaign
from maintd.ledger.deliveries import Outcome
from maintd.ledger.states import DeliveryState

#: Bytes of a reply's texts; what is longer is cut. Together with the rest of a reply they fit into one byte's size.
LONGEST_PHASE, LONGEST_ENHANCED, LONGEST_DETAIL, LONGEST_FAILURE = 8, 15, 200, 12
#: Bytes of a batch's texts, likewise.
LONGEST_JOB, LONGEST_EDITION = 63, 160

_MAGIC = b"maintdFR"
_VERSION = 2
_CRC = struct.Struct("<I")
_HEADER = struct.Struct("<8sH48s36s64sIq")
_ENTRY = struct.Struct("<BBq16s")
_REPLY = struct.Struct("<BBiHq")
_KEY_SIZE = 16

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

# Part of the format: a number is never given to another state.
_STATES = {
    1: DeliveryState.SENT,
    2: DeliveryState.DEFERRED,
    3: DeliveryState.REJECTED,
    4: DeliveryState.UNCERTAIN,
}
_NUMBERS = {state: number for number, state in _STATES.items()}


class Damaged(Exception):
    """From here on the file is not what was written."""


class Kind(IntEnum):
    """What an entry says."""

    INTENT = 1  #: the dot's bytes are about to be handed to the socket
    REPLY = 2  #: a reply of the relay was read
    BATCH = 3  #: from here on the id of the batch means one of this campaign


@dataclass(frozen=True, kw_only=True)
class Header:
    """Who wrote a recording, and where.

    Attributes:
        uid: Of the recorder, which batches name; at most 48 bytes.
        boot_id: Of the running kernel; empty where it has none. At most 36 bytes.
        machine_id: At most 64 bytes.
    """

    uid: str
    boot_id: str
    machine_id: str
    pid: int
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Binding:
    """Which campaign a batch is of. A ledger that went back gives the ids of batches again, but never a campaign's uid.

    Attributes:
        uid: Of the campaign: 32 hexadecimal digits.
        job: Its job; what is beyond 63 bytes is cut.
        edition: Its edition; what is beyond 160 bytes is cut.
    """

    uid: str
    job: str
    edition: str

    @classmethod
    def of(cls, campaign: Campaign) -> Binding:
        """That of a campaign."""
        return cls(uid=campaign.uid, job=campaign.job, edition=campaign.edition)


class Entry(NamedTuple):
    """One entry whose CRC is right; what is in it is read only when somebody asks."""

    kind: Kind
    batch_id: int
    recipient_key: bytes
    tail: bytes

    def binding(self) -> Binding:
        """Which campaign the batch is of.

        Raises:
            Damaged: It is no batch of this format.
        """
        try:
            job, edition = _texts(self.tail)
        except (LookupError, ValueError) as error:
            raise Damaged(f"not a batch: {error}") from error
        return Binding(uid=self.recipient_key.hex(), job=job or "", edition=edition or "")

    def outcome(self) -> Outcome:
        """What the reply did to its delivery.

        Raises:
            Damaged: It is no reply of this format.
        """
        try:
            number, counted, ordinal, code, due = _REPLY.unpack_from(self.tail)
            phase, enhanced, detail, failure = _texts(self.tail[_REPLY.size :])
            return Outcome(
                recipient_key=self.recipient_key,
                ordinal=ordinal,
                state=_STATES[number],
                fact=True,
                failure=failure,
                counted=bool(counted),
                phase=phase,
                code=code or None,
                enhanced=enhanced,
                detail=detail,
                due_at=_instant(due) if due else None,
            )
        except (struct.error, LookupError, ValueError, OverflowError) as error:
            raise Damaged(f"not a reply: {error}") from error


def header_bytes(header: Header) -> tuple[bytes, int]:
    """The header as it is written, and the CRC that the first entry continues.

    Raises:
        ValueError: A text does not fit.
    """
    body = _HEADER.pack(
        _MAGIC,
        _VERSION,
        _fitting(header.uid, 48),
        _fitting(header.boot_id, 36),
        _fitting(header.machine_id, 64),
        header.pid,
        _microseconds(header.created_at),
    )
    crc = zlib.crc32(body)
    return body + _CRC.pack(crc), crc


def intent_bytes(batch_id: int, recipient_key: bytes, *, after: int) -> tuple[bytes, int]:
    """A dot intent as it is written behind an entry with that CRC, and its own CRC."""
    return _entry_bytes(Kind.INTENT, batch_id, recipient_key, b"", after=after)


def reply_bytes(batch_id: int, outcome: Outcome, *, after: int) -> tuple[bytes, int]:
    """A reply as it is written behind an entry with that CRC, and its own CRC. Texts that are too long are cut.

    Raises:
        ValueError: No reply was read, or none leads to that state.
    """
    if not outcome.fact or outcome.state not in _NUMBERS:
        raise ValueError(f"not what a reply did: {outcome}")
    due = _microseconds(outcome.due_at) if outcome.due_at else 0
    state = _NUMBERS[outcome.state]
    reply = _REPLY.pack(state, outcome.counted, outcome.ordinal, outcome.code or 0, due)
    texts = (
        _cut(outcome.phase, LONGEST_PHASE),
        _cut(outcome.enhanced, LONGEST_ENHANCED),
        _cut(outcome.detail, LONGEST_DETAIL),
        _cut(outcome.failure, LONGEST_FAILURE),
    )
    tail = reply + b"".join(b"%c%b" % (len(text), text) for text in texts)
    return _entry_bytes(Kind.REPLY, batch_id, outcome.recipient_key, tail, after=after)


def batch_bytes(batch_id: int, binding: Binding, *, after: int) -> tuple[bytes, int]:
    """A batch's binding as it is written behind an entry with that CRC, and its own CRC.

    Raises:
        ValueError: The uid is not one.
    """
    job, edition = _cut(binding.job, LONGEST_JOB), _cut(binding.edition, LONGEST_EDITION)
    tail = b"%c%b%c%b" % (len(job), job, len(edition), edition)
    return _entry_bytes(Kind.BATCH, batch_id, bytes.fromhex(binding.uid), tail, after=after)


def read_header(file: BinaryIO) -> Header | None:
    """The header of a file; None when it is not a recording of this format, or its header is damaged."""
    try:
        header, _ = _read_header(file)
    except (Damaged, OSError):
        return None
    return header


def read_entries(file: BinaryIO) -> Iterator[Entry]:
    """Every entry of a file, in order, in flat memory.

    Raises:
        Damaged: Behind the entries that were yielded comes something else than the end of the file.
        OSError: The disk does not give it.
    """
    _, crc = _read_header(file)
    while head := file.read(_CRC.size + _ENTRY.size):
        if len(head) < _CRC.size + _ENTRY.size:
            raise Damaged("the last entry is torn")
        kind, size, batch_id, key = _ENTRY.unpack_from(head, _CRC.size)
        tail = file.read(size)
        crc = zlib.crc32(tail, zlib.crc32(head[_CRC.size :], crc))
        if len(tail) < size or _CRC.unpack_from(head) != (crc,):
            raise Damaged("an entry's CRC is wrong")
        if kind not in _KINDS:
            raise Damaged(f"there is no entry of kind {kind}")
        yield Entry(_KINDS[kind], batch_id, key, tail)


_KINDS = {int(kind): kind for kind in Kind}


def _read_header(file: BinaryIO) -> tuple[Header, int]:
    file.seek(0)
    body, stored = file.read(_HEADER.size), file.read(_CRC.size)
    crc = zlib.crc32(body)
    if len(body) < _HEADER.size or stored != _CRC.pack(crc):
        raise Damaged("the header is damaged")
    magic, version, uid, boot_id, machine_id, pid, created = _HEADER.unpack(body)
    if (magic, version) != (_MAGIC, _VERSION):
        raise Damaged(f"not a recording of version {_VERSION}")
    uid, boot_id, machine_id = (field.rstrip(b"\0").decode() for field in (uid, boot_id, machine_id))
    header = Header(uid=uid, boot_id=boot_id, machine_id=machine_id, pid=pid, created_at=_instant(created))
    return header, crc


def _entry_bytes(
    kind: Kind, batch_id: int, recipient_key: bytes, tail: bytes, *, after: int
) -> tuple[bytes, int]:
    if len(recipient_key) != _KEY_SIZE:
        raise ValueError(f"a recipient's key has {_KEY_SIZE} bytes, not {len(recipient_key)}")
    body = _ENTRY.pack(kind, len(tail), batch_id, recipient_key) + tail
    crc = zlib.crc32(body, after)
    return _CRC.pack(crc) + body, crc


def _fitting(text: str, size: int) -> bytes:
    # struct would cut it, and two names could become one.
    data = text.encode()
    if len(data) > size or b"\0" in data:
        raise ValueError(f"{text!r} does not fit into the {size} bytes of its field")
    return data


def _cut(text: str | None, longest: int) -> bytes:
    return text.encode(errors="replace")[:longest] if text else b""


def _texts(data: bytes) -> Iterator[str | None]:
    while data:
        size = data[0]
        # A text that was cut may end within a character.
        yield data[1 : 1 + size].decode(errors="ignore") or None
        data = data[1 + size :]


def _microseconds(instant: datetime) -> int:
    return (instant - _EPOCH) // _MICROSECOND


def _instant(microseconds: int) -> datetime:
    return _EPOCH + microseconds * _MICROSECOND
