"""The lines of a message as SMTP wants them: each ends in CRLF, and none can be taken for the end of all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_DOTTED = re.compile(rb"\n\.")


class BareLineEnd(ValueError):
    """A line that does not end in CRLF."""


class Lines(NamedTuple):
    """Whole lines, each of which ends in CRLF: all that a session writes of a message.

    RFC 5321 §2.3.8. Servers disagree about bare line ends, which is how one message is smuggled inside another. So
    make it in one of the ways below: its line ends are looked at then, and not again whenever it is sent.

    Attributes:
        octets: As the receiver gets them.
        stuffed: As they go over the wire: with another dot before each line that begins with one (RFC 5321 §4.5.2).
    """

    octets: bytes
    stuffed: bytes

    @classmethod
    def of(cls, octets: bytes) -> Lines:
        """Takes octets that are lines already.

        Raises:
            BareLineEnd: They are not.
        """
        paired = octets.count(b"\r\n") == octets.count(b"\n") == octets.count(b"\r")
        if not paired or octets[-2:] not in (b"", b"\r\n"):
            raise BareLineEnd("the message has a line that does not end in CRLF")
        return cls(octets, _stuffed(octets))

    @classmethod
    def of_text(cls, text: str) -> Lines:
        """Writes a text down: line ends become CRLF, a last one is ensured.

        What cannot be sent at all (NUL, lone surrogates) becomes a question mark.
        """
        octets = text.encode(errors="replace").replace(b"\0", b"?")
        if b"\r" in octets:
            octets = octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        whole = octets if octets.endswith(b"\n") else octets + b"\n"
        octets = whole.replace(b"\n", b"\r\n")
        return cls(octets, _stuffed(octets))

    @classmethod
    def joined(cls, pieces: Sequence[Lines]) -> Lines:
        """One behind the other."""
        octets = b"".join([piece.octets for piece in pieces])
        stuffed = b"".join([piece.stuffed for piece in pieces])
        # Nearly always the same, which need not be in memory twice.
        return cls(octets, octets if stuffed == octets else stuffed)

    @property
    def is_ascii(self) -> bool:
        """Whether they need no 8BITMIME."""
        return self.octets.isascii()

    def are_within(self, most: int) -> bool:
        """Whether no line has more than so many octets, without its end."""
        octets, reach, start = self.octets, most + len(b"\r\n"), 0
        # From one line end to the last within reach of it: short lines need not be looked at one by one.
        while len(octets) - start > reach:
            start = octets.rfind(b"\n", start, start + reach) + 1
            if start == 0:
                return False
        return True


def _stuffed(octets: bytes) -> bytes:
    # Nearly no text has such a line; this way of looking for one is the quickest.
    if not (octets.startswith(b".") or _DOTTED.search(octets)):
        return octets
    stuffed = octets.replace(b"\r\n.", b"\r\n..")
    return b"." + stuffed if stuffed.startswith(b".") else stuffed


#: None at all.
NOTHING = Lines(b"", b"")
