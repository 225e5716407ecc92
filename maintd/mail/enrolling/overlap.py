"""How an audience, asked now, stands to what was mailed in a period already. Everything is read, nothing written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from maintd.database import Database
from maintd.ledger import campaigns, deliveries
from maintd.ledger.deliveries import Place
from maintd.ledger.engine import identity
from maintd.ledger.states import DeliveryState
from maintd.mail.address import InvalidAddress, parse_address, recipient_key
from maintd.mail.campaign import SQL_PREFIX, CampaignSpec
from maintd.mail.enrolling.audience import Row, open_audience

_MAILED = frozenset({DeliveryState.SENT, DeliveryState.UNCERTAIN})
_TO_COME = frozenset({DeliveryState.PENDING, DeliveryState.DEFERRED})
_MOST_SAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """An audience and the editions of one period.

    Attributes:
        editions: The editions that the period has, oldest first, each with its state.
        audience: Rows of the audience; an address that it has twice counts twice.
        invalid: Rows whose address cannot be used.
        suppressed: Rows whose address is on the suppression list.
        mailed: Recipients in the audience whom one of the editions was sent to, uncertain ones included.
        to_come: Recipients in the audience whom none was sent to, but one of the editions is still going to be.
        samples: The first few addresses that a run would mail.
        invalid_samples: The first few that cannot be used: the address as Python writes it, and the reason.
    """

    editions: Mapping[str, str]
    audience: int
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
    counter = _Counter(ledger, [campaign.id for campaign in found], spec.audience.address, key=key)
    sql = spec.audience.sql
    with open_audience(source, files[SQL_PREFIX + sql], key=f"audience.sql ({sql})") as (_, chunks):
        for rows in chunks:
            counter.count(rows)
    return Overlap(
        editions={campaign.edition: campaign.state.value for campaign in found},
        samples=tuple(counter.samples),
        invalid_samples=tuple(counter.invalid_samples),
        **counter.counts,
    )


class _Counter:
    def __init__(self, ledger: Database, campaign_ids: Sequence[int], column: str, *, key: bytes) -> None:
        self._ledger = ledger
        self._campaign_ids = campaign_ids
        self._column = column
        self._key = key
        self._seen = _Seen()
        self.counts = dict.fromkeys(("audience", "invalid", "suppressed", "mailed", "to_come"), 0)
        self.samples: list[str] = []
        self.invalid_samples: list[tuple[str, str]] = []

    def count(self, rows: Sequence[Row]) -> None:
        """Adds a chunk of the audience."""
        found = list(self._usable(rows))
        keys = [key for key, _ in found]
        with self._ledger.read() as connection:
            suppressed = deliveries.suppressed_keys(connection, keys)
            places = deliveries.places(connection, self._campaign_ids, keys)
        self.counts["audience"] += len(rows)
        self.counts["invalid"] += len(rows) - len(keys)
        self.counts["suppressed"] += sum(key in suppressed for key in keys)
        to_come = self._count_places(places)
        # Who is not enrolled in an edition that there is will not be.
        self._sample(
            mailbox
            for key, mailbox in found
            if key not in suppressed and (key in to_come or not self._campaign_ids)
        )

    def _count_places(self, places: Sequence[Place]) -> set[bytes]:
        """Counts recipients by what became of them, each once; returns those who are still to be mailed."""
        first: dict[bytes, Place] = {}
        states: dict[bytes, set[DeliveryState]] = {}
        for place in places:
            first.setdefault(place.recipient_key, place)
            states.setdefault(place.recipient_key, set()).add(place.state)
        to_come = {key for key, found in states.items() if found & _TO_COME and not found & _MAILED}
        for key, place in first.items():
            if self._seen.add(place):
                self.counts["mailed"] += bool(states[key] & _MAILED)
                self.counts["to_come"] += key in to_come
        return to_come

    def _sample(self, mailboxes: Iterator[str]) -> None:
        while len(self.samples) < _MOST_SAMPLES and (mailbox := next(mailboxes, None)):
            if mailbox not in self.samples:
                self.samples.append(mailbox)

    def _usable(self, rows: Sequence[Row]) -> Iterator[tuple[bytes, str]]:
        """Key and mailbox of each row that can be mailed."""
        for row in rows:
            text = row[self._column]
            try:
                address = parse_address(None if text is None else str(text))
            except InvalidAddress as error:
                if len(self.invalid_samples) < _MOST_SAMPLES:
                    self.invalid_samples.append((repr(text), str(error)))
                continue
            yield recipient_key(address.canonical, key=self._key), address.mailbox


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
