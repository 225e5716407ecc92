"""One message as the bytes of one SMTP transaction, or the reason why it must not be sent."""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass

from maintd.smtp.session import Outgoing, Unsendable

# A line end in an address would begin a new command, an angle bracket would end the address; the rest is refused
# because no mailbox worth mailing has it. Surrogates cannot be encoded.
_NOT_IN_ADDRESS = re.compile("[\x00-\x20<>\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class Transaction:
    """What goes over the wire for one message.

    Attributes:
        mail: The MAIL command, without its line end.
        rcpt: The RCPT command, without its line end.
        pieces: The message, dot-stuffed, and its terminating dot; joined when its turn comes, for it may be large.
    """

    mail: bytes
    rcpt: bytes
    pieces: tuple[bytes, ...]

    @property
    def body(self) -> bytes:
        """The message, dot-stuffed, with the terminating dot."""
        return b"".join(self.pieces)


def transaction(message: Outgoing, *, extensions: Container[str]) -> Transaction:
    """Writes a message down for a relay that offers these extensions.

    Args:
        message: What to send.
        extensions: Keywords of the relay's EHLO reply, in lower case.

    Raises:
        Unsendable: An address that could inject commands, or a need that the relay does not meet.
    """
    parameters = _parameters(message, extensions=extensions)
    return Transaction(
        mail=b" ".join([b"MAIL FROM:" + _path(message.sender, message=message), *parameters]),
        rcpt=b"RCPT TO:" + _path(_present(message.recipient), message=message),
        pieces=(message.content.stuffed, message.ending.stuffed, b".\r\n"),
    )


def _parameters(message: Outgoing, *, extensions: Container[str]) -> list[bytes]:
    parameters = []
    if "size" in extensions:
        # RFC 1870 §3: octets with CRLF, before dot-stuffing
        parameters.append(b"SIZE=%d" % (len(message.content.octets) + len(message.ending.octets)))
    if not (message.content.is_ascii and message.ending.is_ascii):
        _need("8bitmime", extensions=extensions, why="the message has 8-bit characters")
        parameters.append(b"BODY=8BITMIME")
    if message.smtputf8:
        _need("smtputf8", extensions=extensions, why="an address or header has non-ASCII characters")
        parameters.append(b"SMTPUTF8")
    return parameters


def _need(extension: str, *, extensions: Container[str], why: str) -> None:
    if extension not in extensions:
        raise Unsendable(f"{why} and the relay does not offer {extension.upper()}")


def _present(recipient: str) -> str:
    if not recipient:
        raise Unsendable("the recipient's address is empty")
    return recipient


def _path(address: str, *, message: Outgoing) -> bytes:
    if _NOT_IN_ADDRESS.search(address):
        raise Unsendable("an envelope address has a space, a control character or an angle bracket")
    if not (address.isascii() or message.smtputf8):
        raise Unsendable(
            "an envelope address has non-ASCII characters and the message is not marked as SMTPUTF8"
        )
    return b"<" + address.encode() + b">"
