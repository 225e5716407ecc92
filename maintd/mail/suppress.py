"""The suppression list as people work on it: by address, one or a whole file of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice

from maintd.database import Database
from maintd.ledger import suppressions
from maintd.ledger.engine import identity
from maintd.mail.address import Address, InvalidAddress, parse_address, recipient_key
from maintd.mail.recipients import key_of

#: Addresses in one transaction.
_CHUNK = 500


@dataclass(kw_only=True)
class Suppressed:
    """What came of a list of addresses.

    Attributes:
        added: How many were put on the list.
        known: How many were on it already.
        invalid: The lines that are no address, by their number from 1 on, each with the reason.
    """

    added: int = 0
    known: int = 0
    invalid: list[tuple[int, str]] = field(default_factory=list)


def suppress(ledger: Database, lines: Iterable[str], *, reason: str, now: datetime) -> Suppressed:
    """Lists every address of a text, one a line; empty lines do not matter, and a bad one keeps no other out.

    It counts from the next window on, in campaigns under way too.

    Args:
        ledger: Which keeps the list, as keyed digests only.
        lines: With or without their line ends.
        reason: Shown to whoever asks about one of them.
        now: The present instant.
    """
    with ledger.read() as connection:
        key = identity(connection).recipient_key
    counted = Suppressed()
    numbered = enumerate(lines, start=1)
    while chunk := list(islice(numbered, _CHUNK)):
        keys = [recipient_key(address.canonical, key=key) for address in _valid(chunk, counted)]
        with ledger.write() as connection:
            added = sum(suppressions.add(connection, one, reason=reason, now=now) for one in keys)
        counted.added += added
        counted.known += len(keys) - added
    return counted


def allow(ledger: Database, address: Address) -> bool:
    """Takes an address off the list; False when it was not on it."""
    with ledger.write() as connection:
        return suppressions.remove(connection, key_of(connection, address))


def suppressed_since(ledger: Database, address: Address) -> tuple[str, datetime] | None:
    """Why and since when an address is listed; None when it is not."""
    with ledger.read() as connection:
        return suppressions.find(connection, key_of(connection, address))


def _valid(chunk: Iterable[tuple[int, str]], counted: Suppressed) -> list[Address]:
    addresses = []
    for number, line in chunk:
        text = line.strip()
        try:
            if text:
                addresses.append(parse_address(text))
        except InvalidAddress as error:
            counted.invalid.append((number, str(error)))
    return addresses
