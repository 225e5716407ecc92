"""Counting what really arrived: the mailbox against the list of people who had to get something."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from maintd.mail.address import InvalidAddress, parse_address
from maintd.smtp.mailbox import read_index

_FIRST = 10


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What a mailbox holds of one campaign, and how that differs from what it should hold.

    Attributes:
        messages: Accepted messages, counted once for each of their recipients.
        recipients: Different canonical addresses among them.
        duplicates: Messages beyond the first to the same recipient.
        missing: Expected, but neither in the mailbox nor named as uncertain.
        unexpected: In the mailbox, but not expected.
        uncertain: Named as uncertain by the sender, whether they arrived or not.
        first_duplicates: Some recipients with more than one message, in order.
        first_missing: Some of the missing, in order.
        first_unexpected: Some of the unexpected, in order.
    """

    messages: int
    recipients: int
    duplicates: int
    missing: int
    unexpected: int
    uncertain: int
    first_duplicates: tuple[str, ...]
    first_missing: tuple[str, ...]
    first_unexpected: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether everybody who should have it has it once, and nobody else; uncertain ones aside."""
        return not (self.duplicates or self.missing or self.unexpected)


def tally(mailbox: Path, *, campaign: str, expected: frozenset[str], uncertain: frozenset[str]) -> Tally:
    """Counts a campaign's messages in the mailbox's index; nothing that the sender recorded is consulted.

    Args:
        mailbox: The sink's directory.
        campaign: Messages of others are left out.
        expected: Canonical addresses that had to get one.
        uncertain: Canonical addresses of which the sender says that it cannot know.
    """
    arrived = _arrived(mailbox, campaign=campaign)
    repeated = {recipient for recipient, messages in arrived.items() if messages > 1}
    missing = expected - arrived.keys() - uncertain
    unexpected = arrived.keys() - expected
    return Tally(
        messages=arrived.total(),
        recipients=len(arrived),
        duplicates=arrived.total() - len(arrived),
        missing=len(missing),
        unexpected=len(unexpected),
        uncertain=len(uncertain),
        first_duplicates=_first(repeated),
        first_missing=_first(missing),
        first_unexpected=_first(unexpected),
    )


def _arrived(mailbox: Path, *, campaign: str) -> Counter[str]:
    return Counter(
        _canonical(recipient)
        for accepted in read_index(mailbox)
        if accepted.campaign == campaign
        for recipient in accepted.recipients
    )


def _canonical(recipient: str) -> str:
    try:
        return parse_address(recipient).canonical
    except InvalidAddress:
        return recipient  # nobody's: it shows up among the unexpected


def _first(addresses: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(addresses)[:_FIRST])
