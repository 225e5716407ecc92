"""One mail as octets (RFC 5322, MIME), the same octets whenever the same record is built again.

It is put together here rather than by the standard library's generator, whose output differs between patch levels,
which lets line breaks into headers on some of them (CVE-2024-6923, CVE-2026-1299), and which takes a millisecond.
"""

from __future__ import annotations

import functools
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, tzinfo
from email.utils import format_datetime

from maintd.errors import MaintdError
from maintd.mail.address import Address
from maintd.mail.content.parts import LONGEST_LINE, text_part
from maintd.mail.content.skeleton import Skeleton
from maintd.smtp.lines import Lines

_FOLD_AT = 78  # characters, RFC 5322 §2.1.1
_WORD_OCTETS = 36  # 60 characters as an encoded word: RFC 2047 §2 allows 75, less a header's name

_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NAME = re.compile(r"[!-9;-~]{1,64}")
_MESSAGE_ID = re.compile(r"<[!-;=?-~]+@[!-;=?-~]+>")
_PLAIN_TEXT = re.compile(rf"(?!.*=\?)[!-~]{{1,{LONGEST_LINE}}}(?: [!-~]{{1,{LONGEST_LINE}}})*")
_PLAIN_PHRASE = re.compile(r"(?!.*=\?)[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]{1,60}")
_QUOTABLE_PHRASE = re.compile(r"(?!.*=\?)[ -~]{1,60}")
_Q = [chr(octet) if chr(octet).isalnum() and octet < 128 else f"={octet:02X}" for octet in range(256)]
_Q[ord(" ")] = "_"
_RESERVED = frozenset({
    "from", "to", "cc", "bcc", "sender", "reply-to", "subject", "date", "message-id", "mime-version",
    "content-type", "content-transfer-encoding",
})  # fmt: skip


#: Of the headers that all mails of a campaign share, each is written once.
_same_for_many = functools.lru_cache(maxsize=64)


class UnsafeHeader(MaintdError):
    """A header would say something else to the receiver than was meant: a line break in it, or a second `From`."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"header {name!a}: {reason}")


@dataclass(frozen=True, kw_only=True)
class Content:
    """What one mail says; who sends it to whom on the wire is the envelope's affair.

    Attributes:
        from_name: The sender's display name; may be empty.
        from_address: The sender.
        to: The recipient.
        to_name: The recipient's display name; may be empty.
        reply_to: Where answers go, if not to the sender.
        message_id: With its angle brackets, from the record, so that every attempt carries the same.
        date: Aware, from the record as well.
        subject: One line.
        text: The plain part; any line ends.
        html: The HTML part, if there is one; any line ends.
        headers: More headers, names and values, in this order.
    """

    from_name: str = ""
    from_address: Address
    to: Address
    to_name: str = ""
    reply_to: Address | None = None
    message_id: str
    date: datetime
    subject: str
    text: str
    html: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


def needs_smtputf8(content: Content) -> bool:
    """Whether only a relay with SMTPUTF8 (RFC 6531) can take this mail: an address in it has no ASCII form."""
    addresses = (content.from_address, content.to, content.reply_to)
    return any(address is not None and address.ascii_mailbox is None for address in addresses)


def is_header_safe(value: str) -> bool:
    """Whether a text can stand in a header: no line break or other control character, no half of a surrogate pair."""
    return _UNSAFE.search(value) is None


def unsafe_headers(headers: Mapping[str, str]) -> Iterator[UnsafeHeader]:
    """What is wrong with these as extra headers."""
    for header in headers.items():
        try:
            _extra((header,))
        except UnsafeHeader as error:
            yield error


def build_message(content: Content, skeleton: Skeleton) -> tuple[Lines, Lines]:
    """Builds the mail in lines of at most 998 octets that end with CRLF.

    Bodies are 7bit, quoted-printable or base64, so no relay needs 8BITMIME. Line ends in them become CRLF, a last
    one is ensured, and what cannot be sent at all (NUL, lone surrogates) becomes a question mark.

    Args:
        content: What is this mail's own.
        skeleton: What it has in common with others.

    Returns:
        The mail's own lines, and those behind them, which others have too.

    Raises:
        UnsafeHeader: A header's name or value contains a line break or a control character, or an extra header is
            one of those that are made here.
    """
    head = [*_addressing(content), *_record(content), *_extra(content.headers), "MIME-Version: 1.0"]
    html = None if content.html is None else text_part("html", content.html)
    body, ending = skeleton.around(text_part("plain", content.text), html)
    return Lines.joined((Lines.of("\r\n".join([*head, ""]).encode()), *body)), ending


def _addressing(content: Content) -> Iterator[str]:
    yield _same_mailbox("From", content.from_name, content.from_address)
    yield _mailbox("To", content.to_name, content.to)
    if content.reply_to is not None:
        yield _same_mailbox("Reply-To", "", content.reply_to)


def _record(content: Content) -> Iterator[str]:
    if len(content.message_id) > LONGEST_LINE or not _MESSAGE_ID.fullmatch(content.message_id):
        raise UnsafeHeader("Message-ID", "it must be <something@somewhere> in ASCII")
    yield _folded("Subject", _text_words(_safe("Subject", content.subject)))
    # Two dates of one instant are equal whatever their zones are, and are not written alike.
    yield _date(content.date, content.date.tzinfo)
    yield f"Message-ID: {content.message_id}"


@_same_for_many
def _date(date: datetime, zone: tzinfo | None) -> str:
    if zone is None:
        raise ValueError("the date of a mail must be aware")
    return f"Date: {format_datetime(date)}"


@_same_for_many
def _extra(headers: tuple[tuple[str, str], ...]) -> list[str]:
    return list(_each_extra(headers))


def _each_extra(headers: Iterable[tuple[str, str]]) -> Iterator[str]:
    for name, value in headers:
        if not _NAME.fullmatch(name):
            raise UnsafeHeader(name, "a name is up to 64 printable ASCII characters, no space or colon")
        if name.lower() in _RESERVED:
            raise UnsafeHeader(name, "it is made from the record and cannot be given as an extra header")
        yield _folded(name, _text_words(_safe(name, value)))


def _safe(name: str, value: str) -> str:
    if not is_header_safe(value):
        raise UnsafeHeader(name, "its value contains a line break or a control character")
    return value


def _mailbox(header: str, name: str, address: Address) -> str:
    specification = _safe(header, address.ascii_mailbox or address.mailbox)
    phrase = _phrase_words(_safe(header, name))
    return _folded(header, [*phrase, f"<{specification}>"] if phrase else [specification])


_same_mailbox = _same_for_many(_mailbox)


def _folded(name: str, words: Iterable[str]) -> str:
    """A header, broken before every word but the first that would make its line too long (RFC 5322 §2.2.3)."""
    lines = [f"{name}:"]
    for position, word in enumerate(words):
        if position and len(lines[-1]) + 1 + len(word) > _FOLD_AT:
            lines.append("")
        lines[-1] += f" {word}"
    return "\r\n".join(lines)


def _text_words(value: str) -> list[str]:
    """A free text in pieces to fold between; encoded where it would not come back as it is (RFC 2047)."""
    return value.split(" ") if _PLAIN_TEXT.fullmatch(value) else _encoded_words(value)


def _phrase_words(name: str) -> list[str]:
    """A display name: as it is, quoted (RFC 5322 §3.2.4) or encoded, whichever it needs."""
    if not name:
        return []
    if _PLAIN_PHRASE.fullmatch(name) and name == " ".join(name.split()):
        return [name]
    if _QUOTABLE_PHRASE.fullmatch(name):
        return ['"' + re.sub(r'(["\\])', r"\\\1", name) + '"']
    return _encoded_words(name)


def _encoded_words(text: str) -> list[str]:
    """The text as encoded words of whole characters, each in the shorter of the two encodings (RFC 2047 §4, §5)."""
    octets, words = text.encode(), []
    while octets:
        cut = min(_WORD_OCTETS, len(octets))
        while cut < len(octets) and octets[cut] & 0xC0 == 0x80:  # in the midst of a character
            cut -= 1
        words.append(_encoded_word(octets[:cut]))
        octets = octets[cut:]
    return words


def _encoded_word(octets: bytes) -> str:
    base64, quoted = b64encode(octets).decode(), "".join(_Q[octet] for octet in octets)
    return f"=?utf-8?q?{quoted}?=" if len(quoted) <= len(base64) else f"=?utf-8?b?{base64}?="
