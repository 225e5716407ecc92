"""The parts of a mail as octets, each with its own head: texts, enclosed files, and parts of parts (RFC 2045, 2046)."""

from __future__ import annotations

import re
from base64 import encodebytes
from binascii import b2a_qp
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple
from urllib.parse import quote

from maintd.mail.content.enclosures import Enclosure
from maintd.smtp.lines import Lines

LONGEST_LINE = 900  # octets; RFC 5322 allows 998, some relays break lines at 990
_NAME_OCTETS = 60  # of a file's name in one piece, so that its line stays below 78

_ASCII = bytes(range(128))
_PLAIN_NAME = re.compile(rf"(?!.*=\?)[ !#-\[\]-~]{{1,{_NAME_OCTETS}}}")


class TextPart(NamedTuple):
    """A text as a part."""

    head: Lines
    body: Lines


def text_part(subtype: str, text: str) -> TextPart:
    """A text in lines of at most 998 octets: 7bit, quoted-printable or base64, so no relay needs 8BITMIME.

    Line ends become CRLF, a last one is ensured, and what cannot be sent at all (NUL, lone surrogates) becomes a
    question mark.
    """
    encoding, body = _encoded(Lines.of_text(text))
    return TextPart(_text_head(subtype, encoding), body)


@lru_cache
def _text_head(subtype: str, encoding: str) -> Lines:
    head = f"Content-Type: text/{subtype}; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
    return Lines.of(head.encode())


def _encoded(body: Lines) -> tuple[str, Lines]:
    """The name of the lightest transfer encoding that keeps these lines safe, and the body in it (RFC 2045 §6)."""
    if body.is_ascii and body.are_within(LONGEST_LINE):
        return "7bit", body
    beyond_ascii = len(body.octets.translate(None, _ASCII))
    # Quoted-printable adds two octets for each, base64 a third of all.
    if beyond_ascii * 6 < len(body.octets):
        return "quoted-printable", Lines.of(b2a_qp(body.octets))
    return "base64", Lines.of(_base64(body.octets))


def _base64(octets: bytes) -> bytes:
    return encodebytes(octets).replace(b"\n", b"\r\n")


def attached_part(file: Enclosure) -> bytes:
    """A file that the receiver may save."""
    return _file_part(file, "attachment")


def inline_part(file: Enclosure) -> bytes:
    """An image that the HTML beside it shows (RFC 2392)."""
    return _file_part(file, "inline", f"Content-ID: <{file.content_id}>")


def _file_part(file: Enclosure, disposition: Literal["attachment", "inline"], *more: str) -> bytes:
    charset = "; charset=utf-8" if file.media_type.startswith("text/") else ""
    head = [
        f"Content-Type: {file.media_type}{charset}",
        "Content-Transfer-Encoding: base64",
        ";\r\n ".join([f"Content-Disposition: {disposition}", *_file_name(file.name)]),
        *more,
    ]
    return "\r\n".join([*head, "", ""]).encode() + _base64(file.content)


def _file_name(name: str) -> list[str]:
    """The parameter with the name, or the several that a long one is cut into (RFC 2183 §2.3, RFC 2231 §3, §4)."""
    if _PLAIN_NAME.fullmatch(name):
        return [f'filename="{name}"']
    pieces = ["utf-8''"]
    for character in name:
        written = quote(character, safe="", errors="replace")
        if len(pieces[-1]) + len(written) > _NAME_OCTETS:
            pieces.append("")
        pieces[-1] += written
    if len(pieces) == 1:
        return [f"filename*={pieces[0]}"]
    return [f"filename*{number}*={piece}" for number, piece in enumerate(pieces)]


def multipart(subtype: str, parts: Sequence[bytes], *, boundary: str, parameter: str = "") -> bytes:
    """Parts together as one (RFC 2046 §5.1).

    Args:
        subtype: "mixed", "related", "alternative".
        parts: Each with its head.
        boundary: A line of none of them begins with it and two hyphens.
        parameter: One more, such as `type="text/html"`.
    """
    between = f"--{boundary}\r\n".encode()
    kind = f"Content-Type: multipart/{subtype};" + (f" {parameter};" if parameter else "")
    head = f'{kind}\r\n boundary="{boundary}"\r\n\r\n'.encode()
    body = b"".join(between + part + b"\r\n" for part in parts)
    return head + body + f"--{boundary}--\r\n".encode()
