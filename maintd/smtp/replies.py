"""Replies out of a stream of bytes, however it was cut into pieces on its way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from maintd.smtp.reply import Reply, sanitised

# RFC 5321 §4.5.3.1.5 ends a line at 512 octets; real relays write more, and whoever writes more than this floods us.
_LONGEST_LINE = 8_192
_LONGEST_REPLY = 32_768
#: A whole reply of one line, as nearly all are.
_PLAIN = re.compile(rb"([0-9]{3}) ([^\r\n]{0,512})\r\n")


class NotSMTP(Exception):
    """What came is no reply; says what it looks like, printable and short."""


class RawReply(NamedTuple):
    """A reply as it came: most are looked at by their code only.

    Attributes:
        code: The three-digit code.
        text: The words of its lines, without codes, separated by newlines.
    """

    code: int
    text: bytes

    @property
    def refused(self) -> bool:
        """A definite no (4yz, 5yz)."""
        return 400 <= self.code < 600

    def read(self) -> Reply:
        """The reply, made safe to store and to show."""
        return Reply.parse(self.code, self.text.decode("utf-8", "surrogateescape"))


class ReplyStream:
    """Puts the replies of one connection together (RFC 5321 §4.2)."""

    def __init__(self) -> None:
        self._rest = b""
        self._code = b""
        self._texts: list[bytes] = []
        self._size = 0

    @property
    def partial(self) -> bool:
        """Whether a reply has begun and not ended."""
        return bool(self._rest or self._texts)

    def feed(self, data: bytes) -> Iterator[RawReply]:
        """Yields the replies that are complete with these bytes; to be exhausted before the next call.

        Raises:
            NotSMTP: A line does not begin with a code, a reply changes its code half-way, or it is too long. Replies
                before it are yielded first; nothing can be read from this stream any more.
        """
        begin = 0
        while not (self._rest or self._texts) and (plain := _PLAIN.match(data, begin)):
            yield RawReply(int(plain[1]), plain[2])
            begin = plain.end()
        *lines, self._rest = (self._rest + data[begin:]).split(b"\n")
        for line in lines:
            if self._take(line.removesuffix(b"\r")):
                yield self._finished()
        if len(self._rest) > _LONGEST_LINE:
            raise NotSMTP("a line that does not end")

    def _take(self, line: bytes) -> bool:
        """Takes in one line and returns whether it is the last of its reply."""
        code, mark = line[:3], line[3:4]
        self._size += len(line)
        if len(line) > _LONGEST_LINE or self._size > _LONGEST_REPLY:
            raise NotSMTP("a reply that is too long")
        if not (len(code) == 3 and code.isdigit() and mark in (b" ", b"-", b"")):
            raise NotSMTP(sanitised(line.decode("utf-8", "surrogateescape")) or "an empty line")
        if self._texts and code != self._code:
            raise NotSMTP(f"a reply that begins with {self._code.decode()} and goes on with {code.decode()}")
        self._code = code
        self._texts.append(line[4:])
        return mark != b"-"

    def _finished(self) -> RawReply:
        reply = RawReply(int(self._code), b"\n".join(self._texts))
        self._texts.clear()
        self._size = 0
        return reply
