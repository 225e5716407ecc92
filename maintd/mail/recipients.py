"""Who an address is, in this ledger."""

from __future__ import annotations

from sqlalchemy.engine import Connection

from maintd.ledger.engine import identity
from maintd.mail.address import Address, recipient_key


def key_of(connection: Connection, address: Address) -> bytes:
    """The digest under which this ledger knows the recipient of an address."""
    return recipient_key(address.canonical, key=identity(connection).recipient_key)
