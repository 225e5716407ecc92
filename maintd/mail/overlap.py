"""How an audience, asked now, stands to what was mailed in a period already. Everything is read, nothing written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from maintd.database import Database
from maintd.ledger import campaigns, deliveries
from maintd.ledger.engine import identity
from maintd.ledger.states import DeliveryState
from maintd.mail.address import InvalidAddress, parse_address, recipient_key
from maintd.mail.audience import Row, open_audience
from maintd.mail.campaign import SQL_PREFIX, CampaignSpec

_MAILED = (DeliveryState.SENT, DeliveryState.UNCERTAIN)
_TO_COME = (DeliveryState.PENDING, DeliveryState.DEFERRED)
_MOST_SAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """An audience and the editions of one period, counted in rows of the audience: an address twice counts twice.

    Attributes:
        editions: The editions that the period has, oldest first, each with its state.
        audience: Rows.
        invalid: Those whose address cannot be used.
        suppressed: Those on the suppression list.
        mailed: Those whom one of the editions was sent to, doubtful ones included.
        to_come: Those whom one of the editions is still going to be sent to.
        samples: The first few addresses.
        invalid_samples: The first few that cannot be used, each with the reason.
    """

    editions: Mapping[str, str]
    audience: int
    invalid: int
    suppressed: int
    mailed: int
    to_come: int
    samples: tuple[str, ...]
    invalid_samples: tuple[str, ...]


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
        self.counts = dict.fromkeys(("audience", "invalid", "suppressed", "mailed", "to_come"), 0)
        self.samples: list[str] = []
        self.invalid_samples: list[str] = []

    def count(self, rows: Sequence[Row]) -> None:
        """Adds a chunk of the audience."""
        keys = list(self._keys(rows))
        with self._ledger.read() as connection:
            suppressed = deliveries.suppressed_keys(connection, keys)
            mailed, to_come = (
                deliveries.keys_among(connection, self._campaign_ids, keys, states=states)
                for states in (_MAILED, _TO_COME)
            )
        self.counts["audience"] += len(rows)
        self.counts["invalid"] += len(rows) - len(keys)
        for name, of_them in (("suppressed", suppressed), ("mailed", mailed), ("to_come", to_come - mailed)):
            self.counts[name] += sum(key in of_them for key in keys)

    def _keys(self, rows: Sequence[Row]) -> Iterator[bytes]:
        for row in rows:
            text = row[self._column]
            try:
                address = parse_address(None if text is None else str(text))
            except InvalidAddress as error:
                if len(self.invalid_samples) < _MOST_SAMPLES:
                    self.invalid_samples.append(f"{text!r}: {error}")
                continue
            if len(self.samples) < _MOST_SAMPLES:
                self.samples.append(address.mailbox)
            yield recipient_key(address.canonical, key=self._key)
