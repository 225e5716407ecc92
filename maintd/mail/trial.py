"""Sending one mail by itself, to see what a relay and a mail program make of it. The ledger is not told."""

from __future__ import annotations

from dataclasses import replace

from maintd.mail.address import Address
from maintd.mail.preview import Preview
from maintd.smtp.opening import open_session
from maintd.smtp.relays import Relay
from maintd.smtp.session import Outgoing, Result, Timeouts, send_one


def trial_of(preview: Preview, *, to: Address) -> Outgoing:
    """The previewed mail, to another person and recognisable as a test."""
    content = preview.content
    headers = {**dict(content.headers), "X-Maintd-Campaign": "test"}
    return preview.composer.outgoing(
        replace(content, to=to, subject=f"[test] {content.subject}", headers=tuple(headers.items()))
    )


async def send_once(message: Outgoing, relay: Relay, *, timeouts: Timeouts, hello: str) -> Result:
    """Sends one message over a connection of its own, once.

    Raises:
        OpenFailed: The relay is away or refuses us.
    """
    session = await open_session(relay, timeouts=timeouts, hello=hello)
    try:
        return await send_one(session, message, may_write_dot=lambda: True)
    finally:
        await session.close()
