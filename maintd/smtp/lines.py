"""The lines of a message as SMTP wants them: each ends in CRLF, and none can be taken for the end of all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


def all_end_in_crlf(octets: bytes) -> bool:
    """Whether there is no bare line end in them.

    RFC 5321 §2.3.8. Servers disagree about bare line ends, which is how one message is smuggled inside another.
    """
    return octets.count(b"\r\n") == octets.count(b"\n") == octets.count(b"\r")


def dot_stuffed(octets: bytes) -> bytes:
    """The same with another dot before each line that begins with one (RFC 5321 §4.5.2)."""
    stuffed = octets.replace(b"\r\n.", b"\r\n..")
    return b"." + stuffed if stuffed.startswith(b".") else stuffed


@dataclass(frozen=True)
class Ending:
    """The last lines of many messages, the same in all of them: looked through and dot-stuffed once.

    A message gets them by being joined with them. In memory they are there once, however many messages wait.

    Attributes:
        octets: Whole lines.
    """

    octets: bytes = b""

    @cached_property
    def is_in_lines(self) -> bool:
        """Whether every line ends in CRLF, the last one too."""
        return all_end_in_crlf(self.octets) and (not self.octets or self.octets.endswith(b"\r\n"))

    @cached_property
    def is_ascii(self) -> bool:
        """Whether it needs no 8BITMIME."""
        return self.octets.isascii()

    @cached_property
    def stuffed(self) -> bytes:
        """As it goes over the wire."""
        return dot_stuffed(self.octets)


NO_ENDING = Ending()
