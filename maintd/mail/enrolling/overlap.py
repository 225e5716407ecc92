"""How an audience, asked now, stands to what was mailed in a period already. Everything is read, nothing written."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from maintd.database import Database
from maintd.ledger import campaigns, deliveries
from maintd.ledger.campaigns import Campaign
from maintd.ledger.deliveries import Place
from maintd.ledger.engine import identity
from maintd.ledger.states import ENDED_CAMPAIGNS, UNSETTLED_DELIVERIES, CampaignState, DeliveryState
from maintd.mail.address import InvalidAddress, parse_address, recipient_key
from maintd.mail.campaign import SQL_PREFIX, AudienceSpec, CampaignSpec
from maintd.mail.enrolling.audience import Row, open_audience
from maintd.mail.enrolling.enrol import unusable_key

_MAILED = frozenset({DeliveryState.SENT, DeliveryState.UNCERTAIN})
_MOST_SAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """An audience and the editions of one period.

    Attributes:
        editions: The editions that the period has, oldest first, each with its state. Of one that is enrolling nobody
            is counted: it has been sent to nobody, and what it has is a part of whom it will have.
        audience: Rows of the audience; an address that it has twice counts twice.
        recipients: As an enrolment counts them: an address that the audience has twice is one, and so is each row whose
            address cannot be used.
        invalid: Rows whose address cannot be used.
        suppressed: Rows whose address is on the suppression list.
        mailed: Recipients in the audience whom one of the editions was sent to, uncertain ones included.
        to_come: Recipients in the audience whom none was sent to, but one of the editions is still going to be.
        samples: The first few addresses that a run would mail.
        invalid_samples: The first few that cannot be used: the address as Python writes it, and the reason.
    """

    editions: Mapping[str, CampaignState]
    audience: int
    recipients: int
    invalid: int
    suppressed: int
    mailed: int
    to_come: int
    samples: tuple[str, ...]
    invalid_samples: tuple[tuple[str, str], ...]


def count_overlap(
    spec: CampaignSpec,
    files: Mapping[str, str],
    *,
    job: str,
    period: str,
    ledger: Database,
    source: Database,
) -> Overlap:
    """Streams the audience past the ledger, a thousand rows at a time.

    Args:
        spec: Of the campaign's job.
        files: The texts it depends on.
        job: Its name.
        period: The edition that a run would have now.
        ledger: Where the editions are.
        source: Where the audience comes from.

    Raises:
        JobFailed: The source refuses the statement.
        Unavailable: The ledger or the source does not answer.
    """
    with ledger.read() as connection:
        found = campaigns.editions_of(connection, job=job, period=period)
        key = identity(connection).recipient_key
    enrolled = [campaign for campaign in found if campaign.state is not CampaignState.ENROLLING]
    own = next((campaign.id for campaign in enrolled if campaign.edition == period), None)
    sql = spec.audience.sql
    with (
        contextlib.closing(_Counter(ledger, enrolled, spec.audience, goes_on_with=own, key=key)) as counter,
        open_audience(source, files[SQL_PREFIX + sql], key=f"audience.sql ({sql})") as (_, chunks),
    ):
        for rows in chunks:
            counter.count(rows)
    return Overlap(
        editions={campaign.edition: campaign.state for campaign in found},
        samples=tuple(counter.samples),
        invalid_samples=tuple(counter.invalid_samples),
        **counter.counts,
    )


class _Counter:
    def __init__(
        self,
        ledger: Database,
        enrolled: Sequence[Campaign],
        audience: AudienceSpec,
        *,
        goes_on_with: int | None,
        key: bytes,
    ) -> None:
        self._ledger = ledger
        self._campaign_ids = [campaign.id for campaign in enrolled]
        self._under_way = {campaign.id for campaign in enrolled if campaign.state not in ENDED_CAMPAIGNS}
        self._audience = audience
        self._goes_on_with = goes_on_with
        self._key = key
        self._seen = _Seen()
        self._recipients = _Recipients()
        self.counts = dict.fromkeys(
            ("audience", "recipients", "invalid", "suppressed", "mailed", "to_come"), 0
        )
        self.samples: list[str] = []
        self.invalid_samples: list[tuple[str, str]] = []

    def close(self) -> None:
        """Forgets whom it counted."""
        self._recipients.close()

    def count(self, rows: Sequence[Row]) -> None:
        """Adds a chunk of the audience."""
        found = list(self._usable(rows))
        keys = [key for key, _ in found]
        self.counts["recipients"] += self._recipients.add(keys)
        with self._ledger.read() as connection:
            suppressed = deliveries.suppressed_keys(connection, keys)
            places = deliveries.places(connection, self._campaign_ids, keys)
        self.counts["audience"] += len(rows)
        self.counts["invalid"] += len(rows) - len(keys)
        self.counts["suppressed"] += sum(key in suppressed for key in keys)
        to_come = [place for place in places if self._is_to_come(place)]
        self._count_places(places, to_come)
        # Who is not in an edition whose enrolment is over will not be.
        in_line = {place.recipient_key for place in to_come if place.campaign_id == self._goes_on_with}
        self._sample(
            mailbox
            for key, mailbox in found
            if key not in suppressed and (key in in_line or self._goes_on_with is None)
        )

    def _is_to_come(self, place: Place) -> bool:
        return place.state in UNSETTLED_DELIVERIES and place.campaign_id in self._under_way

    def _count_places(self, places: Sequence[Place], to_come: Sequence[Place]) -> None:
        """Counts recipients by what became of them, each once."""
        mailed = {place.recipient_key for place in places if place.state in _MAILED}
        waiting = {place.recipient_key for place in to_come} - mailed
        first = {place.recipient_key: place for place in reversed(places)}
        for key, place in first.items():
            if self._seen.add(place):
                self.counts["mailed"] += key in mailed
                self.counts["to_come"] += key in waiting

    def _sample(self, mailboxes: Iterator[str]) -> None:
        while len(self.samples) < _MOST_SAMPLES and (mailbox := next(mailboxes, None)):
            if mailbox not in self.samples:
                self.samples.append(mailbox)

    def _usable(self, rows: Sequence[Row]) -> Iterator[tuple[bytes, str]]:
        """Key and mailbox of each row that can be mailed."""
        for number, row in enumerate(rows, start=self.counts["audience"]):
            text = row[self._audience.address]
            try:
                address = parse_address(None if text is None else str(text))
            except InvalidAddress as error:
                if len(self.invalid_samples) < _MOST_SAMPLES:
                    self.invalid_samples.append((repr(text), str(error)))
                unusable = unusable_key(row, self._audience, number=number, key=self._key)
                self.counts["recipients"] += self._recipients.add([unusable])
                continue
            yield recipient_key(address.canonical, key=self._key), address.mailbox


class _Recipients:
    """The recipients that were counted: in a temporary file, because a million would take 100 MB of memory."""

    def __init__(self) -> None:
        self._file = sqlite3.connect("")  # which makes a file only for what its cache cannot hold
        self._file.execute("PRAGMA cache_size = -16000")  # in KiB
        self._file.execute("CREATE TABLE recipients (key BLOB PRIMARY KEY) WITHOUT ROWID")

    def close(self) -> None:
        """Deletes the file."""
        self._file.close()

    def add(self, keys: Iterable[bytes]) -> int:
        """Remembers some; returns how many of them are new."""
        insert = "INSERT OR IGNORE INTO recipients VALUES (?)"
        return self._file.executemany(insert, ((key,) for key in keys)).rowcount


class _Seen:
    """The places that were counted: a bit for each ordinal, so that a million recipients take 125 kB."""

    def __init__(self) -> None:
        self._bits: defaultdict[int, bytearray] = defaultdict(bytearray)

    def add(self, place: Place) -> bool:
        """Remembers a place; False when it was known."""
        bits, (index, bit) = self._bits[place.campaign_id], divmod(place.ordinal, 8)
        if index >= len(bits):
            bits.extend(bytes(index + 1 - len(bits)))
        known = bits[index] >> bit & 1
        bits[index] |= 1 << bit
        return not known
