"""Mail addresses: which are accepted, what goes on the wire, and when two of them are the same recipient."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b

from email_validator import SPECIAL_USE_DOMAIN_NAMES, EmailNotValidError, ValidatedEmail, validate_email

CANONICAL_VERSION = 1
"""Goes up when `Address.canonical` changes for any address: the same people then have other keys."""

_LONGEST_LOCAL = 64  # octets, RFC 5321 §4.5.3.1.1
_LONGEST = 254  # octets, RFC 5321 §4.5.3.1.3 less the angle brackets of the path

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"(?!..--)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_TOP_LABEL = r"(?!..--)[A-Za-z](?:[A-Za-z0-9-]{0,61}[A-Za-z])?"
_LENGTHS = r"(?=.{1,254}\Z)(?=[^@]{1,64}@)"
_PLAIN = re.compile(rf"{_LENGTHS}({_ATOM}(?:\.{_ATOM})*)@((?:{_LABEL}\.)+{_TOP_LABEL})")
_NAMED = re.compile(r"""(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^"<>]*?))\s*<(?P<address>[^<>]*)>""")
# ".test" is for staging and demonstrations. The others can never receive mail (RFC 6761, 6762, 7686).
_RESERVED = tuple(f".{name}" for name in SPECIAL_USE_DOMAIN_NAMES if name != "test")


class Fault(StrEnum):
    """Why an address is refused. The value is the sentence for people; it never repeats the address."""

    EMPTY = "there is no address"  #: nothing, or only spaces
    TOO_LONG = "it is too long: 64 octets fit before the @, 254 in all"  #: RFC 5321 §4.5.3.1
    CONTROL = "it contains a line break, a control character or an invisible character"  #: categories C*
    NAMED = "it is not a bare address: leave out names, brackets and comments"  #: "Ada <ada@…>", "ada@…(x)"
    QUOTED = "a quoted part before the @ is not supported"  #: legal by RFC 5321 §4.1.2, hardly deliverable
    SPACE = "it contains a space"  #: any separator of Unicode, not at either end
    NO_AT = "there is no @ in it"  #: not an address at all
    SEVERAL_AT = "there is more than one @ in it"  #: often two addresses in one field
    LITERAL = "an IP address in place of the domain is not supported"  #: ada@[192.0.2.1]
    LOCAL = "the part before the @ is not valid"  #: a stray dot, or a character that may not stand there
    DOMAIN = "the domain after the @ is not valid"  #: a bad label, or not a name that IDNA 2008 allows
    DOTLESS = "the domain after the @ has no dot"  #: ada@localhost
    RESERVED = "no mail can be sent to a domain of that ending"  #: .invalid, .local, .onion and the like


class InvalidAddress(ValueError):
    """A text is not an address that mail can be sent to; `str()` of it is the reason, without the address."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        super().__init__(fault.value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """A bare mail address.

    Attributes:
        mailbox: As a person reads it: the local part as given, in Unicode NFC, the domain in lower-case Unicode.
        ascii_mailbox: The same with the domain in A-labels; None when the local part is not ASCII, so that only
            a relay with SMTPUTF8 (RFC 6531) can take it, as `mailbox`.
        canonical: What makes two addresses one recipient: the local part in NFC and lower case, the domain in
            lower-case A-labels. Dots and plus tags are kept: only the receiver knows what they mean. Lower case,
            not case folding, for that would make "straße" and "strasse" the same person.
        domain: In lower-case A-labels.
    """

    mailbox: str
    ascii_mailbox: str | None
    canonical: str
    domain: str


def parse_address(text: str | None) -> Address:
    """Reads a bare address such as "ada@example.org"; spaces and tabs around it do not matter.

    Nothing is looked up: whether a domain takes mail is for the relay to find out.

    Raises:
        InvalidAddress: With the reason.
    """
    trimmed = (text or "").strip(" \t")
    return _parse_plain(trimmed) or _parse_any(trimmed)


def _parse_plain(text: str) -> Address | None:
    """The short way for nearly every address, ASCII without Punycode: `_parse_any` would read it the same."""
    match = _PLAIN.fullmatch(text)
    if match is None:
        return None
    local, domain = match.groups()
    domain = domain.lower()
    if domain.endswith(_RESERVED):
        return None
    mailbox = f"{local}@{domain}"
    return Address(mailbox=mailbox, ascii_mailbox=mailbox, canonical=mailbox.lower(), domain=domain)


def _parse_any(text: str) -> Address:
    if len(text) > _LONGEST:  # before anything whose cost grows with the length
        raise InvalidAddress(Fault.TOO_LONG)
    text = unicodedata.normalize("NFC", text)
    if fault := _visible_fault(text):
        raise InvalidAddress(fault)
    local, _, given_domain = text.partition("@")
    if len(local.encode()) > _LONGEST_LOCAL or len(text.encode()) > _LONGEST:
        raise InvalidAddress(Fault.TOO_LONG)
    valid = _validated(local, given_domain)
    domain = valid.ascii_domain
    canonical_local = unicodedata.normalize("NFC", local.lower())
    return Address(
        mailbox=f"{local}@{valid.domain}",
        ascii_mailbox=f"{local}@{domain}" if local.isascii() else None,
        canonical=f"{canonical_local}@{domain}",
        domain=domain,
    )


def _visible_fault(text: str) -> Fault | None:
    """The first fault that needs no knowledge of what a local part or a domain may hold."""
    categories = {unicodedata.category(character)[0] for character in text}
    checks = (
        (not text, Fault.EMPTY),
        ("C" in categories, Fault.CONTROL),
        (not set("<>()").isdisjoint(text), Fault.NAMED),
        (text.startswith('"'), Fault.QUOTED),
        ("Z" in categories, Fault.SPACE),
        ("@" not in text, Fault.NO_AT),
        (text.count("@") > 1, Fault.SEVERAL_AT),
        ("@[" in text, Fault.LITERAL),
    )
    return next((fault for wrong, fault in checks if wrong), None)


def _validated(local: str, domain: str) -> ValidatedEmail:
    if domain.lower().endswith(_RESERVED):
        raise InvalidAddress(Fault.RESERVED)
    try:
        valid = _validate(f"{local}@{domain}")
    except EmailNotValidError:
        raise InvalidAddress(_hidden_fault(local, domain)) from None
    if "." not in valid.ascii_domain:
        raise InvalidAddress(Fault.DOTLESS)
    return valid


def _validate(address: str) -> ValidatedEmail:
    # `test_environment` is the library's word for accepting ".test".
    return validate_email(address, check_deliverability=False, test_environment=True)


def _hidden_fault(local: str, domain: str) -> Fault:
    """Which part the validation refused, for it tells in prose only and repeats the domain there."""
    try:
        _validate(f"{local}@example.org")
    except EmailNotValidError:
        return Fault.LOCAL
    return Fault.DOTLESS if domain and "." not in domain else Fault.DOMAIN


def recipient_key(canonical: str, *, key: bytes) -> bytes:
    """The 16 octets that stand for a recipient wherever the address itself is not to be stored.

    Args:
        canonical: `Address.canonical`.
        key: The installation's secret, at most 64 octets: without it nobody can test guesses.
    """
    return blake2b(f"v{CANONICAL_VERSION}:{canonical}".encode(), digest_size=16, key=key).digest()


def parse_from(text: str) -> tuple[str, Address]:
    """Reads a sender such as "Acme <news@acme.example>" or a bare address.

    Returns:
        The display name in Unicode NFC (empty for a bare address) and the address.

    Raises:
        InvalidAddress: With the reason; a control character in the name is one.
    """
    match = _NAMED.fullmatch(text.strip(" \t"))
    if match is None:
        return "", parse_address(text)
    quoted = match["quoted"]
    name = match["bare"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        raise InvalidAddress(Fault.CONTROL)
    return unicodedata.normalize("NFC", name.strip()), parse_address(match["address"])
