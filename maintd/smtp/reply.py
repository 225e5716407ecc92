"""What a relay said, made safe to store and to show."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LONGEST = 300
# RFC 2034 §4: the status code of RFC 3463 §2 stands at the beginning of the text of every line of a reply.
_ENHANCED = re.compile(r"^([245])\.([0-9]{1,3})\.([0-9]{1,3})(?:[ \t]+|$)", re.MULTILINE)
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One SMTP reply.

    Attributes:
        code: The three-digit code, 250.
        enhanced: The enhanced status code ("5.1.1", RFC 3463), if the reply has one whose class is the code's.
        text: The words, without codes, on one line of at most 300 printable characters.
    """

    code: int
    enhanced: str | None
    text: str

    @classmethod
    def parse(cls, code: int, text: str) -> Reply:
        """Reads a reply from its code and its text; the lines of a multi-line reply are separated by newlines.

        Args:
            code: The reply code.
            text: UTF-8 decoded with `surrogateescape`; any text is safe to give.
        """
        match = _ENHANCED.match(text)
        if match is None or match[1] != str(code)[:1]:
            return cls(code=code, enhanced=None, text=sanitised(text))
        return cls(code=code, enhanced=match[0].strip(), text=sanitised(_ENHANCED.sub("", text)))

    @property
    def positive(self) -> bool:
        """It was done (2yz)."""
        return self.code // 100 == 2

    @property
    def intermediate(self) -> bool:
        """More is awaited (3yz), as after DATA."""
        return self.code // 100 == 3

    @property
    def transient(self) -> bool:
        """Refused for now; the same may succeed later (4yz)."""
        return self.code // 100 == 4

    @property
    def permanent(self) -> bool:
        """Refused for good (5yz)."""
        return self.code // 100 == 5

    @property
    def refused(self) -> bool:
        """A definite no, for now or for good (4yz, 5yz)."""
        return self.transient or self.permanent

    @property
    def closing(self) -> bool:
        """The relay is closing the connection (421, RFC 5321 §3.8)."""
        return self.code == 421

    def __str__(self) -> str:
        return " ".join(filter(None, (str(self.code), self.enhanced, self.text)))


def sanitised(text: str) -> str:
    """Makes foreign text fit for a database, a log and a terminal.

    One line, at most 300 characters, every one printable: control characters go (PostgreSQL refuses NUL, terminals
    obey the rest), and bytes that were not UTF-8 are read as Latin-1, which is what old relays write.
    """
    if not (text.isascii() and text.isprintable()):
        text = _ESCAPED_BYTE.sub(lambda match: chr(ord(match[0]) - 0xDC00), text)
        text = "".join(character for character in text if character.isprintable() or character.isspace())
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
